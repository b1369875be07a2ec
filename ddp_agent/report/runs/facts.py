"""Facts that runs recorded: their settings (all that says what is trained), their task and their machine."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ddp_agent.config.untrusted import plain
from ddp_agent.report.runs.run import Run

# A summary labels these config groups by the names of the chosen files.
GROUPS = ("reducer", "cadence", "slicing", "model", "dataset")
# These keys do not change what is trained, or are checked to be equal anyway (budget and evaluation points).
_NOT_A_SETTING = {
    "seed", "epochs", "max_steps", "eval_every", "evaluate_own", "log_every", "consensus_every", "consensus_per_layer",
    "profile_steps", "target", "checkpoint_every", "keep_checkpoints", "resume", "run_name", "data_root",
    "nproc_per_node", "timeout_s", "trusted_packages",
}  # fmt: skip
NOT_RECORDED = "not recorded"
_TASK = ("dataset", "model", "params", "world_size", "nodes", "samples", "steps")
_MACHINE = ("device", "cpus", "platform", "python_version", "torch_version", "commit", "link_rate_bits_per_s")


def settings_of(run: Run) -> dict[str, str]:
    """Return the run's settings with dotted keys. Without a config: the few that the summary has, and a note of it."""
    labels = {group: plain(value) for group in GROUPS if (value := run.summary.get(group)) is not None}
    if run.config:
        named = {f"{group}.name" for group in (*labels, "sync")}  # the summary's labels say the same
        ignored = _NOT_A_SETTING | named
        config = {plain(key): plain(value) for key, value in run.config.items() if key not in ignored}
    else:
        config = {"config": "not recorded"}
        if (period := run.summary.get("period")) is not None:
            config["sync.period"] = plain(period)
    return {"sync": run.mode, **labels, **config}


def differing_keys(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys in which `settings` differ: first the groups, then H, then the mode's own settings."""
    keys = {key for each in settings for key in each if len({other.get(key) for other in settings}) > 1}
    return sorted(keys, key=lambda key: (key not in GROUPS, key != "sync.period", not key.startswith("sync."), key))


def shared(runs: Sequence[Run]) -> dict[str, str]:
    """Return the facts about the task that are equal in all runs."""
    return {key: next(iter(values)) for key, values in _values(runs, _TASK).items() if len(values) == 1}


def environment(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Return the facts about the machines: for each key its values, for each value the names of its runs."""
    return _values(runs, _MACHINE)


def _values(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    names_by_key: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        names: defaultdict[str, list[str]] = defaultdict(list)
        for run in runs:
            value = run.summary.get(key)
            names[NOT_RECORDED if value is None else plain(value)].append(run.name)
        names_by_key[key] = dict(names)
    return {key: names for key, names in names_by_key.items() if set(names) != {NOT_RECORDED}}
