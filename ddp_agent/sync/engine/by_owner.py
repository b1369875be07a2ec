"""Synchronisation of ranks that train different tasks: a head is averaged only over the ranks that train it.

In a loop of one's own, with heads that are modules of the model, registered behind everything that every rank trains:

    sync = ByOwner(mode=DiLoCo(period=100), owners={"heads.digit": (0, 1), "heads.speaker": (2,)})
    model = sync.setup(model, optimizer, topology, reducer)
    …  # the loop is that of any mode; a rank's loss is that of its own heads
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.comm import mean_
from ddp_agent.distributed.consistency import ReplicatedTensor
from ddp_agent.distributed.traffic import Collective, RunSizes
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.sync.base import SyncStrategy, SyncTraits
from ddp_agent.sync.engine.flat import Flat, Part

Owners = Mapping[str, tuple[int, ...]]
"""The ranks that train a module, by its name in the model."""


@dataclass(kw_only=True, eq=False)
class ByOwner(SyncStrategy):
    """`mode` for the parameters that every rank trains, and one copy of it per head, among the head's owners.

    Each copy has its own anchor, momentum, residuals and period, and its owners as world. So a head is never averaged
    with another one. A head with a single owner does not travel, but its outer optimizer, if any, steps all the same. A
    rank does not change the heads that it does not own. The consensus model takes each head from its owners.
    """

    mode: SyncStrategy
    owners: Owners

    _heads: dict[str, Part] = field(init=False, repr=False)
    _modes: dict[str, SyncStrategy] = field(init=False, repr=False)  # by own head; "" for what all ranks train

    def __post_init__(self) -> None:
        super().__post_init__()
        self.buffers = self.mode.buffers

    @property
    def traits(self) -> SyncTraits:
        return self.mode.traits

    def problems(self, run: RunFacts) -> list[Problem]:
        """Return the problems of the mode, among all ranks and among the owners of each head."""
        problems = list[Problem]()
        reducer = run.pieces.get("reducer")
        if reducer is not None and self.traits.sends == "parameters" and reducer.traits.remembers:
            text = f"{type(self.mode).__name__} averages each head by itself, which {reducer} cannot tell apart"
            problems.append(Problem("reducer", text))
        world = 0 if run.world_size is None else run.world_size
        for head, ranks in self.owners.items() if world else ():
            if not ranks or not set(ranks) <= set(range(world)) or list(ranks) != sorted(set(ranks)):
                found = f"found {list(ranks)}" if ranks else "found no rank that trains it"
                text = f"{head}: {found}, expected one or more of the {world} ranks, in order"
                problems.append(Problem("owners", text))
                continue
            among = RunFacts(world_size=len(ranks), ranks_per_node=run.ranks_per_node)
            fatal = [problem for problem in self.mode.problems(among) if problem.fatal]
            problems += [replace(each, text=f"{each.text} (these are the ranks that train {head})") for each in fatal]
        return [*problems, *self.mode.problems(run)]

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        """Return the collectives for the parameters that every rank trains."""
        return self.mode.traffic(run, reducer)

    def _traffic(self, steps: int) -> list[Collective]:
        """Return the collectives of this rank, those for the heads that it owns included."""
        collectives = []
        for head, mode in self._modes.items():
            each = mode._traffic(steps)
            collectives += [replace(one, group="owners") for one in each] if head else each
        return collectives

    def _shared(self) -> SyncStrategy:
        return self.mode

    def _flats(self) -> list[Flat]:
        return [mode._flat for mode in self._modes.values()]

    def _set_up(self, model: nn.Module) -> nn.Module:
        self._modes, self._heads = {}, {}
        forward = model
        for head, ranks in {"": tuple(range(self._topology.world.size)), **self.owners}.items():
            try:
                part = Part(forward, model, self._flat, partial(self._belongs, head))
                if among := self._topology.among(ranks):
                    mode = replace(self.mode) if head else self.mode
                    # A head of one owner does not travel: exact. Modes that average inside backward wrap each other.
                    reducer = self._reducer if among.world.size > 1 else Dense()
                    wrapped = mode.setup(part, self._optimizer, among, reducer)
                    forward = forward if wrapped is part else wrapped
                    self._modes[head] = mode
                else:
                    part.requires_grad_(False)
            except ValueError as error:
                raise ValueError(f"{head or 'what every rank trains'}: {error}") from error
            if head:
                self._heads[head] = part
        return forward

    def _belongs(self, head: str, name: str) -> bool:
        """Return True if a parameter belongs to `head`; with an empty `head`, if it belongs to no head."""
        return name.startswith(f"{head}.") if head else not any(name.startswith(f"{each}.") for each in self.owners)

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return _inside([mode.backward_context(step, last_micro_batch) for mode in self._modes.values()])

    def _due(self, step: int) -> bool:
        return self.mode._due(step)

    def _exchanges(self, step: int) -> bool:
        return any(mode._exchanges(step) for mode in self._modes.values())

    def _period_start(self) -> int | None:
        return self.mode._period_start()

    def before_step(self, step: int) -> None:
        for mode in self._modes.values():
            mode.before_step(step)
        self._syncs = self.mode._syncs

    def after_step(self, step: int) -> None:
        for mode in self._modes.values():
            mode.after_step(step)
        self._syncs = self.mode._syncs

    def flush(self, step: int) -> None:
        for mode in self._modes.values():
            mode.flush(step)
        self._syncs = self.mode._syncs

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Broadcast each head from the first of its owners, which hold its consensus inside their own context."""
        world = self._topology.world
        others = [part.flat for head, part in self._heads.items() if world.rank not in self.owners[head]]
        own = [flat.snapshot() for flat in others]
        with _inside([mode.eval_weights() for mode in self._modes.values()]):
            try:
                with torch.no_grad(), world.uncounted():
                    for head, part in self._heads.items():
                        for tensor in (*part.flat.stretches, *part.flat.others):
                            world.broadcast_(tensor, self.owners[head][0])
                yield
            finally:
                with torch.no_grad():
                    for flat, kept in zip(others, own, strict=True):
                        flat.restore(kept)

    def _mean_(self, everything: Tensor) -> None:
        for head, part in self._heads.items():
            own = self._topology.world.rank in self.owners[head]
            for stretch in part.flat.stretches:
                start = stretch.storage_offset()
                theirs = everything[start : start + stretch.numel()]
                theirs.mul_(self._topology.world.size / len(self.owners[head])) if own else theirs.zero_()
        super()._mean_(everything)

    def _replicated(self, step: int) -> Tensor | None:
        return self.mode._replicated(step)

    def _all_replicated(self, step: int) -> list[ReplicatedTensor]:
        parts = self.mode._all_replicated(step)
        for head, ranks in self.owners.items():
            own = self._modes[head]._replicated(step) if head in self._modes else None
            parts.append(ReplicatedTensor(own, ranks, f"the parameters of {head} that its owners share"))
        return parts

    @torch.no_grad()
    def consensus_distance(self) -> float:
        """Return sqrt(mean_k of the squared distance of everything that rank k trains), the same on every rank."""
        world = self._topology.world
        squares = sum(mode.consensus_distance() ** 2 for mode in self._modes.values())
        mean = torch.tensor([squares], dtype=torch.float64, device=world.device)
        with world.uncounted():
            mean_(mean, world)
        return math.sqrt(mean.item())

    def _measurements(self) -> dict[str, float]:
        return self.mode._measurements()

    def state_dict(self) -> dict[str, Any]:
        return {"modes": [mode.state_dict() for mode in self._modes.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mode._syncs = self._syncs
        for mode, saved in zip(self._modes.values(), state["modes"], strict=True):
            mode.load_state_dict(saved)


@contextmanager
def _inside(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
