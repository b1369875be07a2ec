"""What every way of synchronising has in common."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.fields import check_fields
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import ReplicatedTensor
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.engine.flat import Flat
from ddp_agent.sync.engine.state_policies import (
    BufferPolicy,
    merge_buffers_,
)


@dataclass(kw_only=True, eq=False)
class SyncStrategy:
    """When ranks synchronise and what travels. Its fields are the hyperparameters; what the run gives comes in `setup`.

    The loop owns `step` (1-based) and calls, in every optimizer step: `backward_context` around each micro-batch's
    forward and backward, `before_step` when the gradients are complete, `after_step` after `optimizer.step()`; and
    `flush` once at the end. Every rank makes the same calls.
    """

    sends: ClassVar[Literal["nothing", "gradients", "parameters", "changes"]] = "nothing"

    buffers: BufferPolicy = "average"

    optimizer: Optimizer = field(init=False, repr=False)
    topology: Topology = field(init=False, repr=False)
    reducer: Reducer = field(init=False, repr=False)
    flat: Flat = field(init=False, repr=False)
    syncs: int = field(default=0, init=False, repr=False)  # how often ranks synchronised: a statistic, decides nothing

    def __post_init__(self) -> None:
        check_fields(self)

    def refusal(self, reducer: Reducer) -> str | None:
        """Why this mode cannot work with `reducer`, and what would; None when it can."""
        if self.sends == "parameters" and not reducer.exact:
            return (
                f"{type(self).__name__} sends raw parameters, which a lossy reducer ({reducer}) would damage; use "
                f"reducer=dense, or sync=parameter_update sync.combine=mean, the same average sent as changes"
            )
        if self.sends == "parameters" and reducer.needs_zeros:
            return (
                f"{type(self).__name__} sends raw parameters, which are never zero, so {reducer} would save nothing; "
                f"use reducer=dense, or sync=parameter_update sync.combine=mean, the same average sent as changes"
            )
        if self.reduces_in_backward and reducer.remembers:
            return (
                f"{type(self).__name__} averages DDP's buckets inside backward, and DDP regroups them after the first: "
                f"what {reducer} keeps of one would come back to other parameters; use sync=compressed with it, or "
                f"reducer=bf16"
            )
        return None

    def misfit(self, world_size: int, ranks_per_node: int) -> str | None:
        """Why this mode cannot work among so many ranks, and what would; None when it can."""
        return None

    def loss_refusal(self) -> str | None:
        """Why a run cannot go on in this mode when a rank is lost, and what can; None when it can."""
        return (
            f"{type(self).__name__} needs every rank in every step, so nobody could go on without the one that is "
            "lost; use a mode with a period, such as sync=local_sgd or sync=diloco"
        )

    def stability(self, world_size: int) -> tuple[str, bool] | None:
        """What a user should know of the step that this mode takes, and whether it is a warning."""
        return None

    @property
    def reduces_in_backward(self) -> bool:
        """Whether ranks meet inside backward, so that every rank needs a batch in every step."""
        return False

    @property
    def everywhere(self) -> "SyncStrategy":
        """What keeps in step all that every rank trains; another one only where ranks train different things."""
        return self

    @property
    def parts(self) -> list[Flat]:
        """What this rank trains, in the parts that each have their own ranks in step."""
        return [self.flat]

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        """Starts all ranks from rank 0's weights; returns what forward is called on.

        The model must be on its device. Its parameters become views of one tensor (see `Flat`). Raises ValueError
        when the reducer or the world does not fit this mode, or when the ranks' models differ.
        """
        if refused := self.refusal(reducer) or self.misfit(topology.world.size, topology.ranks_per_node):
            raise ValueError(refused)
        self.optimizer, self.topology, self.reducer = optimizer, topology, reducer
        self.flat = Flat.of(model)
        with topology.world.uncounted():
            require_same(self.flat.layout_sha256, topology.world, "the model's parameters and buffers")
            if self.reduces_in_backward:  # one rank's buckets would meet others of another's
                require_same(trained_sha256(model), topology.world, "the parameters that are trained (requires_grad)")
            for tensor in (*self.flat.stretches, *self.flat.others):
                topology.world.broadcast_(tensor)
        return model

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch."""
        return nullcontext()

    def due(self, step: int) -> bool:
        """Whether the ranks' parameters are brought together after `step`; True where every step is like the other."""
        return True

    def meets(self, step: int) -> bool:
        """Whether `after_step(step)` exchanges anything."""
        return self.due(step)

    def before_step(self, step: int) -> None:
        """Gradients of all micro-batches are complete; clipping and the optimizer come next."""

    def after_step(self, step: int) -> None:
        """The optimizer has stepped."""

    def flush(self, step: int) -> None:
        """End of training after `step` steps: what is not yet synchronised is."""

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Inside, the model holds the consensus of all ranks; after, even on an exception, this rank's own state."""
        own = self.flat.snapshot()
        try:
            with torch.no_grad(), self.topology.world.uncounted():
                self.to_consensus_()
                merge_buffers_(self.flat, self.buffers, self.topology.world)
            yield
        finally:
            with torch.no_grad():
                self.flat.restore(own)

    def to_consensus_(self) -> None:
        """Turns this rank's parameters into those of the consensus model: the mean over ranks."""
        mean_(self.flat.parameters, self.topology.world)

    def average_(self, everything: Tensor) -> None:
        """Replaces a tensor that lies like `flat.everything` by its mean over the ranks that train each part of it.

        A collective that is not counted."""
        with self.topology.world.uncounted():
            mean_(everything, self.topology.world)

    def common(self, step: int) -> Tensor | None:
        """What all ranks have alike after `step`, bit for bit, as a tensor of their state; None: nothing is sure to be.

        A rank where it differs has a broken memory, link or build, and its part in every later average is wrong.
        """
        return None

    def commons(self, step: int) -> list[ReplicatedTensor]:
        """`common`, and what only some ranks have alike."""
        return [ReplicatedTensor(self.common(step), range(self.topology.world.size))]

    @torch.no_grad()
    def consensus_distance(self) -> float:
        """sqrt(mean_k ||w_k - mean w||^2), the same on every rank. A collective that is not counted."""
        world = self.topology.world
        with world.uncounted():
            mean = self.flat.parameters.clone()
            mean_(mean, world)
            squared = (self.flat.parameters - mean).square().sum(dtype=torch.float64).to(world.device)
            mean_(squared, world)
        return math.sqrt(squared.item())

    def measurements(self) -> dict[str, float]:
        """What is worth logging of the mode's own state, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything beyond model and optimizer that a resume at any step needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, found {sorted(state)}")


def mean_(tensor: Tensor, comm: Comm) -> None:
    """The exact mean over ranks, for measurements."""
    comm.all_reduce_(tensor)
    tensor.div_(comm.size)


def trained_sha256(model: nn.Module) -> str:
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return hashlib.sha256("\n".join(trained).encode()).hexdigest()


def require_same(sha256: str, comm: Comm, what: str) -> None:
    """Raises ValueError on every rank, naming those that differ from rank 0, before anything else is exchanged."""
    digest = torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8, device=comm.device)
    digests = comm.all_gather(digest)
    different = [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]
    if different:
        raise ValueError(f"{what} differ between ranks: not as on rank 0 are ranks {different}; check code and config")
