"""Diagnostics of the ranks: how far they drift apart, whether they pull one way, how noisy their gradients are.

Every rank has its own v_k of some vector. Two numbers describe all, Q = mean_k |v_k|^2 and D = mean_k |v_k - mean v|^2.
The mean cosine between two ranks' vectors (weighted by their lengths) is 1 - K/(K-1) D/Q: 1 where all pull one way,
0 where they are unrelated, negative where they undo each other's work. For gradients of b samples each,
K/(K-1) D b estimates tr(Sigma), the variance of one sample's gradient, and Q - K/(K-1) D the squared true gradient.
Their ratio is the gradient noise scale in samples. A batch larger than that hardly saves steps (McCandlish et al. 2018,
arXiv:1812.06162, appendix A.1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddp_agent.distributed.comm import Comm, mean_
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.clock import Clock

# One estimate of the noise scale is a ratio of two noisy numbers, so each is averaged first, over about 10 of them.
DECAY = 0.9


@dataclass(frozen=True)
class Spread:
    """Q and D of a vector, for each of its parts. fp64 [parts]."""

    square: Tensor
    deviation: Tensor
    ranks: int

    def distance(self, part: int) -> float:
        """Return √D, the consensus distance."""
        return math.sqrt(self.deviation[part].item())

    def mean_norm(self, part: int) -> float:
        """Return |mean v|, whose square is Q - D."""
        return math.sqrt(max(0.0, (self.square[part] - self.deviation[part]).item()))

    def cosine(self, part: int) -> float:
        """Return the mean cosine between two ranks. NaN for a vector that is zero on every rank."""
        noise = self.deviation[part] * (self.ranks / (self.ranks - 1))
        return float(1 - noise / self.square[part])


def spreads(vectors: Sequence[Tensor], comm: Comm, cut: Callable[[Tensor], Sequence[Tensor]]) -> list[Spread]:
    """Return Q and D of each of `vectors`, for the parts that `cut` makes of it. All vectors have one length.

    Two uncounted collectives: one of all vectors, and a small one.
    """
    with comm.uncounted():
        means = torch.cat(list(vectors))
        mean_(means, comm)
        off = [mean.sub_(vector) for mean, vector in zip(means.chunk(len(vectors)), vectors, strict=True)]
        sums = torch.stack([squares(cut(vector)) for pair in zip(vectors, off, strict=True) for vector in pair])
        sums = sums.to(comm.device)
        mean_(sums, comm)
    rows = sums.cpu().unbind()
    return [Spread(square, deviation, comm.size) for square, deviation in zip(rows[::2], rows[1::2], strict=True)]


def squares(parts: Sequence[Tensor]) -> Tensor:
    """Return the squared length of each part, fp64 [parts]."""
    return torch.stack([part.square().sum(dtype=torch.float64) for part in parts])


class Diagnostics:
    """Measurements every `every` steps: of gradients in that step, of parameters at the end of its period.

    The loop calls `begin` before a step's first forward, `gradients` after `sync.before_step`, `parameters` before
    `sync.after_step`, on every rank. The last two return measurements, mostly none. `samples` is a rank's share of a
    step. Gradients are multiplied by `scale()`. Training is not changed, and the clock counts the time as evaluation.
    """

    def __init__(
        self,
        sync: SyncStrategy,
        clock: Clock,
        *,
        samples: int,
        every: int | None,
        per_layer: bool,
        scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._sync, self._has_period = internals(sync), sync.traits.has_period
        self._clock, self._samples, self._per_layer, self._scale = clock, samples, per_layer, scale
        self._every = every if self._sync.world.size > 1 else None
        self.latest: dict[str, float] = {}
        self._trained = {name: p for name, p in self._sync.flat.named.items() if p.requires_grad}
        self._suffixes = ["", *(f"/{name}" for name in self._sync.flat.named if per_layer)]
        self._hooks: list[RemovableHandle] = []
        self._squares: dict[nn.Parameter, Tensor] = {}
        self._wanted = False  # parameters, at the next synchronisation
        self._origin: Tensor | None = None  # parameters right after the last one
        self._noise = [0.0, 0.0]  # running tr(Sigma) / b and |G|^2

    def begin(self, step: int) -> None:
        """Prepare the measurements that are due in `step`."""
        if self._every is None:
            return
        if step % self._every == 0:
            self._wanted = True
            self._hooks = [p.register_post_accumulate_grad_hook(self._note) for p in self._trained.values()]
        if self._wanted and self._has_period and self._sync.period_start == step - 1:
            self._origin = self._sync.flat.parameters.clone()

    def _note(self, parameter: Tensor) -> None:
        """Note this rank's own gradient, of all micro-batches so far: it runs in backward, before DDP averages it."""
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        self._squares[parameter] = parameter.grad.square().sum(dtype=torch.float64)

    def gradients(self, step: int) -> Mapping[str, float]:
        """Return what is measured of this step's gradients, if it is due. A collective, then."""
        if not self._hooks:
            return {}
        with self._clock.phase("eval"), torch.no_grad():
            return self._keep(self._measure_gradients())

    def _measure_gradients(self) -> dict[str, float]:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        world = self._sync.world
        zero = torch.zeros((), dtype=torch.float64, device=self._sync.flat.parameters.device)
        own = torch.stack([self._squares.get(p, zero) for p in self._trained.values()]).sum()
        self._squares.clear()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained.values()]
        parts = [gradient.flatten() for gradient in gradients]
        mean = torch.cat([*parts, own.to(parts[0].dtype).unsqueeze(0)])  # one collective for both
        with world.uncounted():
            mean_(mean, world)  # where the mode has averaged gradients already, this changes nothing
        square, whole = mean[-1:].double().cpu(), squares([mean[:-1]]).cpu()
        spread = Spread(square, (square - whole).clamp(min=0), world.size)
        if not math.isfinite(square.item()) or square.item() <= 0:
            return {}  # fp16 gradients may overflow: the step is skipped then
        noise = spread.deviation.item() * spread.ranks / (spread.ranks - 1)
        units = self._scale() ** 2  # a running average must not mix those of several scales
        for index, value in enumerate((noise, spread.square.item() - noise)):
            self._noise[index] = DECAY * self._noise[index] + (1 - DECAY) * value / units
        variance, signal = self._noise
        batch = {"critical_batch_samples": self._samples * variance / signal} if signal > 0 else {}
        return {"gradient_cosine": spread.cosine(0), **batch}

    def parameters(self, step: int) -> Mapping[str, float]:
        """Return what is measured of the parameters before a synchronisation, if it is due. A collective, then."""
        if not self._wanted or not self._sync.due(step) or (self._has_period and self._origin is None):
            return {}
        with self._clock.phase("eval"), torch.no_grad():
            return self._keep(self._measure_parameters())

    def _measure_parameters(self) -> dict[str, float]:
        self._wanted = False
        world, flat = self._sync.world, self._sync.flat
        vectors = [flat.parameters] if self._origin is None else [flat.parameters, flat.parameters - self._origin]
        self._origin = None
        weights, *changes = spreads(vectors, world, self._cut)
        values: dict[str, float] = {}
        for part, suffix in enumerate(self._suffixes):
            distance, norm = weights.distance(part), weights.mean_norm(part)
            values[f"consensus_distance{suffix}"] = distance
            values[f"consensus_relative{suffix}"] = distance / norm if norm else math.nan
        for change in changes:
            for part, suffix in enumerate(self._suffixes):
                values[f"change_cosine{suffix}"] = change.cosine(part)
                values[f"pseudo_gradient_norm{suffix}"] = change.mean_norm(part)
        return values

    def _cut(self, vector: Tensor) -> list[Tensor]:
        return [vector, *self._sync.flat.views_of(vector)] if self._per_layer else [vector]

    def _keep(self, values: dict[str, float]) -> dict[str, float]:
        self.latest |= {key: value for key, value in values.items() if "/" not in key}
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the running averages and what is pending."""
        return {
            "latest": dict(self.latest),
            "noise": list(self._noise),
            "wanted": self._wanted,
            "origin": None if self._origin is None else self._origin.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.latest, self._noise, self._wanted = dict(state["latest"]), list(state["noise"]), state["wanted"]
        origin = state["origin"]
        self._origin = None if origin is None else origin.to(self._sync.flat.parameters.device)
