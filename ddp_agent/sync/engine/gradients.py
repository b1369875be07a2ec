"""Averaging of gradients over ranks, in one piece after backward or in DDP's buckets during backward."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from ddp_agent.distributed.c10d import FIRST_BUCKET_BYTES
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, RunSizes, covered, times
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.sync.engine.ddp_hook import OverlappedGradients, bucket_shapes
from ddp_agent.sync.engine.flat import Flat


class MeanGradients(Protocol):
    """A way to average gradients. Forward is called on `module`."""

    module: nn.Module

    def context(self, synchronise: bool) -> AbstractContextManager[None]:
        """Return the context of forward and backward. `finish` follows only with `synchronise`."""

    def finish(self) -> None:
        """Leave the mean gradients in `.grad`."""


class FlatGradients:
    """Gradients as one tensor, which never changes its order. Backward adds to its views, so nothing is packed.

    A parameter that is frozen takes part with zeros, and may be trained later.
    """

    def __init__(self, model: nn.Module, flat: Flat, reducer: Reducer, comm: Comm) -> None:
        self.module = model
        self.tensor = torch.zeros_like(flat.parameters)
        self._flat, self._parameters = flat, list(model.parameters())
        self._take_views()
        self._reducer = reducer.for_tensor(flat.shapes)
        self._comm = comm

    def context(self, synchronise: bool) -> AbstractContextManager[None]:
        self._collect()
        return nullcontext()

    @torch.no_grad()
    def finish(self) -> None:
        self._collect()  # a rank that had no batch takes part with zeros
        self._reducer.mean_(self.tensor, self._comm)

    def _take_views(self) -> None:
        self._views = self._flat.views_of(self.tensor)
        self._pointers = [view.data_ptr() for view in self._views]

    @torch.no_grad()
    def _collect(self) -> None:
        """Make every `.grad` a view again, after the loop has cleared gradients or a forward pass has moved some.

        `Module.to` in a forward pass gives gradients other memory, too.
        """
        if [view.data_ptr() for view in self._views] != self._pointers:
            self._take_views()
        apart = [pair for pair in zip(self._parameters, self._views, strict=True) if pair[0].grad is not pair[1]]
        cleared = len(apart) == len(self._views) and all(parameter.grad is None for parameter in self._parameters)
        if cleared:
            self.tensor.zero_()  # at once, the usual case
        for parameter, view in apart:
            if parameter.grad is not None:
                view.copy_(parameter.grad)
            elif not cleared:
                view.zero_()
            if parameter.requires_grad:
                parameter.grad = view


def overlapping(model: nn.Module, flat: Flat, reducer: Reducer, comm: Comm) -> MeanGradients:
    """Return an averaging during backward, by DistributedDataParallel.

    A model that would be one bucket is averaged without it: the same sums, and a third less work for the host per step.
    """
    if _in_buckets(reducer, flat.parameters.nbytes):
        return OverlappedGradients(model, reducer, comm)
    return FlatGradients(model, flat, reducer, comm)


def overlapping_traffic(run: RunSizes, reducer: Reducer) -> list[Collective]:
    """Return the collectives of `overlapping` in `run.steps` steps."""
    if not _in_buckets(reducer, run.numbers * run.itemsize):
        return times(reducer.traffic(run.shapes, run.itemsize, run.ranks), run.steps)
    exact = 1 if reducer.traits.remembers and run.steps else 0  # the first step, see OverlappedGradients
    collectives = []
    for shapes in bucket_shapes(run.trained_shapes, run.itemsize):
        for averaging, steps in ((Dense(), exact), (reducer, run.steps - exact)):
            collectives += times(covered(averaging.traffic(shapes, run.itemsize, run.ranks), "backward"), steps)
    return collectives


def _in_buckets(reducer: Reducer, parameter_bytes: int) -> bool:
    """Return whether gradients are left to DDP: a reducer with a memory waits for DDP's buckets in any case.

    A model that fits into the bucket that DDP fills first has no backward left to hide its collective behind.
    """
    return reducer.traits.remembers or parameter_bytes > FIRST_BUCKET_BYTES
