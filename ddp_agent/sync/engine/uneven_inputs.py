"""Uneven inputs: ranks with different numbers of batches, or with batches of different sizes.

In a loop of one's own (torch's `algorithms/join`, for every mode that can):

    reducer = Weighted(Dense())
    model = sync.setup(model, optimizer, topology, reducer)
    for step in range(1, common_steps(sync, len(batches), topology.world) + 1):
        if step <= len(batches):  # a rank without further batches skips forward and backward
            inputs, target = batches[step - 1]
            with sync.backward_context(step, last_micro_batch=True):
                loss_fn(model(inputs), target).backward()
            reducer.samples += len(inputs)
        sync.before_step(step); optimizer.step(); sync.after_step(step); optimizer.zero_grad()
    sync.flush(step)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes
from ddp_agent.reducers.base import Finish, Reducer, ReducerTraits
from ddp_agent.sync.base import SyncStrategy


class Weighted(Reducer):
    """Means in which a rank is weighted by the samples that it has seen since the last mean.

    For gradients (means over a rank's batch) the result is the mean over all samples of the step. A rank without
    samples has weight 0; where no rank has any, all have the same weight. Costs 8 bytes per mean, for which the host
    waits. The loop adds what this rank has seen to `samples`.
    """

    def __init__(self, inner: Reducer, root: "Weighted | None" = None) -> None:
        self.inner = inner
        self.samples = 0.0  # since the start; the parts read their root's
        self._root = root or self
        self._counted = 0.0  # samples that earlier means have used
        self._parts: list[Weighted] = []

    def __repr__(self) -> str:
        return f"Weighted({self.inner})"

    @property
    def traits(self) -> ReducerTraits:
        """The traits of the reducer inside. Each tensor has its own count of samples, so this one remembers."""
        return ReducerTraits(exact=self.inner.traits.exact, remembers=True, rounding=self.inner.traits.rounding)

    def for_tensor(self, shapes: Sequence[torch.Size]) -> "Weighted":
        part = Weighted(self.inner.for_tensor(shapes), self._root)
        self._parts.append(part)
        return part

    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        count = Collective(kind="all_reduce", payload_bytes=8, ranks=ranks)
        return [count, *self.inner.traffic(shapes, itemsize, ranks)]

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        seen = self._root.samples
        mine, self._counted = seen - self._counted, seen
        total = torch.tensor([mine], dtype=torch.float64, device=comm.device)
        comm.all_reduce_(total)
        if (of_all := total.item()) > 0:
            tensor.mul_(mine * comm.size / of_all)
        return self.inner.start(tensor, comm)

    def follow_scale(self, ratio: Tensor) -> None:
        self.inner.follow_scale(ratio)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, `samples` included: a resumed loop adds to it."""
        counted = [part._counted for part in (self, *self._parts)]
        return {"inner": self.inner.state_dict(), "samples": self.samples, "counted": counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.samples = state["samples"]
        for part, counted in zip((self, *self._parts), state["counted"], strict=True):
            part._counted = counted


def common_steps(sync: SyncStrategy, batches: int, comm: Comm) -> int:
    """Return the steps that every rank has to take, so that each can use all its batches: the most that a rank has.

    A collective. Raises ValueError on every rank when the numbers differ and `sync` averages inside backward, where the
    other ranks would wait for a rank without a batch.
    """
    with comm.uncounted():
        counts = [int(other) for other in torch.cat(comm.all_gather(torch.tensor([batches], device=comm.device)))]
    if sync.traits.averages_in_backward and len(set(counts)) > 1:
        raise ValueError(
            f"{type(sync).__name__} averages inside backward, so every rank needs a batch in every step; found "
            f"{counts} batches on ranks 0 to {comm.size - 1}. Cut all to {min(counts)}, or use Compressed or LocalSGD, "
            "whose ranks may run out"
        )
    return max(counts)
