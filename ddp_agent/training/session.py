"""One rank's training, ready to start or to take the state of a checkpoint."""

import math
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.options import Options
from ddp_agent.data.loader import Batch, Share, micro_batches
from ddp_agent.data.sample_order import Order
from ddp_agent.data.slicing.base import SampleAttributes, Slicing
from ddp_agent.data.slicing.shared import Shared
from ddp_agent.data.task import Data, Task
from ddp_agent.distributed import stragglers
from ddp_agent.distributed.consistency import require_replicated
from ddp_agent.distributed.failure_detector import FailureDetector
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.regions import region
from ddp_agent.distributed.replica_group import ReplicaGroup
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Reducer
from ddp_agent.rng import RandomStreams
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training import preflight
from ddp_agent.training.clock import Clock, Meter
from ddp_agent.training.ema import EMA
from ddp_agent.training.link_bytes import Link
from ddp_agent.training.loss_scale import LossScale
from ddp_agent.training.nan_guard import nan_guard
from ddp_agent.training.rank_diagnostics import Diagnostics
from ddp_agent.training.schedules import Schedule
from ddp_agent.training.state import BestScore, Position, State, Stateful

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """The parts that a rank's training is made of. `module` is already on `device`."""

    options: Options
    task: Task
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    sync: SyncStrategy
    reducer: Reducer
    topology: Topology
    device: torch.device
    slicing: Slicing = field(default_factory=Shared)
    replica_group: ReplicaGroup = field(default_factory=lambda: ReplicaGroup(world_comm()))
    failure_detector: FailureDetector = field(default_factory=FailureDetector.alone)
    meters: tuple[Meter, ...] = ()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.options.total_steps(self.task.data.train_count)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A rank's share of the training samples, step by step."""

    data: Data
    order: Order
    share: Share
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the data."""
        return math.ceil(self.order.samples / (self.share.samples * self.share.world_size))

    def steps(self, first: int, last: int) -> Generator[Batch]:
        """Yield inputs and targets of all micro-batches from step `first` to step `last`, inclusive.

        Closing the generator ends the processes that read ahead.
        """
        return micro_batches(self.data, self.order, self.share, steps=range(first, last + 1), device=self.device)


def share_of(options: Options, rank: int, ranks: int) -> Share:
    """Return a rank's part of every step's `global_batch_size` samples."""
    accumulation = options.accumulation_steps
    return Share(rank, ranks, options.global_batch_size // (accumulation * ranks), accumulation)


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Forward passes in the run's precision.

    `model` is what the sync mode made of `module`: with DistributedDataParallel its backward averages gradients.
    """

    task: Task
    module: nn.Module
    model: nn.Module
    device: torch.device
    precision: str
    accumulation: int

    def loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return a micro-batch's part of the mean loss over the rank's share of the step."""
        with region("forward"):
            return self._loss(self.model, inputs, target)

    def own_loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the same, without any averaging in backward."""
        return self._loss(self.module, inputs, target)

    def _loss(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        data, objective = self.task.data, self.task.objective
        inputs = data.transformed(inputs)
        if data.augment is not None:
            inputs = data.augment(inputs)
        criterion = objective.loss if objective.train_loss is None else objective.train_loss
        with self.autocast():
            loss = criterion(model(inputs), target)
        # Dividing by 1 would cost 20 us, most of it in backward.
        return loss / self.accumulation if self.accumulation > 1 else loss

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes have the run's precision."""
        dtype = DTYPES.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)


