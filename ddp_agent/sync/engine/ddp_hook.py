"""DistributedDataParallel with a reducer that averages its gradient buckets."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ddp_agent.distributed.c10d import FIRST_BUCKET_BYTES, GradBucket
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group_comm import process_group
from ddp_agent.distributed.traffic import Shapes, numbers
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.reducers.base import Finish

BUCKET_BYTES = 25 * 2**20  # DDP's default for all other buckets


class OverlappedGradients:
    """DDP that averages its gradient buckets through a reducer, so that they are counted and may be compressed.

    A bucket's collective starts inside backward as soon as its gradients are complete. The hook reports the bucket as
    done at once (its gradients are views of the bucket, so nothing is copied), and `finish` waits. The time that
    `finish` takes is exactly the communication that backward could not hide.
    """

    def __init__(self, model: nn.Module, reducer: Reducer, comm: Comm) -> None:
        self.module: nn.Module = model
        self._ddp: DistributedDataParallel | None = None
        self._reducer, self._comm = reducer, comm
        self._parts: dict[tuple[int, ...], Reducer] = {}  # by the parameters of a bucket, if the reducer remembers
        self._settled = False
        self._started: list[Finish] = []
        self._hooked = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._expected = sum(parameter.numel() for parameter in self._hooked)
        self._gathered = 0  # numbers in the buckets that were complete
        group = process_group(comm)
        if group is None:
            return
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers to a name that 2.11 does not have.
            warnings.simplefilter("ignore", FutureWarning)
            # No broadcast of buffers: Comm would not count it, and buffers have a policy. Weights are equal already.
            self._ddp = DistributedDataParallel(
                model, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True, init_sync=False
            )
        self.module = self._ddp
        device = next(model.parameters()).device
        devices: list[int | str | torch.device] = [device] if device.type == "cuda" else []

        # DDP compares this annotation with exactly this type.
        def start(_: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            self._started.append(self._of(bucket).start(bucket.buffer(), comm))
            self._gathered += bucket.buffer().numel()
            done: Future[Tensor] = Future(devices=devices)
            done.set_result(bucket.buffer())
            return done

        self._ddp.register_comm_hook(None, start)

    def context(self, synchronise: bool) -> AbstractContextManager[None]:
        """Return the context of forward and backward. Gradients are averaged only with `synchronise`."""
        return nullcontext() if synchronise or self._ddp is None else self._ddp.no_sync()

    def finish(self) -> None:
        """Leave the mean gradients in `.grad`. Raise RuntimeError when backward has left some out."""
        for finish in self._started:
            finish()
            self._settled = True
        self._started.clear()
        gathered, self._gathered = self._gathered, 0
        if self._ddp and gathered < self._expected:
            # Before DDP does in the next forward, with advice of its own.
            hooked = set(self._hooked)
            absent = [name for name, p in self._ddp.module.named_parameters() if p in hooked and p.grad is None]
            raise RuntimeError(
                f"backward left out {', '.join(absent) or 'some parameters'}, so that DDP did not average the "
                "gradients of their buckets; use sync=compressed, which counts what is not there as zeros"
            )
        if self._ddp and self._frozen and (late := [p for p in self._frozen if p.requires_grad]):
            self._average_late(late)

    @torch.no_grad()
    def _average_late(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of parameters that were frozen when DDP took its own, all in one collective."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        packed = torch.cat([gradient.reshape(-1) for gradient in gradients])
        (Dense() if self._reducer.traits.remembers else self._reducer).mean_(packed, self._comm)
        for parameter, gradient, part in zip(
            parameters, gradients, packed.split([*map(Tensor.numel, gradients)]), strict=True
        ):
            parameter.grad = gradient.copy_(part.view(gradient.shape))

    def _of(self, bucket: GradBucket) -> Reducer:
        """Return the reducer for a bucket: an exact one in the first backward, after which DDP regroups its buckets.

        So a resume must run two backward passes before it loads a state (`Trainer.rehearse`).
        """
        if not self._reducer.traits.remembers:
            return self._reducer
        if not self._settled:
            return Dense()
        parameters = bucket.parameters()
        key = tuple(map(id, parameters))
        if key not in self._parts:
            self._parts[key] = self._reducer.for_tensor([parameter.shape for parameter in parameters])
        return self._parts[key]


def bucket_shapes(shapes: Shapes, itemsize: int) -> list[Shapes]:
    """Return the shapes in each of DDP's buckets, which it fills from the last parameter to the first."""
    buckets: list[list[Sequence[int]]] = [[]]
    for shape in reversed(shapes):
        if numbers(buckets[-1]) * itemsize >= (FIRST_BUCKET_BYTES if len(buckets) == 1 else BUCKET_BYTES):
            buckets.append([])
        buckets[-1].append(shape)
    return [*buckets]
