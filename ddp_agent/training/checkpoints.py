"""When and how a run's state is saved."""

from typing import Any

from ddp_agent.checkpoint.writer import Writer
from ddp_agent.training.scoring import Scored
from ddp_agent.training.session import Session, settle_stragglers


class Checkpoints:
    """The checkpoints of a session, handed to `writer`. Without a writer nothing is saved."""

    def __init__(self, session: Session, writer: Writer | None) -> None:
        self.writer = writer
        self._session = session

    def is_due(self, step: int, scored: Scored | None) -> bool:
        """Return whether the state after `step` is to be saved: regularly, or as the best so far."""
        options = self._session.setup.options
        regular = options.checkpoint_every is not None and step % options.checkpoint_every == 0
        best = options.keep_best_checkpoint and scored is not None and scored.best and scored.step == step
        return regular or best

    def save(self, scored: Scored | None) -> bool:
        """Save the state, unless there is no writer. Return whether it was. A collective.

        Raises NonFiniteError or DivergedError for a state that must not be kept.
        """
        if self.writer is None:
            return False
        session = self._session
        session.settle()
        session.state.position.finite_loss(session.setup.topology.world.rank)
        with session.clock.phase("checkpoint"):
            session.compare_ranks()
            settle_stragglers(session.setup.topology)
            self.writer.save(session.step, session.state.state_dict(), self._details(scored))
        return True

    def _details(self, scored: Scored | None) -> dict[str, Any]:
        """Return what people and tools may want to know; `metric` is the one at this very step, if there is one."""
        task, step = self._session.setup.task, self._session.step
        return {
            "sync": type(self._session.setup.sync).__name__,
            "metric_name": task.objective.metric_name,
            "higher_is_better": task.objective.higher_is_better,
            "metric": scored.metric if scored is not None and scored.step == step else None,
        }

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk."""
        if self.writer is not None:
            with self._session.clock.phase("checkpoint"):
                self.writer.wait()
