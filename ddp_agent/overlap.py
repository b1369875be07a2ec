"""DistributedDataParallel, with the averaging of its gradient buckets in our hands."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket  # dist.GradBucket, typed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ddp_agent.comm import Comm
from ddp_agent.reducers.base import Finish, Reducer


class OverlappedGradients:
    """DDP that averages its gradient buckets through a reducer, so that they are counted and may be compressed.

    A bucket's collective starts inside backward as soon as its gradients are complete. DDP is told at once that the
    bucket is done (its gradients are views of the bucket, so nothing is copied), and the waiting is left to `finish`:
    the time it takes there is exactly the communication that backward could not hide.
    """

    def __init__(self, model: nn.Module, reducer: Reducer, comm: Comm) -> None:
        self.module: nn.Module = model
        self._ddp: DistributedDataParallel | None = None
        self._started: list[Finish] = []
        if comm.group is None:
            return
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers to a name that 2.11 does not have.
            warnings.simplefilter("ignore", FutureWarning)
            # No buffer broadcast: traffic that Comm cannot see; buffers have a policy. Weights are equal already.
            self._ddp = DistributedDataParallel(
                model,
                process_group=comm.group,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                init_sync=False,
            )
        self.module = self._ddp
        device = next(model.parameters()).device
        devices: list[int | str | torch.device] = [device] if device.type == "cuda" else []

        # DDP compares this annotation with exactly this type.
        def start(_: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            self._started.append(reducer.start(bucket.buffer(), comm))
            done: Future[Tensor] = Future(devices=devices)
            done.set_result(bucket.buffer())
            return done

        self._ddp.register_comm_hook(None, start)

    def context(self, synchronise: bool) -> AbstractContextManager[None]:
        """Around forward and backward: only with `synchronise` are gradients averaged."""
        return nullcontext() if synchronise or self._ddp is None else self._ddp.no_sync()

    def finish(self) -> None:
        """Leaves the mean gradients in `.grad`."""
        for finish in self._started:
            finish()
        self._started.clear()
