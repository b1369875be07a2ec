"""Groups of ranks that average with one another: all of them, one node's, or the counterparts on other nodes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ddp_agent.distributed.comm import Comm, LocalComm
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.variables import whole


@dataclass(eq=False)
class Topology:
    """The world and its groups, which share one ledger: `world.stats` counts the traffic of all.

    `node` and `across` make process groups when first used, so every rank has to reach that point.
    """

    world: Comm
    ranks_per_node: int
    _node: Comm | None = field(default=None, repr=False)
    _across: Comm | None = field(default=None, repr=False)
    _parts: dict[tuple[int, ...], "Topology | None"] = field(default_factory=dict, repr=False)

    @classmethod
    def create(cls, ranks_per_node: int | None = None) -> "Topology":
        """Return the topology of the default process group, whose ranks are numbered node by node, as torchrun does.

        `ranks_per_node` defaults to torchrun's LOCAL_WORLD_SIZE. Raises ValueError when it does not divide the world,
        and ConfigError for a world of one rank in one of several tasks of a scheduler.
        """
        world = world_comm()
        if world.size == 1:
            TorchrunEnvironment.read()
        size = ranks_per_node or min(whole(os.environ, "LOCAL_WORLD_SIZE", world.size), world.size)
        if size < 1 or world.size % size:
            raise ValueError(
                f"ranks_per_node: found {size}, expected a divisor of the world size {world.size}, "
                f"one of {[n for n in range(1, world.size + 1) if world.size % n == 0]}"
            )
        return cls(world, size)

    @property
    def comms(self) -> list[Comm]:
        """The groups made so far, in one order on all of their ranks."""
        own = [comm for comm in (self.world, self._node, self._across) if comm]
        return own + [comm for part in self._parts.values() if part for comm in part.comms]

    @property
    def node(self) -> Comm:
        """The ranks of this rank's node."""
        if self._node is None:
            self._node = self._group(across=False)
        return self._node

    @property
    def across(self) -> Comm:
        """The ranks with this rank's number inside their nodes, one per node."""
        if self._across is None:
            self._across = self._group(across=True)
        return self._across

    def among(self, ranks: Sequence[int]) -> "Topology | None":
        """Return the topology of some ranks, of which a node may have few or none. None on the other ranks.

        Every rank of the world must call it with the same ranks: it makes their process groups.
        """
        key = tuple(ranks)
        if key == tuple(range(self.world.size)):
            return self
        if key not in self._parts:
            world = self._subgroup([key])
            node, across = (self._subgroup(self._classes(key, across=across)) for across in (False, True))
            self._parts[key] = Topology(world, self.ranks_per_node, node, across) if world else None
        return self._parts[key]

    def _subgroup(self, partition: list[Sequence[int]]) -> Comm | None:
        """Return this rank's group. A rank that is alone in it needs no process group, and nothing is counted."""
        comm = self.world.split([part for part in partition if len(part) > 1])
        alone = [self.world.rank] in [list(part) for part in partition]
        return LocalComm(self.world.ledger) if alone else comm

    def _group(self, *, across: bool) -> Comm:
        comm = self.world.split(self._classes(range(self.world.size), across=across))
        assert comm is not None, "the classes cover the world"
        return comm

    def _classes(self, ranks: Sequence[int], *, across: bool) -> list[Sequence[int]]:
        """Return the ranks in lists, one per node or, `across` nodes, one per number inside a node."""
        of = {rank: rank % self.ranks_per_node if across else rank // self.ranks_per_node for rank in ranks}
        return [[rank for rank in ranks if of[rank] == value] for value in sorted(set(of.values()))]
