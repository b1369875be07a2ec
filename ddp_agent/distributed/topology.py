"""With whom a rank averages: everybody, its node, or its counterparts on the other nodes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ddp_agent.distributed.comm import Comm, CommStats


@dataclass(frozen=True)
class Topology:
    """Groups of ranks. All of them add to one set of counters, `world.stats`.

    `node` and `across` make process groups when first used, so every rank has to reach that point.
    """

    world: Comm
    ranks_per_node: int
    parts: dict[tuple[int, ...], "Topology | None"] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def create(cls, ranks_per_node: int | None = None) -> "Topology":
        """Ranks are numbered node by node, as torchrun does; its LOCAL_WORLD_SIZE is the default node size.

        Raises ValueError when `ranks_per_node` does not divide the world.
        """
        world = Comm.world()
        size = ranks_per_node or min(int(os.environ.get("LOCAL_WORLD_SIZE", world.size)), world.size)
        if size < 1 or world.size % size:
            raise ValueError(
                f"ranks_per_node: found {size}, expected a divisor of the world size {world.size}, "
                f"one of {[n for n in range(1, world.size + 1) if world.size % n == 0]}"
            )
        return cls(world=world, ranks_per_node=size)

    @property
    def comms(self) -> list[Comm]:
        """The groups in use so far, for all of their ranks in one order."""
        own = [self.world, *(self.__dict__[name] for name in ("node", "across") if name in self.__dict__)]
        return own + [comm for part in self.parts.values() if part for comm in part.comms]

    def settle(self) -> CommStats:
        """The counters, with the time of all groups' CUDA events added. Waits for the GPU."""
        for comm in self.comms:
            comm.settle()
        return self.world.stats

    def among(self, ranks: Sequence[int]) -> "Topology | None":
        """The same for some ranks, of which a node may have few or none; None on the others.

        Every rank of the whole world calls it, alike, since it makes the process groups that this takes.
        """
        key = tuple(ranks)
        if key == tuple(range(self.world.size)):
            return self
        if key not in self.parts:
            self.parts[key] = self._among(key)
        return self.parts[key]

    def _among(self, ranks: tuple[int, ...]) -> "Topology | None":
        world, size = self.world.among(ranks), self.ranks_per_node
        part = Topology(world=world, ranks_per_node=size) if world else None
        for name, kind in (("node", int.__floordiv__), ("across", int.__mod__)):
            kinds = sorted({kind(rank, size) for rank in ranks})
            comms = [self.world.among([rank for rank in ranks if kind(rank, size) == one]) for one in kinds]
            if part:
                part.__dict__[name] = next(comm for comm in comms if comm)
        return part

    @cached_property
    def node(self) -> Comm:
        """The ranks of this rank's node."""
        size = self.ranks_per_node
        return self.world.split([range(first, first + size) for first in range(0, self.world.size, size)])

    @cached_property
    def across(self) -> Comm:
        """The ranks that have this rank's place on their nodes."""
        size = self.ranks_per_node
        return self.world.split([range(place, self.world.size, size) for place in range(size)])
