"""The state of a rank: the content of a checkpoint, and what an exchange between replicas may change."""

import logging
import math
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from ddp_agent.checkpoint.writer import copied
from ddp_agent.distributed.consistency import ReplicatedTensor, ranks_unlike_rank_0, require_replicated
from ddp_agent.errors import CheckpointError, NonFiniteError
from ddp_agent.reducers import Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.internals import Internals, internals
from ddp_agent.training.clock import Clock
from ddp_agent.training.link_bytes import Link
from ddp_agent.training.state_structure import difference

log = logging.getLogger(__name__)

# Parts that differ between ranks, also where all ranks have the same parameters.
OWN_PARTS = ("optimizer", "reducer", "diagnostics", "random")
CHANGED_BY_EXCHANGE = ("weights", "syncs", "sync", "reducer", "standing", "optimizer")


class Stateful(Protocol):
    """A part that saves and loads itself."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain data: numbers, strings, tensors, lists and dicts of them."""

    def load_state_dict(self, state_dict: Any) -> object:
        """Continue from a `state_dict`."""


@dataclass(kw_only=True)
class Position:
    """The progress of a rank, and what it has not logged yet."""

    loss_sum: Tensor
    """The sum of this rank's micro-batch losses since the last log, a scalar on the device."""
    step: int = 0
    logged_step: int = 0
    logged_s: float = 0.0
    """Training time at the last log."""

    def finite_loss(self, rank: int) -> float:
        """Return the loss sum. Raises NonFiniteError if it is not finite, so that no such state is saved."""
        loss = self.loss_sum.item()
        if not math.isfinite(loss):
            first = self.logged_step + 1
            raise NonFiniteError(f"train_loss is {loss} between steps {first} and {self.step}", rank, self.step)
        return loss


@dataclass
class BestScore:
    """The best metric so far, and what it took to reach the target. Not reached is None, never a large number."""

    best_metric: float | None = None
    time_to_target_s: float | None = None
    bytes_to_target: int | None = None
    steps_to_target: int | None = None

    def note(
        self, metric: float, target: float | None, *, higher_is_better: bool, step: int, costs: Mapping[str, float]
    ) -> bool:
        """Take in the evaluation after `step`, which cost `train_s` and `payload_bytes`. Return whether it is best."""
        better = max if higher_is_better else min
        improved = self.best_metric is None or better(self.best_metric, metric) != self.best_metric
        self.best_metric = metric if improved else self.best_metric
        if self.steps_to_target is None and target is not None and better(metric, target) == metric:
            self.steps_to_target = step
            self.time_to_target_s, self.bytes_to_target = costs["train_s"], int(costs["payload_bytes"])
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        vars(self).update({key: state[key] for key in asdict(self) if key in state})


