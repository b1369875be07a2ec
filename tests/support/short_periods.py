"""The modes of conf/sync with periods that a short run reaches."""

from configs import node


def short(name: str, period: int, switch_step: int) -> tuple[str, ...]:
    """Overrides for the keys that the mode has."""
    values = {"period": period, "node_period": 2, "global_period": period, "switch_step": switch_step}
    keys = node("sync", name)
    overrides = [f"sync.{key}={value}" for key, value in values.items() if key in keys]
    if keys.get("combine") == "sum":  # whole sums of the ranks' changes are too long a step
        overrides.append("sync.outer_lr=0.4")
    return tuple(overrides)
