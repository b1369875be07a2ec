"""The training loop.

A step, with what may hook in where:

    schedule -> lr
    for each micro-batch:   sync.backward_context [ forward, loss, backward ]
    sync.before_step        gradients become what the optimizer shall see
    clip, optimizer.step    (diagnostics look at gradients before, at parameters after)
    sync.after_step         parameters become what the next step starts from
    log, evaluate, checkpoint when due
"""

import itertools
import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.checkpoint.loading import load
from ddp_agent.checkpoint.writer import Writer
from ddp_agent.config.options import Options
from ddp_agent.data.loader import Batch, Share, micro_batches
from ddp_agent.data.sample_order import order_of, stock_of
from ddp_agent.data.slicing.base import Slicing
from ddp_agent.data.slicing.shared import Shared
from ddp_agent.data.task import Task
from ddp_agent.distributed import stragglers
from ddp_agent.distributed.consistency import require_replicated
from ddp_agent.distributed.failure_detector import NullWatch, Watch
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.replica_group import FixedGroup, ReplicaGroup
from ddp_agent.distributed.topology import Topology
from ddp_agent.errors import CheckpointError, NonFiniteError, PreemptedError
from ddp_agent.outputs.confusion import values as class_accuracies
from ddp_agent.outputs.console import ConsoleProgress, NullProgress
from ddp_agent.outputs.tracking import NullTracker, Tracker
from ddp_agent.reducers import Reducer
from ddp_agent.rng import RandomStreams
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.best_so_far import Standing
from ddp_agent.training.clock import Clock
from ddp_agent.training.ema import EMA
from ddp_agent.training.evaluate import Evaluator, Scores, recalibrate_
from ddp_agent.training.link_bytes import Link
from ddp_agent.training.nan_guard import finite_check
from ddp_agent.training.previews import Exhibition, NullExhibition
from ddp_agent.training.rank_diagnostics import Diagnostics
from ddp_agent.training.schedules import Schedule
from ddp_agent.training.state import Position, State, Stateful

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Trainer:
    """Trains `module`, which `sync` keeps in step with the other ranks', for `total_steps` optimizer steps.

    `module` is already on `device`; `setup` of `sync` is called here. `run_dir` is where checkpoints go, None: nowhere.
    """

    options: Options
    total_steps: int
    task: Task
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    sync: SyncStrategy
    reducer: Reducer
    topology: Topology
    device: torch.device
    fingerprint: Mapping[str, Any]
    slicing: Slicing = field(default_factory=Shared)
    replica_group: ReplicaGroup = field(default_factory=lambda: FixedGroup(world_comm()))
    run_dir: Path | None = None
    tracker: Tracker | NullTracker = field(default_factory=NullTracker)
    progress: ConsoleProgress | NullProgress = field(default_factory=NullProgress)
    exhibition: Exhibition | NullExhibition = field(default_factory=NullExhibition)
    watch: Watch | NullWatch = field(default_factory=NullWatch)

    def __post_init__(self) -> None:
        options, world = self.options, self.topology.world
        self.slot, self.slots = self.replica_group.slot, self.replica_group.slots  # whose samples
        self.link = Link.from_environment()
        self.clock = Clock(self.link)
        self.standing = Standing()
        self.order = order_of(self.slicing, stock_of(self.task), options.seed, self.slot, self.slots)
        self.micro_batch = options.global_batch_size // (options.accumulation_steps * self.slots)
        self.steps_per_epoch = math.ceil(self.order.samples / options.global_batch_size)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        if options.compile:
            self.module.compile()
        self.model = self.sync.setup(self.module, self.optimizer, self.topology, self.reducer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.ema = EMA(self.module, options.ema_decay) if options.ema_decay is not None else None
        self.evaluator = Evaluator(self.task, world, self.device)
        self.diagnostics = Diagnostics(
            internals(self.sync).shared,
            self.clock,
            lambda step, values: self.tracker.log(step, values),
            samples=self.micro_batch * options.accumulation_steps,
            every=options.consensus_every,
            per_layer=options.consensus_per_layer,
        )
        self.position = Position(loss_sum=torch.zeros((), device=self.device))
        self.gradients = finite_check(self.module, self.sync, self.position.loss_sum, scaled=self.scaler.is_enabled())
        self.consensus_distance = 0.0  # before the last synchronisation
        self.scored: tuple[int, float | None] = (0, None)  # the last evaluation: its step and metric
        self.best_step = 0  # the last step whose evaluation was the best so far
        self.writer = self.create_writer()
        self.state = self.create_state()

    @property
    def step(self) -> int:
        """How many have been taken."""
        return self.position.step

    def create_state(self) -> State:
        parts: dict[str, Stateful] = {
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "sync": self.sync,
            "reducer": self.reducer,
            "clock": self.clock,
            "standing": self.standing,
            "diagnostics": self.diagnostics,
            **({"ema": self.ema} if self.ema else {}),
            "random": RandomStreams(self.device),
        }
        return State(
            position=self.position,
            sync=self.sync,
            reducer=self.reducer,
            topology=self.topology,
            clock=self.clock,
            link=self.link,
            parts=parts,
        )

    def create_writer(self) -> Writer | None:
        if self.run_dir is None:
            return None
        return Writer(
            self.run_dir / "checkpoints",
            self.topology.world,
            fingerprint=self.fingerprint,
            keep=self.options.keep_checkpoints,
            keep_best=self.options.keep_best_checkpoint,
            beside_training=self.options.async_checkpoints,
        )

    def fit(self) -> Scores:
        """Runs the steps that are left and returns the consensus model's scores."""
        with closing(self.batches(self.step + 1)) as batches:  # ends the processes that read ahead
            self.train(batches)
        return self.finish()

    def train(self, batches: Iterator[Batch]) -> None:
        """The loop. `batches`: of the steps that are left."""
        options, sync, clock, optimizer = self.options, self.sync, self.clock, self.optimizer
        diagnostics, gradients, position = self.diagnostics, self.gradients, self.position
        accumulation = options.accumulation_steps
        parameters = list(self.module.parameters())
        self.model.train()
        self.topology.world.barrier()  # else the ranks' different start-up times would count as communication
        for step in range(self.step + 1, self.total_steps + 1):
            if self.watch.stops_before(step):
                self.stop_early()
            self.set_lr(step)
            diagnostics.begin(step)
            for micro in range(1, accumulation + 1):
                clock.enter("data")
                inputs, target = next(batches)
                clock.enter("compute")
                with sync.backward_context(step, last_micro_batch=micro == accumulation):
                    loss = self.loss(inputs, target)
                    self.scaler.scale(loss).backward()
                position.loss_sum += loss.detach()
            gradients.check_own(step)
            sync.before_step(step)
            gradients.check_averaged(step, self.own_losses(step))
            diagnostics.gradients(step)
            self.clip()
            self.scaler.step(optimizer)
            self.scaler.update()
            diagnostics.parameters(step)
            position.step = step
            self.synchronise(step)
            for parameter in parameters:  # optimizer.zero_grad does the same in 5 times the time
                parameter.grad = None
            self.end_step(step)

    def synchronise(self, step: int) -> None:
        if internals(self.sync).exchanges(step):
            self.replica_group.run_collective(self.state, partial(self.sync.after_step, step), "sync")
        else:
            self.sync.after_step(step)

    def end_step(self, step: int) -> None:
        """What follows a step that is synchronised; a replica that joined there begins here."""
        if self.ema:
            self.ema.update(self.module)
        self.progress.advance(step)
        if step % self.options.log_every == 0 and step > self.position.logged_step:
            self.log(step)
        if step % (self.options.eval_every or self.steps_per_epoch) == 0 and step < self.total_steps:
            self.evaluate(step)
        if self.checkpoint_is_due(step):
            self.save()

    def checkpoint_is_due(self, step: int) -> bool:
        """At the end `finish` saves."""
        every = self.options.checkpoint_every
        due = (every and step % every == 0) or (self.options.keep_best_checkpoint and self.best_step == step)
        return bool(due) and step < self.total_steps

    def stop_early(self) -> NoReturn:
        if self.step:
            self.save()
            self.settle_checkpoint()
        self.clock.enter(None)
        raise PreemptedError(
            f"{self.watch.asked}: stopped after step {self.step} of {self.total_steps}, all is saved; go on with "
            f"resume={self.run_dir}",
            self.step,
        )

    def finish(self) -> Scores:
        """The last checkpoint comes before the flush, so that a longer run can go on from it as if never stopped."""
        self.save()
        if self.step > self.position.logged_step:
            self.log(self.step)
        self.clock.enter("eval")
        self.consensus_distance = self.replica_group.run_collective(
            self.state, self.sync.consensus_distance, "measurement"
        )
        self.clock.enter("compute")
        self.replica_group.run_collective(self.state, partial(self.sync.flush, self.step), "flush")
        self.settle()
        scores = self.evaluate(self.step)
        self.settle_checkpoint()
        self.clock.enter(None)
        return scores

    def set_lr(self, step: int) -> None:
        factor = self.schedule.factor(step, self.total_steps)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor

    def loss(self, inputs: Tensor, target: Tensor, model: nn.Module | None = None) -> Tensor:
        """A micro-batch's part of the mean loss over the rank's share of the step."""
        inputs = self.task.data.transformed(inputs)
        if self.task.data.augment is not None:
            inputs = self.task.data.augment(inputs)
        with self.autocast():
            loss = (self.task.objective.train_loss or self.task.objective.loss)((model or self.model)(inputs), target)
        parts = self.options.accumulation_steps
        return loss / parts if parts > 1 else loss  # dividing by 1 would cost 20 us, most of it in backward

    def own_losses(self, step: int) -> Iterator[Tensor]:
        """Those of this rank's micro-batches, once more and without any averaging in their backward."""
        for inputs, target in islice(self.batches(step), self.options.accumulation_steps):
            yield self.loss(inputs, target, self.module)

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES.get(self.options.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def clip(self) -> None:
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            for part in internals(self.sync).flats:  # each by itself: ranks that share one must scale it alike
                torch.nn.utils.clip_grad_norm_(part.named.values(), self.options.clip_norm)

    def batches(self, first_step: int) -> Generator[Batch]:
        share = Share(self.slot, self.slots, self.micro_batch, self.options.accumulation_steps)
        steps = range(first_step, self.total_steps + 1)
        return micro_batches(self.task.data, self.order, share, steps=steps, device=self.device)

    def log(self, step: int) -> None:
        """Loss is rank 0's own, a mean since the last time: a mean over ranks would be a sync point of its own."""
        position = self.position
        steps = step - position.logged_step
        loss = self.finite_loss() / steps
        position.loss_sum.zero_()
        costs = self.costs()
        samples = self.options.global_batch_size
        values = {
            "epoch": step * samples / self.order.samples,
            "train_loss": loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "samples": step * samples,
            "samples_per_s": steps * samples / max(costs["train_s"] - position.logged_s, 1e-9),
            **internals(self.sync).measurements(),
            **costs,
        }
        position.logged_step, position.logged_s = step, costs["train_s"]
        self.tracker.log(step, values)
        self.progress.log(step, values)

    def finite_loss(self) -> float:
        """The sum of this rank's losses since the last log. Raises NonFiniteError, so that no such state is saved."""
        self.gradients.settle()
        loss = self.position.loss_sum.item()
        if not math.isfinite(loss):
            first = self.position.logged_step + 1
            rank = self.topology.world.rank
            raise NonFiniteError(f"train_loss is {loss} between steps {first} and {self.step}", rank, self.step)
        return loss

    def costs(self) -> dict[str, float]:
        """Time and traffic of this rank so far."""
        stats = self.topology.settle()
        return {
            **self.clock.read(stats.blocked_s),
            "straggler_wait_s": stats.straggler_s,
            "syncs": internals(self.sync).syncs,
            "payload_bytes": stats.payload_bytes,
            "wire_bytes": stats.wire_bytes,
        }

    def compare_ranks(self) -> None:
        """Nothing is kept or shown of ranks that should be alike and are not."""
        require_replicated(internals(self.sync).replicated(self.step), self.topology.world, self.step)

    def settle_stragglers(self) -> None:
        """A collective: `straggler_wait_s` is as of the last evaluation or checkpoint."""
        for comm in self.topology.comms:
            stragglers.settle_(comm)

    def evaluate(self, step: int) -> Scores:
        """Scores the consensus model (and the moving average, and rank 0's own model, when asked)."""
        self.settle()
        self.clock.enter("eval")
        scores = self.replica_group.run_collective(self.state, partial(self.score, step), "evaluation")
        self.clock.enter("compute")
        return scores

    def score(self, step: int) -> Scores:
        self.compare_ranks()
        self.settle_stragglers()
        values = {} if self.options.consensus_every else {"consensus_distance": self.sync.consensus_distance()}
        if self.options.evaluate_own and self.topology.world.rank == 0:
            values |= self.named("own_test_{}", self.evaluator(self.module, self.autocast, alone=True))
        with self.sync.eval_weights():
            if self.sync.buffers == "recalibrate":
                self.recalibrate()
            scores = self.evaluator(self.module, self.autocast)
            values |= self.named("test_{}", scores)
            per_class = class_accuracies(scores.confusion, self.task.presentation.class_names)
            if self.ema:
                with self.ema.eval_weights(internals(self.sync).mean_) as averaged:
                    values |= self.named("ema_test_{}", self.evaluator(averaged, self.autocast))
            costs = self.costs()
            improved = self.standing.note(
                scores.metric,
                self.options.target,
                higher_is_better=self.task.objective.higher_is_better,
                step=step,
                costs=costs,
            )
            self.scored, self.best_step = (step, scores.metric), step if improved else self.best_step
            self.tracker.evaluation(
                step,
                {**values, **per_class, **costs},
                train_s=costs["train_s"],
                payload_bytes=int(costs["payload_bytes"]),
                model=self.module,
            )
            self.exhibition.show(step, self.module, scores)
        self.progress.evaluation(step, values)
        self.topology.world.barrier()  # else what rank 0 shows would count as the others' communication
        return scores

    def named(self, pattern: str, scores: Scores) -> dict[str, float]:
        found = {"loss": scores.loss, self.task.objective.metric_name: scores.metric, **scores.more}
        return {pattern.format(name): value for name, value in found.items()}

    def recalibrate(self) -> None:
        """BatchNorm statistics of the consensus weights, from each rank's first batches; then their mean over ranks."""
        batches = itertools.islice(self.batches(1), self.options.recalibrate_batches)  # fewer in a shorter run
        recalibrate_(self.module, (self.task.data.transformed(inputs) for inputs, _ in batches))
        world = self.topology.world
        with world.uncounted():
            world.all_reduce_(internals(self.sync).flat.buffers)
        internals(self.sync).flat.buffers.div_(world.size)

    def settle(self) -> None:
        """What the GPU still has to do belongs to the phase that asked for it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.gradients.settle()

    def save(self) -> None:
        if self.writer is None:
            return
        self.finite_loss()
        self.settle()
        self.clock.enter("checkpoint")
        self.compare_ranks()
        self.settle_stragglers()
        self.writer.save(self.step, self.state.state_dict(), self.details())
        self.clock.enter("compute")

    def details(self) -> dict[str, Any]:
        """For people and tools: `metric` is the one at this very step, if there was an evaluation."""
        step, metric = self.scored
        return {
            "sync": type(self.sync).__name__,
            "metric_name": self.task.objective.metric_name,
            "higher_is_better": self.task.objective.higher_is_better,
            "metric": metric if step == self.step else None,
        }

    def settle_checkpoint(self) -> None:
        """Returns when the last one is on the disk."""
        if self.writer:
            self.clock.enter("checkpoint")
            self.writer.wait()
            self.clock.enter("compute")

    def resume(self, run_dir: Path) -> int:
        """Loads the newest complete checkpoint of a run and returns its step; 0 when there is none. A collective."""
        loaded = load(
            run_dir / "checkpoints",
            comm=self.topology.world,
            fingerprint=self.fingerprint,
            of_other_ranks=self.options.resume_other_ranks,
        )
        if loaded is None:
            return 0
        self.rehearse()
        try:
            self.state.load_state_dict(loaded[1])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{run_dir}: the checkpoint of step {loaded[0]} holds a state that this run cannot take "
                f"({type(error).__name__}: {error})"
            ) from error
        return self.step

    def rehearse(self) -> None:
        """Two passes whose results are thrown away: DDP settles the order of its sums in the first, and uses it from
        the second on. Without them a resumed run of three or more ranks would add in another order (4e-8)."""
        inputs, target = next(self.batches(1))
        with self.topology.world.uncounted():
            for _ in range(2):
                with self.sync.backward_context(1, last_micro_batch=True):
                    self.loss(inputs, target).backward()
                self.sync.before_step(1)
                self.optimizer.zero_grad(set_to_none=True)
