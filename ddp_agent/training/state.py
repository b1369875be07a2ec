"""All that a rank goes on from: what a checkpoint holds, and what a meeting of replicas may change."""

import logging
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from ddp_agent.checkpoint.writer import copied
from ddp_agent.distributed.consistency import ReplicatedTensor, ranks_unlike_rank_0, require_replicated
from ddp_agent.distributed.topology import Topology
from ddp_agent.errors import CheckpointError
from ddp_agent.reducers import Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.clock import Clock
from ddp_agent.training.link_bytes import Link

log = logging.getLogger(__name__)

# What every rank has of its own, also where all have the same parameters.
OWN = ("optimizer", "reducer", "diagnostics", "random")
MEETINGS_CHANGE = ("weights", "syncs", "sync", "reducer", "standing", "optimizer")


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> object: ...


@dataclass(kw_only=True)
class Position:
    """How far a rank has come, and what it has not logged yet."""

    loss_sum: Tensor  # of its own micro-batches since the last log
    step: int = 0
    logged_step: int = 0
    logged_s: float = 0.0  # the training time then


@dataclass(kw_only=True)
class State:
    """A rank's: a run that is resumed from it continues bit for bit. It is a `Participant`.

    `parts` save and load themselves, in this order; random streams come last, since to build and to rehearse draws
    from them.
    """

    position: Position
    sync: SyncStrategy
    reducer: Reducer
    topology: Topology
    clock: Clock
    link: Link | None
    parts: Mapping[str, Stateful]

    @property
    def step(self) -> int:
        return self.position.step

    def state_dict(self) -> dict[str, Any]:
        at, world = self.position, self.topology.world
        return {
            "step": at.step,
            "ranks": [world.size, not ranks_unlike_rank_0(internals(self.sync).flat.parameters, world)],
            "weights": [internals(self.sync).flat.everything, *internals(self.sync).flat.others],
            "syncs": internals(self.sync).syncs,
            "comm": asdict(self.topology.settle()),
            "loss_sum": at.loss_sum,
            "logged": [at.logged_step, at.logged_s],
            "link_bytes": self.link.training_bytes if self.link else None,
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        other_ranks = self._of_other_ranks(state)
        self.position.step = state["step"]
        for name, value in state["comm"].items():
            setattr(self.topology.world.stats, name, value)
        self.position.loss_sum.copy_(state["loss_sum"])
        self.position.logged_step, self.position.logged_s = state["logged"]
        if self.link:
            self.link.training_bytes = state.get("link_bytes")
        self._load(state, self.parts.keys() - set(OWN if other_ranks else ()))

    def check_start(self) -> None:
        if self.step == 0:
            world = self.topology.world
            require_replicated([ReplicatedTensor(internals(self.sync).flat.parameters, range(world.size))], world, 0)

    def snapshot(self) -> dict[str, Any]:
        state = self.state_dict()
        local = not self.sync.traits.merges_optimizer_state
        return {key: copied(state[key]) for key in MEETINGS_CHANGE if not (key == "optimizer" and local)}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """What is there may be half changed, and is not looked at."""
        self._load(snapshot, snapshot)

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        self.reducer.regroup(rank, size, new_size)

    def join_state(self) -> dict[str, Any]:
        """The optimizer's moments, too: better than none, and with optimizer_state=average they are everybody's."""
        state = self.state_dict() | {"reducer": self.reducer.common_state()}
        return {key: state[key] for key in ("step", *MEETINGS_CHANGE, "scaler", "ema") if key in state}

    def load_join_state(self, state: Mapping[str, Any]) -> None:
        self.position.step = state["step"]
        self._load(state, state)
        self.position.loss_sum.zero_()
        self.position.logged_step, self.position.logged_s = self.step, self.clock.read(0.0)["train_s"]

    def _load(self, state: Mapping[str, Any], names: Container[str]) -> None:
        """Weights, and the parts of these names."""
        internals(self.sync).flat.restore(state["weights"])
        internals(self.sync).syncs = state["syncs"]
        for name, part in self.parts.items():
            if name in names:
                part.load_state_dict(state[name])

    def _of_other_ranks(self, state: Mapping[str, Any]) -> bool:
        """Whether it is rank 0's of another number of ranks. Raises CheckpointError when these were not alike."""
        here = self.topology.world.size
        size, alike = state.get("ranks", (here, True))
        if size == here:
            return False
        if not alike:
            raise CheckpointError(
                f"resume_other_ranks: after step {state['step']} the {size} ranks of the checkpoint had parameters of "
                "their own, expected one that was saved right after all were averaged (sync.period divides "
                "checkpoint_every, for example)"
            )
        log.warning(
            "resumed with %d ranks what %d ranks had saved: parameters, the sync mode's own state and the position in "
            "the data go on; optimizer state, error feedback and random streams begin afresh, shards are cut anew, "
            "buffers and moving averages are those of rank 0",
            here,
            size,
        )
        return True
