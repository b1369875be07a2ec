"""Averaging with neighbours alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.traffic import Collective, RunSizes
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncTraits
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

    graph: Graph = "ring"
    buffers: Literal["average", "local", "recalibrate"] = "average"
    optimizer_state: Literal["local", "reset"] = "local"

    _rounds: int = field(init=False, repr=False)  # which peer's turn it is

    @property
    def traits(self) -> SyncTraits:
        if self.graph == "complete":
            return super().traits
        return replace(super().traits, identical="never", neighbours_only=True)

    def _reducer_problem(self, reducer: Reducer) -> str | None:
        refused = super()._reducer_problem(reducer)
        if refused is None and not reducer.traits.plain:
            return f"Gossip sends raw parameters to neighbours as they are, without {reducer}; use reducer=dense"
        return refused

    def problems(self, run: RunFacts) -> list[Problem]:
        problems, ranks = super().problems(run), run.world_size or 1
        if self.graph == "exponential" and ranks & (ranks - 1):
            below = 1 << (ranks.bit_length() - 1)
            text = f"found exponential among {ranks} ranks, expected a power of two such as {below} or {2 * below}"
            problems.append(Problem("sync.graph", f"{text}; or use sync.graph=ring"))
        return problems

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self._rounds = 0
        return model

    def merge_parameters_(self) -> None:
        world = self._topology.world
        if self.graph == "complete":
            average_(self._flat, self.buffers, self._reducer, world)
        else:
            shares = self._shares(world.rank, world.size)
            receivers = [other for other in range(world.size) if world.rank in self._shares(other, world.size)]
            for mixed in self._flat.stretches if self.buffers == "average" else [self._flat.parameters]:
                self._mix_(mixed, shares, receivers)
        self._rounds += 1

    def _merge_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        if self.graph in ("complete", "empty"):
            return super()._merge_traffic(run, reducer) if self.graph == "complete" else []
        pieces = [run.numbers, run.buffer_numbers] if self.buffers == "average" else [run.numbers]
        stretches = [sum(pieces)] if run.in_one_piece else [count for count in pieces if count]
        peers, sizes = 2 if self.graph == "ring" else 1, [count * run.itemsize for count in stretches]
        return [Collective(kind="exchange", payload_bytes=size, peers=peers, ranks=run.ranks) for size in sizes]

    def _mix_(self, own: torch.Tensor, shares: Mapping[int, float], receivers: list[int]) -> None:
        """Replace `own` by the weighted mean of the neighbours' tensors and `own`."""
        senders = list(shares)
        others = self._topology.world.exchange(own, receivers, senders)
        own.mul_(1 - sum(shares.values()))
        for sender, other in zip(senders, others, strict=True):
            own.add_(other, alpha=shares[sender])

    def _shares(self, rank: int, size: int) -> dict[int, float]:
        """Return the ranks whose parameters enter this rank's mean in this round, with their weights."""
        if size == 1 or self.graph == "empty":
            return {}
        if self.graph == "exponential":
            hop = 1 << self._rounds % (size.bit_length() - 1)
            return {(rank - hop) % size: 1 / 2}
        if size == 2:
            return {1 - rank: 1 / 2}
        return {(rank - 1) % size: 1 / 3, (rank + 1) % size: 1 / 3}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rounds": self._rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._rounds = state["rounds"]
