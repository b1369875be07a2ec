"""The training loop.

A step, and the hooks in it:

    schedule -> lr
    for each micro-batch:   sync.backward_context [ forward, loss, backward ]
    sync.before_step        gradients become those that the optimizer uses
    clip, optimizer.step    (diagnostics measure gradients before, parameters after)
    sync.after_step         parameters become those that the next step starts from
    log, evaluate, checkpoint when due: observers are notified
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NoReturn

import torch
from torch import Tensor

from ddp_agent.config.command_line import override
from ddp_agent.data.loader import Batch
from ddp_agent.distributed.regions import region
from ddp_agent.errors import PreemptedError
from ddp_agent.outputs.observer import Observer, stamped
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.checkpoints import Checkpoints
from ddp_agent.training.evaluate import Scorer, Scores
from ddp_agent.training.session import Session

RECORDS = "its records"  # metrics and TensorBoard, in words for a message


@dataclass(frozen=True)
class Outcome:
    """The end of training: the consensus model's scores, and the ranks' distance before the last synchronisation."""

    scores: Scores
    consensus_distance: float


class Trainer:
    """The loop over optimizer steps, which continues from the state of `session`."""

    def __init__(
        self, session: Session, observers: Sequence[Observer] = (), checkpoints: Checkpoints | None = None
    ) -> None:
        self.session, self.observers = session, observers
        self._internals = internals(session.setup.sync)
        self.checkpoints = Checkpoints(session, None) if checkpoints is None else checkpoints
        self._scorer = Scorer(session, observers)

    def fit(self, until: int | None = None, *, joined: bool = False) -> Outcome:
        """Take all steps up to `until` (default: the whole run) and evaluate the result. A collective.

        `joined`: the state came from another replica after its step, so what follows a step comes first.
        Raises PreemptedError when a signal asked to stop.
        """
        session = self.session
        last = session.setup.total_steps if until is None else until
        with closing(session.batches.steps(session.step + 1, last)) as batches:  # ends the processes that read ahead
            session.setup.topology.world.barrier()  # else different start-up times would count as communication
            with session.clock.phase("compute"):
                if joined:
                    self._after_synchronisation(session.step, last)
                self._train(session.clock.timed("data", batches), last)
                return self._finish()

    def _train(self, batches: Iterator[Batch], last: int) -> None:
        session, setup = self.session, self.session.setup
        sync, scaler, accumulation = setup.sync, session.scaler, session.batches.share.accumulation
        diagnostics, guard, position = session.diagnostics, session.nan_guard, session.state.position
        parameters = list(setup.module.parameters())
        session.forward.model.train()
        for step in range(session.step + 1, last + 1):
            if setup.failure_detector.stops_before(step):
                self._stop_early()
            session.set_lr(step)
            diagnostics.begin(step)
            for micro in range(1, accumulation + 1):
                inputs, target = next(batches)
                with sync.backward_context(step, last_micro_batch=micro == accumulation):
                    loss = session.forward.loss(inputs, target)
                    scaler.scale(loss).backward()
                position.loss_sum += loss.detach()
            guard.check_own(step)
            with region("sync.before_step"):
                sync.before_step(step)
            guard.check_averaged(step, self._own_losses(step))
            self._measured(step, diagnostics.gradients(step))
            self._clip()
            scaler.step(setup.optimizer)
            scaler.update()
            self._measured(step, diagnostics.parameters(step))
            position.step = step
            with region("sync.after_step"):
                self._synchronise(step)
            for parameter in parameters:  # optimizer.zero_grad does the same in 5 times the time
                parameter.grad = None
            self._after_synchronisation(step, last)

    def _own_losses(self, step: int) -> Iterator[Tensor]:
        """Yield the losses of this rank's micro-batches again, without any averaging in their backward."""
        batches = self.session.batches
        for inputs, target in islice(batches.steps(step, step), batches.share.accumulation):
            yield self.session.forward.own_loss(inputs, target)

    def _measured(self, step: int, values: Mapping[str, float]) -> None:
        if values:
            with self.session.clock.phase("eval"):
                self._log(step, values)

    def _clip(self) -> None:
        setup = self.session.setup
        if setup.options.clip_norm is not None:
            self.session.scaler.unscale_(setup.optimizer)
            for part in self._internals.flats:  # apart: ranks that share one must scale it by the same factor
                torch.nn.utils.clip_grad_norm_(part.named.values(), setup.options.clip_norm)

    def _synchronise(self, step: int) -> None:
        setup = self.session.setup
        if self._internals.exchanges(step):
            setup.replica_group.run_collective(self.session.state, partial(setup.sync.after_step, step), "sync")
        else:
            setup.sync.after_step(step)

    def _after_synchronisation(self, step: int, last: int) -> None:
        session, options = self.session, self.session.setup.options
        if session.ema:
            session.ema.update(session.setup.module)
        if self.observers:
            with session.setup.failure_detector.progress.writing(RECORDS):
                for observer in self.observers:
                    observer.stepped(step)
        if step % options.log_every == 0 and step > session.state.position.logged_step:
            self._log_progress(step)
        if step % (options.eval_every or session.batches.steps_per_epoch) == 0 and step < last:
            self.checkpoints.require_directory()
            self.evaluate(step)
        if self.checkpoints.is_due(step, self._scorer.latest) and step < last:  # at the end `_finish` saves
            self._save()

    def _log_progress(self, step: int) -> None:
        """Log the mean loss since the last time. It is rank 0's own: a mean over ranks would be a sync point."""
        session, position = self.session, self.session.state.position
        session.settle()
        steps = step - position.logged_step
        loss = position.finite_loss(session.setup.topology.world.rank) / steps
        position.loss_sum.zero_()
        costs = session.costs()
        samples = session.setup.options.global_batch_size
        values = {
            "epoch": step * samples / session.batches.order.samples,
            "train_loss": loss,
            "lr": session.setup.optimizer.param_groups[0]["lr"],
            "samples": step * samples,
            "samples_per_s": steps * samples / max(costs["train_s"] - position.logged_s, 1e-9),
            **self._internals.measurements(),
            **costs,
        }
        position.logged_step, position.logged_s = step, costs["train_s"]
        self._log(step, values)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        record = stamped(values)
        with self.session.setup.failure_detector.progress.writing(RECORDS):
            for observer in self.observers:
                observer.logged(step, record)

    def evaluate(self, step: int) -> Scores:
        """Return the consensus model's scores after `step`. A collective."""
        session, group = self.session, self.session.setup.replica_group
        session.settle()
        with session.clock.phase("eval"):
            return group.run_collective(session.state, partial(self._scorer.score, step), "evaluation")

    def _save(self) -> None:
        if self.checkpoints.save(self._scorer.latest):
            for observer in self.observers:
                observer.checkpointed(self.session.step)

    def _stop_early(self) -> NoReturn:
        setup, step, writer = self.session.setup, self.session.step, self.checkpoints.writer
        if step:
            self._save()
            self.checkpoints.wait()
        raise PreemptedError(
            f"{setup.failure_detector.stop_request}: stopped after step {step} of {setup.total_steps}, all is saved; "
            f"go on with {override('resume', writer.directory.parent) if writer else 'the same command'}",
            step,
        )

    def _finish(self) -> Outcome:
        """Save before the flush, so that a longer run can continue from there as if this one had never stopped."""
        session, sync, group = self.session, self.session.setup.sync, self.session.setup.replica_group
        self._save()
        if session.step > session.state.position.logged_step:
            self._log_progress(session.step)
        with session.clock.phase("eval"):
            distance = group.run_collective(session.state, sync.consensus_distance, "measurement")
        group.run_collective(session.state, partial(sync.flush, session.step), "flush")
        scores = self.evaluate(session.step)
        self.checkpoints.wait()
        return Outcome(scores, distance)