class Session:
    """A rank's model, data, clock and state. `setup` of the sync mode is called here.

    Raises ValueError when the mode cannot work with the model, or the ranks' models differ. Raises ConfigError when
    model or task break their contract (see `preflight`). A collective.
    """

    def __init__(self, setup: TrainSetup) -> None:
        self.setup = setup
        options, task, sync, device = setup.options, setup.task, setup.sync, setup.device
        link = Link.from_environment()
        self.clock = Clock(*([link] if link else []), setup.failure_detector.progress, *setup.meters)
        slot, slots = setup.replica_group.slot, setup.replica_group.slots
        share = share_of(options, slot, slots)
        order = setup.slicing.order(SampleAttributes.of(task.data), options.seed, slot, slots)
        self.batches = Batches(data=task.data, order=order, share=share, device=device)
        self._total_steps = setup.total_steps
        self._base_lrs = [group["lr"] for group in setup.optimizer.param_groups]
        self.forward = self._set_up()
        follower = setup.reducer if sync.traits.sends == "gradients" else None
        self.scaler = LossScale(device.type, follower, enabled=options.precision == "fp16")
        self.ema = EMA(setup.module, options.ema_decay) if options.ema_decay is not None else None
        self.best = BestScore()
        self.diagnostics = Diagnostics(
            internals(sync).shared,
            self.clock,
            samples=share.samples,
            every=options.consensus_every,
            per_layer=options.consensus_per_layer,
            scale=self.scaler.get_scale,
        )
        position = Position(loss_sum=torch.zeros((), device=device))
        self.nan_guard = nan_guard(setup.module, sync, position.loss_sum, scaled=self.scaler.is_enabled())
        parts: dict[str, Stateful] = {
            "optimizer": setup.optimizer,
            "scaler": self.scaler,
            "sync": sync,
            "reducer": setup.reducer,
            "clock": self.clock,
            "standing": self.best,  # the key of all checkpoints so far
            "diagnostics": self.diagnostics,
            **({"ema": self.ema} if self.ema else {}),
            "random": RandomStreams(device),
        }
        self.state = State(
            position=position, sync=sync, reducer=setup.reducer, clock=self.clock, link=link, parts=parts
        )

    def _set_up(self) -> Forward:
        """Check the model and the task, start all ranks from equal weights, and return the forward passes."""
        setup, module = self.setup, self.setup.module
        forward = Forward(
            task=setup.task,
            module=module,
            model=module,
            device=setup.device,
            precision=setup.options.precision,
            accumulation=self.batches.share.accumulation,
        )
        self._try(forward)
        if setup.options.compile:
            module.compile()
        return replace(forward, model=setup.sync.setup(module, setup.optimizer, setup.topology, setup.reducer))

    def _try(self, forward: Forward) -> None:
        setup, precision = self.setup, forward.precision
        sizes = preflight.test_sizes(setup.task, self.batches.share.micro_batch)
        check = preflight.Preflight(setup.task, setup.module, setup.device, forward.autocast, precision != "fp16")
        with closing(self.batches.steps(1, 1)) as batches:
            check.check(batches, sizes)

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return self.state.step

    def set_lr(self, step: int) -> None:
        """Set the learning rates of `step`."""
        factor = self.setup.schedule.factor(step, self._total_steps)
        for group, lr in zip(self.setup.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor

    def costs(self) -> dict[str, float]:
        """Return time and traffic of this rank so far."""
        stats = self.setup.topology.world.ledger.settle()
        return {
            **self.clock.read(stats.blocked_s),
            "straggler_wait_s": stats.straggler_s,
            "syncs": internals(self.setup.sync).syncs,
            "payload_bytes": stats.payload_bytes,
            "wire_bytes": stats.wire_bytes,
        }

    def settle(self) -> None:
        """Wait for the GPU, whose work belongs to the phase that asked for it, and finish the NaN guard's checks."""
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize(self.setup.device)
        self.nan_guard.settle()

    def compare_ranks(self) -> None:
        """Raise DivergedError if ranks that must be identical differ: nothing of them is shown or kept.

        The waiting time so far is attributed, too. A collective, so `straggler_wait_s` is as of the last call.
        """
        require_replicated(internals(self.setup.sync).replicated(self.step), self.setup.topology.world, self.step)
        for comm in self.setup.topology.comms:
            stragglers.settle_(comm)
