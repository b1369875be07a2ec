"""Who trains together, and what happens where they meet: the part of it that an ordinary run needs."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import require_alike

T = TypeVar("T")
What = Literal["start", "sync", "flush", "evaluation", "measurement", "export"]


class Member(Protocol):
    """What takes part in meetings: a trainer's state, or any loop around a sync mode."""

    @property
    def step(self) -> int: ...

    def check_start(self) -> None:
        """A collective: raises when ranks that begin together do not begin alike."""

    def snapshot(self) -> dict[str, Any]:
        """Copies of all that a meeting may change."""

    def restore(self, snapshot: Mapping[str, Any]) -> None: ...

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        """See `Reducer.regroup`."""

    def parcel(self) -> dict[str, Any]:
        """Plain data: what one that joins goes on from."""

    def adopt(self, parcel: Mapping[str, Any]) -> None: ...


class Settled:
    """Ranks that live and end together: whoever began is there until the end.

    `slot` of `slots`: whose samples a rank takes.
    """

    def __init__(self, world: Comm) -> None:
        self.world, self.slot, self.slots = world, world.rank, world.size

    def require_alike(self, sha256_of: Mapping[str, str]) -> None:
        require_alike(sha256_of, self.world)

    def begin(self, member: Member) -> bool:
        """Returns when `member` stands where the others do; whether it has what it goes on from of them."""
        return False

    def together(self, member: Member, work: Callable[[], T], what: What) -> T:
        """Does `work`, a part of training in which ranks exchange something, with all that are there.

        Every member comes to the same meetings in the same order.
        """
        return work()

    def end(self) -> None:
        """All is done."""

    def facts(self) -> dict[str, int]:
        """For the summary."""
        return {}
