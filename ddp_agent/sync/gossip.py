"""Averaging with neighbours alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.sync.engine.state_policies import average_
from ddp_agent.sync.periodic import Periodic

Graph = Literal["ring", "exponential", "complete", "empty"]


@dataclass(kw_only=True, eq=False)
class Gossip(Periodic):
    """Parameters averaged with neighbours in a graph every H steps (Lian et al. 2017; Assran et al. 2019).

    The weights are doubly stochastic, so the mean over ranks is preserved. `ring`: both neighbours and oneself, a third
    each; `exponential`: one peer a round, 1, 2, 4, … ranks away, half and half; `complete`: everybody; `empty`: nobody.
    Integer buffers stay a rank's own.
    """

    sends: ClassVar[Literal["parameters"]] = "parameters"

    graph: Graph = "ring"
    buffers: Literal["average", "local", "recalibrate"] = "average"
    optimizer_state: Literal["local", "reset"] = "local"

    rounds: int = field(init=False, repr=False)  # which peer's turn it is

    def refusal(self, reducer: Reducer) -> str | None:
        refused = super().refusal(reducer)
        if refused is None and not isinstance(reducer, Dense):
            return f"Gossip sends raw parameters to neighbours as they are, without {reducer}; use reducer=dense"
        return refused

    def misfit(self, world_size: int, ranks_per_node: int) -> str | None:
        if self.graph == "exponential" and world_size & (world_size - 1):
            below = 1 << (world_size.bit_length() - 1)
            return (
                f"graph: found exponential among {world_size} ranks, expected a power of two such as {below} or "
                f"{2 * below}; or use sync.graph=ring"
            )
        return None

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.rounds = 0
        return model

    def merge_parameters_(self) -> None:
        world = self.topology.world
        if self.graph == "complete":
            average_(self.flat, self.buffers, self.reducer, world)
        else:
            shares, receivers = self.shares(world.rank, world.size), self.receivers(world.rank, world.size)
            for mixed in self.flat.stretches if self.buffers == "average" else [self.flat.parameters]:
                self._mix_(mixed, shares, receivers)
        self.rounds += 1

    def _mix_(self, own: torch.Tensor, shares: Mapping[int, float], receivers: list[int]) -> None:
        """own <- the weighted mean of what the neighbours and this rank have."""
        senders = list(shares)
        others = self.topology.world.exchange(own, receivers, senders)
        own.mul_(1 - sum(shares.values()))
        for sender, other in zip(senders, others, strict=True):
            own.add_(other, alpha=shares[sender])

    def shares(self, rank: int, size: int) -> dict[int, float]:
        """Whose parameters this rank takes into its mean this round, and how much of each."""
        if size == 1 or self.graph == "empty":
            return {}
        if self.graph == "exponential":
            return {(rank - self._hop(size)) % size: 1 / 2}
        if size == 2:
            return {1 - rank: 1 / 2}
        return {(rank - 1) % size: 1 / 3, (rank + 1) % size: 1 / 3}

    def receivers(self, rank: int, size: int) -> list[int]:
        """Who takes this rank's."""
        return [other for other in range(size) if rank in self.shares(other, size)]

    def _hop(self, size: int) -> int:
        return 1 << self.rounds % (size.bit_length() - 1)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rounds = state["rounds"]
