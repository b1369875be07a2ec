"""DiLoCo in fragments, whose all-reduce goes on while inner steps run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import Decay, Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from ddp_agent.distributed.traffic import Collective, RunSizes, covered, times
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.diloco import outer_sgd_
from ddp_agent.sync.engine.fragments import Fragment, Stream, by_modules, equal_cuts
from ddp_agent.sync.engine.state_policies import buffer_traffic, merge_buffers_
from ddp_agent.sync.periodic import Periodic


@dataclass(kw_only=True, eq=False)
class StreamingDiLoCo(Periodic):
    """DiLoCo by fragments, whose all-reduce hides behind `delay` inner steps (Douillard et al. 2025, 2501.18512).

    Of P fragments number i (from 0) is applied after step H (i + 1) / P of every period. Its pseudo-gradient is taken
    `delay` steps before; on arrival w <- alpha w + (1 - alpha) anchor, which drops 1 - alpha of those steps.
    """

    _traits = replace(Periodic._traits, sends="changes", identical="after_flush", has_anchor=True)

    fragments: PositiveInt | tuple[tuple[str, ...], ...] = 2  # P equal cuts, or lists of modules
    delay: NonNegativeInt = 1  # tau
    alpha: Fraction = 0.0
    outer_lr: NonNegativeFloat = 0.7
    outer_momentum: Decay = 0.6
    nesterov: bool = True

    anchor: Tensor = field(init=False, repr=False)
    _momentum: Tensor = field(init=False, repr=False)
    _streams: list[Stream] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._count < 1 or self.period % self._count:
            near = max(1, round(self.period / max(1, self._count))) * max(1, self._count)
            raise ValueError(
                f"fragments: found {self._count} in a period of {self.period} steps, which they do not divide; "
                f"expected a divisor, or sync.period={near}"
            )
        if self.delay >= self.period // self._count:
            raise ValueError(
                f"delay: found {self.delay}, expected less than the {self.period // self._count} steps between two "
                f"fragments (period {self.period} / fragments {self._count})"
            )

    @property
    def traits(self) -> SyncTraits:
        acts_alone = (self.outer_lr, self.outer_momentum, self.delay) != (1, 0, 0)
        return replace(super().traits, survives_lost_rank=self.delay == 0, acts_alone=acts_alone)

    def _rank_loss_problem(self) -> str:
        return (
            f"StreamingDiLoCo has an all-reduce under way for {self.delay} steps, which cannot be taken back when a "
            "rank is lost meanwhile; use sync.delay=0 or sync=diloco"
        )

    def _exchanges(self, step: int) -> bool:
        """Return True where a fragment is sent or arrives, also in a loop that does not begin with step 1."""
        passed, spacing = step - self._synced_step, self._current_period // self._count
        return passed % spacing == 0 or (passed + self.delay) % spacing == 0 or passed > self._current_period

    @property
    def _count(self) -> int:
        """P, the number of fragments."""
        return self.fragments if isinstance(self.fragments, int) else len(self.fragments)

    def _fitting(self, period: int) -> int:
        """Return a multiple of P, near `period`, that leaves each all-reduce its `delay` steps."""
        return self._count * max(self.delay + 1, round(period / self._count))

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self.anchor = self._flat.parameters.clone()
        self._momentum = torch.zeros_like(self.anchor)
        fragments = self._cut([name for name, _ in model.named_parameters()], self._flat.shapes)
        self._streams = [Stream(fragment, self._reducer, self.anchor, self._momentum) for fragment in fragments]
        return model

    def _cut(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> list[Fragment]:
        if isinstance(self.fragments, int):
            return equal_cuts(shapes, self.fragments)
        return by_modules(names, shapes, self.fragments)

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        """Return the collectives of the fragments, then those of the periods' ends."""
        periods, left = divmod(run.steps, self.period)
        spacing, collectives = self.period // self._count, list[Collective]()
        for index, fragment in enumerate(self._cut(run.names, [torch.Size(shape) for shape in run.shapes])):
            own_step = (index + 1) * spacing
            # Once per period, once more in what is left of one, and at the flush unless that comes right after.
            count = periods + (left >= own_step) + ((left or self.period) != own_step)
            each = reducer.traffic(fragment.shapes, run.itemsize, run.ranks)
            each = covered(each, "steps", self.delay) if self.delay else each
            collectives += times(each, count, shortest=self._count * (self.delay + 1), **self._pace())
        ends = math.ceil(run.steps / self.period)
        return [*times(self._sync_traffic(run, reducer), ends, **self._pace()), *collectives]

    def _merge_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        return buffer_traffic(self.buffers, run)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if step > self._synced_step + self._current_period:  # a loop that does not begin with step 1
            self._begin_period(step - 1)
        spacing = self._current_period // self._count
        passed = step - self._synced_step
        if (passed + self.delay) % spacing == 0 and passed + self.delay <= self._current_period:
            self._streams[(passed + self.delay) // spacing - 1].start(self._flat.parameters, self._topology.world)
        if passed % spacing == 0:
            stream = self._streams[passed // spacing - 1]
            self._apply(stream, step)
            for own, anchor in zip(stream.fragment.of(self._flat.parameters), stream.anchors, strict=True):
                own.mul_(self.alpha).add_(anchor, alpha=1 - self.alpha) if self.alpha else own.copy_(anchor)
        if passed == self._current_period:
            self._end_period(step)

    def _replicated(self, step: int) -> Tensor:
        return self.anchor

    @torch.no_grad()
    def flush(self, step: int) -> None:
        """Apply the averagings under way, then the changes since each fragment's last. All ranks end at the anchor."""
        changed = [stream for stream in self._streams if stream.applied_step < step]
        for stream in sorted(changed, key=lambda stream: not stream.under_way):
            if not stream.under_way:
                stream.start(self._flat.parameters, self._topology.world)
            self._apply(stream, step)
        self._flat.parameters.copy_(self.anchor)
        if step > self._synced_step:
            self._end_period(step)

    def _apply(self, stream: Stream, step: int) -> None:
        stream.finish(step)
        for anchor, momentum, change in zip(stream.anchors, stream.momenta, stream.pseudo_gradients, strict=True):
            outer_sgd_(anchor, momentum, change, self.outer_lr, self.outer_momentum, self.nesterov)
        self._syncs += 1

    def merge_parameters_(self) -> None:
        """Merge buffers only: fragments are averaged within a period."""
        merge_buffers_(self._flat, self.buffers, self._topology.world)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return the state. It waits for fragments under way and holds their means, which a resume applies on time."""
        return super().state_dict() | {
            "anchor": self.anchor.clone(),
            "momentum": self._momentum.clone(),
            "streams": [[stream.applied_step, stream.arrived()] for stream in self._streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.anchor.copy_(state["anchor"])
        self._momentum.copy_(state["momentum"])
        for stream, (applied_step, arrived) in zip(self._streams, state["streams"], strict=True):
            stream.restore(applied_step, arrived)
