"""The ranks or replicas that train one model together."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import require_identical

T = TypeVar("T")
Purpose = Literal["start", "sync", "flush", "evaluation", "measurement", "export"]


class Participant(Protocol):
    """One replica's training: its state, as collectives change it and as newcomers receive it."""

    @property
    def step(self) -> int:
        """The number of steps taken."""

    def check_start(self) -> None:
        """Raise when replicas that begin together do not begin with identical weights. A collective."""

    def snapshot(self) -> dict[str, Any]:
        """Return copies of everything that a collective may change."""

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Return to a snapshot."""

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        """Adapt to another number of replicas. See `Reducer.regroup`."""

    def join_state(self) -> dict[str, Any]:
        """Return the state from which a newcomer continues: tensors, numbers and strings."""

    def load_join_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `join_state` of another participant."""


class ReplicaGroup:
    """The replicas that train together: here the ranks of one torchrun, which start and end together.

    A replica takes the samples of share `slot` out of `slots`. `world`: the collectives among them, for use inside
    `run_collective`. `ElasticGroup` is the group of replicas that come and go.
    """

    def __init__(self, world: Comm) -> None:
        self.world, self.slot, self.slots = world, world.rank, world.size

    def require_identical(self, sha256_of: Mapping[str, str]) -> None:
        """Raise ConfigError when a hash is not the same on all replicas."""
        require_identical(sha256_of, self.world)

    def begin(self, participant: Participant) -> bool:
        """Block until `participant` has reached the group's current step.

        Return True if its state was received from another replica.
        """
        return False

    def run_collective(self, participant: Participant, work: Callable[[], T], purpose: Purpose) -> T:
        """Run `work`, a part of training in which replicas exchange data, on all replicas that are there.

        Return its result. Every replica must make the same calls in the same order.
        """
        return work()

    def end(self) -> None:
        """Declare the run finished."""

    def facts(self) -> dict[str, int]:
        """Return what the summary says about the group."""
        return {}
