"""Remarks of a piece of a configuration on the run that it is a part of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Problem:
    """A remark of a piece on a run: the config `key`, what was found, what is expected, and a remedy.

    A fatal problem refuses the run. The others are logged: as a warning, or, when `harmless`, as information.
    """

    key: str
    text: str
    fatal: bool = True
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts of a run that a piece may depend on. None: not known yet, or itself refused."""

    world_size: int | None = None
    ranks_per_node: int | None = None
    total_steps: int | None = None
    precision: str | None = None
    on_rank_loss: Literal["stop", "continue"] = "stop"
    tasks_are_partitioned: bool = False  # ranks train different heads
    seed: int = 0
    epochs: int = 1
    samples: Any = None  # the training data's `SampleAttributes`, once they are loaded
    subtasks: tuple[str, ...] = ()  # names of the tasks, where the data have several
    pieces: Mapping[str, Any] = field(default_factory=dict)  # the other pieces, by config group