@dataclass(kw_only=True)
class State:
    """The state of one rank. A run that is resumed from it continues bit for bit.

    `parts` save and load themselves, in this order. Random streams come last, since building the other parts and
    rehearsing a step draw from them. `snapshot` and the methods after it are those of a `replica_group.Participant`.
    """

    position: Position
    sync: SyncStrategy
    reducer: Reducer
    clock: Clock
    link: Link | None
    parts: Mapping[str, Stateful]

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return self.position.step

    @property
    def _sync(self) -> Internals:
        return internals(self.sync)

    def state_dict(self) -> dict[str, Any]:
        """Return the content of this rank's file in a checkpoint."""
        at, world = self.position, self._sync.world
        return {
            "step": at.step,
            "ranks": [world.size, not ranks_unlike_rank_0(self._sync.flat.parameters, world)],
            "weights": [self._sync.flat.everything, *self._sync.flat.others],
            "syncs": self._sync.syncs,
            "comm": asdict(world.ledger.settle()),
            "loss_sum": at.loss_sum,
            "logged": [at.logged_step, at.logged_s],
            "link_bytes": self.link.training_bytes if self.link else None,
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of this rank, or from rank 0's of another number of ranks.

        Raises CheckpointError if ranks had parameters of their own there and their number has changed.
        """
        other_ranks = self._of_other_ranks(state)
        names = self.parts.keys() - set(OWN_PARTS if other_ranks else ())
        self._compare(state, names)
        self.position.step = state["step"]
        for name in asdict(self._sync.world.stats).keys() & state["comm"].keys():
            setattr(self._sync.world.stats, name, state["comm"][name])
        self.position.loss_sum.copy_(state["loss_sum"])
        self.position.logged_step, self.position.logged_s = state["logged"]
        if self.link:
            self.link.training_bytes = state.get("link_bytes")
        self._load(state, names)

    def check_start(self) -> None:
        """Raise DivergedError if ranks start with different parameters. A collective."""
        if self.step == 0:
            world = self._sync.world
            require_replicated([ReplicatedTensor(self._sync.flat.parameters, range(world.size))], world, 0)

    def snapshot(self) -> dict[str, Any]:
        """Return copies of everything that an exchange may change."""
        state = self.state_dict()
        local = not self.sync.traits.merges_optimizer_state
        return {key: copied(state[key]) for key in CHANGED_BY_EXCHANGE if not (key == "optimizer" and local)}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Return to a `snapshot`. The state before may be half changed, and is not read."""
        self._load(snapshot, snapshot)

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        """Adapt to another number of ranks; see `Reducer.regroup`."""
        self.reducer.regroup(rank, size, new_size)

    def join_state(self) -> dict[str, Any]:
        """Return the state that a replica which joins continues from.

        It includes the optimizer's moments: the newcomer starts better with another rank's moments than with zeros.
        With optimizer_state=average they are identical on all ranks.
        """
        state = self.state_dict() | {"reducer": self.reducer.common_state()}
        return {key: state[key] for key in ("step", *CHANGED_BY_EXCHANGE, "scaler", "ema") if key in state}

    def load_join_state(self, state: Mapping[str, Any]) -> None:
        """Continue from another replica's `join_state`."""
        self._compare(state, state)
        self.position.step = state["step"]
        self._load(state, state)
        self.position.loss_sum.zero_()
        self.position.logged_step, self.position.logged_s = self.step, self.clock.read(0.0)["train_s"]

    def _compare(self, state: Mapping[str, Any], names: Container[str]) -> None:
        """Raise ValueError if the parts of these names, and what every state has, cannot be taken from `state`."""
        at, sync = self.position, self._sync
        ours = {
            "step": at.step,
            "weights": [sync.flat.everything, *sync.flat.others],
            "syncs": sync.syncs,
            "comm": asdict(sync.world.stats),
            "loss_sum": at.loss_sum,
            "logged": [at.logged_step, at.logged_s],
            **{name: part.state_dict() for name, part in self.parts.items() if name in names},
        }
        if problem := difference(ours, state, "state"):
            raise ValueError(problem)

    def _load(self, state: Mapping[str, Any], names: Container[str]) -> None:
        """Load the weights and the parts of these names."""
        self._sync.flat.restore(state["weights"])
        self._sync.syncs = state["syncs"]
        for name, part in self.parts.items():
            if name in names:
                part.load_state_dict(state[name])

    def _of_other_ranks(self, state: Mapping[str, Any]) -> bool:
        """Return whether the state was saved by another number of ranks, and is rank 0's then.

        Raises CheckpointError if the parameters of those ranks were not identical.
        """
        here = self._sync.world.size
        size, identical = state.get("ranks", (here, True))
        if size == here:
            return False
        if not identical:
            raise CheckpointError(
                f"resume_other_ranks: after step {state['step']} the {size} ranks of the checkpoint had parameters of "
                "their own, expected one that was saved right after all were averaged (sync.period divides "
                "checkpoint_every, for example)"
            )
        log.warning(
            "resumed with %d ranks a checkpoint of %d ranks: parameters, the sync mode's own state and the position in "
            "the data continue; optimizer state, error feedback and random streams start from scratch, shards are cut "
            "again, buffers and moving averages are those of rank 0",
            here,
            size,
        )
        return True
