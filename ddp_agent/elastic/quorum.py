"""Quorums: the replicas that came to one round, and what they reported about themselves."""

from collections.abc import Callable
from dataclasses import dataclass

from ddp_agent.distributed.replica_group import Purpose


@dataclass(frozen=True, kw_only=True)
class Member:
    """A replica's report of itself when it comes to a round."""

    name: str  # unique per start: a replica that is started again has another
    number: int
    version: int  # kept rounds whose result it has
    step: int
    running: bool  # False: it wants to join
    purpose: Purpose
    group: str  # key of the quorum whose process group it is connected to; "" for none


@dataclass(frozen=True)
class Quorum:
    """All members that came to one round."""

    key: str  # unique
    number: int  # one higher whenever its members are not those of the quorum before
    members: tuple[Member, ...]  # by name, and so by number

    def active(self) -> list[Member]:
        """Return the members that train and have the results of all rounds so far."""
        running = [member for member in self.members if member.running]
        return [member for member in running if member.version == max(it.version for it in running)]

    def founders(self, count: int) -> list[Member]:
        """Return the members that start a run in which nobody trains yet; none before all `count` replicas are there.

        They are those with the newest checkpoint. The others receive their state.
        """
        if len({member.number for member in self.members}) < count:
            return []
        newest = max((member.version, member.step) for member in self.members)
        return [member for member in self.members if (member.version, member.step) == newest]

    def newcomers(self, active: list[Member]) -> list[Member]:
        """Return the members that want to join. A running member that is behind finds that out by itself."""
        names = {member.name for member in active}
        return [member for member in self.members if member.name not in names and not member.running]


def rank_of(name: str, members: list[Member]) -> int:
    """Return a member's rank: its index among the members."""
    return [member.name for member in members].index(name)


@dataclass(frozen=True)
class Change:
    """A change of the group. Replicas are given by number."""

    step: int
    members: list[int]  # the replicas that train from now on
    lost: dict[int, int]  # replica to the step in which it was last seen
    joined: list[int]

    def __str__(self) -> str:
        texts = [f"replica {number} was lost, last seen in step {step}" for number, step in self.lost.items()]
        texts += [f"replica {number} has joined" for number in self.joined]
        return f"after step {self.step} {'; '.join(texts)}: {len(self.members)} are left, {self.members}"


def change_between(
    before: list[Member], now: list[Member], step: int, last_step: Callable[[str], int]
) -> Change | None:
    """Return what changed between two rounds, or None. `last_step(name)`: the step in which a replica was last seen."""
    names_before, names_now = {member.name for member in before}, {member.name for member in now}
    lost = {member.number: last_step(member.name) for member in before if member.name not in names_now}
    joined = [member.number for member in now if before and member.name not in names_before]
    return Change(step, [member.number for member in now], lost, joined) if lost or joined else None
