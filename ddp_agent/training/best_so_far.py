"""How good a run is so far."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Standing:
    """A target that was not reached is None, never a large number."""

    best_metric: float | None = None
    time_to_target_s: float | None = None
    bytes_to_target: int | None = None
    steps_to_target: int | None = None

    def note(
        self, metric: float, target: float | None, *, higher_is_better: bool, step: int, costs: Mapping[str, float]
    ) -> bool:
        """After an evaluation at `step`, which `costs` (`train_s`, `payload_bytes`) have led to: is it the best yet?"""
        better = max if higher_is_better else min
        improved = self.best_metric is None or better(self.best_metric, metric) != self.best_metric
        self.best_metric = metric if improved else self.best_metric
        if self.steps_to_target is None and target is not None and better(metric, target) == metric:
            self.steps_to_target = step
            self.time_to_target_s, self.bytes_to_target = costs["train_s"], int(costs["payload_bytes"])
        return improved

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
