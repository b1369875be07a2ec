"""The interface of every sync mode."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.fields import check_fields
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.comm import mean_
from ddp_agent.distributed.consistency import ReplicatedTensor
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.traffic import Collective, RunSizes
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.engine.flat import Flat, Part, require_same_model
from ddp_agent.sync.engine.momentum_start import start_momentum_from_zeros
from ddp_agent.sync.engine.state_policies import BufferPolicy, merge_buffers_, run_sizes
from ddp_agent.sync.engine.storage_guard import StorageGuard, checked_hooks

_NEED_SETUP = (
    *("backward_context", "before_step", "after_step", "flush"),
    *("eval_weights", "consensus_distance", "state_dict", "load_state_dict"),
)


@dataclass(frozen=True, kw_only=True)
class SyncTraits:
    """Facts about a sync mode that other parts of the package rely on.

    `sends`: what travels between ranks.
    `averages_in_backward`: ranks exchange inside backward, so every rank needs a batch in every step.
    `has_period`: ranks synchronise after every H steps, and a cadence may change H.
    `survives_lost_rank`: the other ranks can continue without one that is lost.
    `merges_optimizer_state`: a synchronisation changes the state of the (inner) optimizer.
    `uses_nodes`: the ranks of a node synchronise among themselves, too.
    `identical`: when the parameters of all ranks (if these are one node) are equal bit for bit.
    `has_anchor`: the attribute `anchor` is equal on all ranks, bit for bit, after every step.
    `consensus`: the model that is evaluated and exported.
    `neighbours_only`: a synchronisation reaches some ranks, not all; integer buffers stay a rank's own.
    `acts_alone`: with a single rank training still differs from a plain loop.
    """

    sends: Literal["nothing", "gradients", "parameters", "changes"] = "nothing"
    averages_in_backward: bool = False
    has_period: bool = False
    survives_lost_rank: bool = False
    merges_optimizer_state: bool = False
    uses_nodes: bool = False
    identical: Literal["never", "after_flush", "after_sync", "always"] = "never"
    has_anchor: bool = False
    consensus: Literal["mean", "anchor"] = "mean"
    neighbours_only: bool = False
    acts_alone: bool = False


@dataclass(kw_only=True, eq=False)
class SyncStrategy:
    """When ranks synchronise and what travels.

    The fields are the hyperparameters; the run's objects arrive in `setup`. The loop owns `step` (1-based) and calls,
    in every optimizer step: `backward_context` around each micro-batch's forward and backward, `before_step` when the
    gradients are complete, `after_step` after `optimizer.step()`; and `flush` once at the end. Every rank makes the
    same calls. A call of a hook before `setup` raises RuntimeError.
    """

    _traits: ClassVar[SyncTraits] = SyncTraits()

    buffers: BufferPolicy = "average"

    _optimizer: Optimizer = field(init=False, repr=False)
    _topology: Topology = field(init=False, repr=False)
    _reducer: Reducer = field(init=False, repr=False)
    _flat: Flat = field(init=False, repr=False)
    _guard: StorageGuard = field(init=False, repr=False)  # a part of a model has none
    _syncs: int = field(default=0, init=False, repr=False)  # synchronisations so far: a statistic, decides nothing

    def __post_init__(self) -> None:
        check_fields(self)
        # In the instance, where they hide the methods until `setup` deletes them: a check would cost every step.
        vars(self).update({hook: partial(_refuse, type(self).__name__, hook) for hook in _NEED_SETUP})

    @property
    def traits(self) -> SyncTraits:
        """The facts that other parts rely on: `_traits` of the class, or less where hyperparameters decide."""
        return self._traits

    def problems(self, run: RunFacts) -> list[Problem]:
        """Return everything that does not fit between this mode and a run, and what a user should know of it."""
        traits, problems = self.traits, list[Problem]()
        reducer = run.pieces.get("reducer")
        if reducer is not None and (text := self._reducer_problem(reducer)):
            problems.append(Problem("reducer", text))
        if run.on_rank_loss == "continue" and not traits.survives_lost_rank:
            problems.append(Problem("on_rank_loss", self._rank_loss_problem()))
        gradients = traits.sends == "gradients" or traits.averages_in_backward
        if run.precision == "fp16" and run.tasks_are_partitioned and gradients:
            text = (
                "found fp16 with slicing.tasks=partition, where too large a gradient in a head would stop its owners' "
                "step only, and ranks that average gradients must all step; use precision=bf16"
            )
            problems.append(Problem("precision", text))
        return problems

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        """Return every counted collective of a run of this mode, by formula: nothing is sent, nothing is set up."""
        return []

    def _reducer_problem(self, reducer: Reducer) -> str | None:
        """Return why this mode cannot work with `reducer`, and a remedy; None when it can."""
        mode, traits, of_reducer = type(self).__name__, self.traits, reducer.traits
        if traits.sends == "parameters" and (of_reducer.needs_zeros or not of_reducer.exact):
            damaged = f"a lossy reducer ({reducer}) would damage"
            useless = f"are never zero, so {reducer} would save nothing"
            return (
                f"{mode} sends raw parameters, which {useless if of_reducer.exact else damaged}; use reducer=dense, or "
                "sync=parameter_update sync.combine=mean, the same average sent as changes"
            )
        if traits.averages_in_backward and of_reducer.remembers and not of_reducer.works_in_buckets:
            return (
                f"{mode} averages DDP's buckets inside backward, and DDP regroups them after the first: what {reducer} "
                f"keeps of one would come back to other parameters; use sync=compressed with it, or reducer=bf16"
            )
        return None

    def _rank_loss_problem(self) -> str:
        """Return why the other ranks cannot continue without a lost one, and which mode can."""
        return (
            f"{type(self).__name__} needs every rank in every step, so nobody could go on without the one that is "
            "lost; use a mode with a period, such as sync=local_sgd or sync=diloco"
        )

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        """Start all ranks from rank 0's weights. Return the module that forward is called on.

        The model must be on its device. Its parameters become views of one tensor (see `Flat`). From then on every hook
        that exchanges, measures or saves them first makes sure that they still are (see `StorageGuard`). Raises
        ValueError when the reducer or the world does not fit this mode, or when the ranks' models differ.
        """
        facts = RunFacts(
            world_size=topology.world.size, ranks_per_node=topology.ranks_per_node, pieces={"reducer": reducer}
        )
        if refused := [problem for problem in self.problems(facts) if problem.fatal]:
            raise ValueError("; ".join(map(str, refused)))
        self._optimizer, self._topology, self._reducer = optimizer, topology, reducer
        self._flat = Flat.of(model)
        with topology.world.uncounted():
            require_same_model(model, self._flat, topology.world, trained=self.traits.averages_in_backward)
            for tensor in (*self._flat.stretches, *self._flat.others):
                topology.world.broadcast_(tensor)
        for hook in _NEED_SETUP:
            vars(self).pop(hook, None)
        forward = self._set_up(model)
        if not isinstance(model, Part):  # of a model with a guard
            gradients = self.traits.sends == "gradients" or self.traits.averages_in_backward
            hooked = forward is not model
            self._guard = StorageGuard(model, self._flat, optimizer, averages_gradients=gradients, hooked=hooked)
            vars(self).update(checked_hooks(self, gradients=gradients))
            start_momentum_from_zeros(optimizer)
        return forward

    def _set_up(self, model: nn.Module) -> nn.Module:
        """Create the mode's own state, and return the module that forward is called on: for subclasses to extend."""
        return model

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        """Return the context for forward and backward of one micro-batch."""
        return nullcontext()

    def before_step(self, step: int) -> None:
        """Run when the gradients of all micro-batches are complete, before clipping and the optimizer."""

    def after_step(self, step: int) -> None:
        """Run after the optimizer has stepped."""

    def flush(self, step: int) -> None:
        """Synchronise what is not synchronised yet, at the end of training after `step` steps."""

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Hold the consensus of all ranks in the model; restore this rank's own state after, even on an exception."""
        own = self._flat.snapshot()
        try:
            with torch.no_grad(), self._topology.world.uncounted():
                self._to_consensus_()
                merge_buffers_(self._flat, self.buffers, self._topology.world)
            yield
        finally:
            with torch.no_grad():
                self._flat.restore(own)

    @torch.no_grad()
    def consensus_distance(self) -> float:
        """Return sqrt(mean_k ||w_k - mean w||^2), the same on every rank. A collective that is not counted."""
        world = self._topology.world
        with world.uncounted():
            mean = self._flat.parameters.clone()
            mean_(mean, world)
            squared = (self._flat.parameters - mean).square().sum(dtype=torch.float64).to(world.device)
            mean_(squared, world)
        return math.sqrt(squared.item())

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything beyond model and optimizer that a resume at any step needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, found {sorted(state)}")

    # For subclasses to override, and for the harness, which calls them through `engine.internals`.

    def _due(self, step: int) -> bool:
        """Return whether the ranks' parameters are synchronised after `step`; True where all steps are equal."""
        return True

    def _exchanges(self, step: int) -> bool:
        """Return whether `after_step(step)` exchanges anything."""
        return self._due(step)

    def _period_start(self) -> int | None:
        """Return the step after which the current period began; None in a mode without periods."""
        return None

    def _to_consensus_(self) -> None:
        """Replace this rank's parameters by those of the consensus model: the mean over ranks."""
        mean_(self._flat.parameters, self._topology.world)

    def _replicated(self, step: int) -> Tensor | None:
        """Return the tensor of the state that is equal on all ranks after `step`, bit for bit; None if none is.

        A rank where it differs has a broken memory, link or build, and its part in every later average is wrong.
        """
        return None

    def _all_replicated(self, step: int) -> list[ReplicatedTensor]:
        """Return the tensors that several ranks hold equal, bit for bit, after `step`."""
        return [ReplicatedTensor(self._replicated(step), range(self._topology.world.size))]

    def _mean_(self, everything: Tensor) -> None:
        """Average a tensor laid out like `Flat.everything` over the ranks that train each part. Not counted."""
        with self._topology.world.uncounted():
            mean_(everything, self._topology.world)

    def _measurements(self) -> dict[str, float]:
        """Return values of the mode's own state that are worth logging, by metric name."""
        return {}

    def _traffic(self, steps: int) -> list[Collective]:
        """Return the counted collectives of a run of `steps` steps in which this mode is set up."""
        nodes = self.traits.uses_nodes
        sizes = run_sizes(self._flat, self._optimizer, self._topology, steps, uses_nodes=nodes)
        return self.traffic(sizes, self._reducer)

    def _shared(self) -> "SyncStrategy":
        """Return the strategy for the parameters that every rank trains: another one only under task slicing."""
        return self

    def _flats(self) -> list[Flat]:
        """Return the flat tensors of this rank, one per set of ranks that share them."""
        return [self._flat]


def _refuse(mode: str, hook: str, *_: object, **__: object) -> NoReturn:
    raise RuntimeError(f"{mode}.{hook} was called before setup; call {mode}.setup(model, optimizer, topology, reducer)")
