"""The evaluation of the consensus model during training."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ddp_agent.distributed.comm import mean_
from ddp_agent.outputs.confusion import values as class_accuracies
from ddp_agent.outputs.observer import Evaluation, Observer, stamped
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.evaluate import Evaluator, Scores, recalibrate_
from ddp_agent.training.session import Session, settle_stragglers


@dataclass(frozen=True)
class Scored:
    """The last evaluation. `best`: its metric was the best so far."""

    step: int
    metric: float
    best: bool


class Scorer:
    """Evaluation of the consensus model, and if asked of its moving average and of rank 0's own model."""

    def __init__(self, session: Session, observers: Sequence[Observer] = ()) -> None:
        self.latest: Scored | None = None
        self._session, self._observers = session, observers
        setup = session.setup
        self._evaluate = Evaluator(setup.task, setup.topology.world, setup.device)

    def score(self, step: int) -> Scores:
        """Return the scores after `step` and show them to the observers. A collective."""
        session, setup, autocast = self._session, self._session.setup, self._session.forward.autocast
        options, sync, module = setup.options, setup.sync, setup.module
        session.compare_ranks()
        settle_stragglers(setup.topology)
        values: dict[str, float | None] = {}
        if not options.consensus_every:
            values["consensus_distance"] = sync.consensus_distance()
        if options.evaluate_own and setup.topology.world.rank == 0:
            values |= self._named("own_test_{}", self._evaluate(module, autocast, alone=True))
        with sync.eval_weights():
            if sync.buffers == "recalibrate":
                recalibrate(session)
            scores = self._evaluate(module, autocast)
            values |= self._named("test_{}", scores)
            per_class = class_accuracies(scores.confusion, setup.task.presentation.class_names)
            if session.ema:
                with session.ema.eval_weights(internals(sync).mean_) as averaged:
                    values |= self._named("ema_test_{}", self._evaluate(averaged, autocast))
            costs = session.costs()
            higher_is_better = setup.task.objective.higher_is_better
            best = session.best.note(
                scores.metric, options.target, higher_is_better=higher_is_better, step=step, costs=costs
            )
            self.latest = Scored(step, scores.metric, best)
            shown = Evaluation(
                step=step, values=stamped(values | per_class | costs), model=module, confusion=scores.confusion
            )
            for observer in self._observers:
                observer.evaluated(shown)
        setup.topology.world.barrier()  # else the time of rank 0's observers would count as others' communication
        return scores

    def _named(self, pattern: str, scores: Scores) -> dict[str, float]:
        values = {"loss": scores.loss, self._session.setup.task.objective.metric_name: scores.metric, **scores.more}
        return {pattern.format(name): value for name, value in values.items()}


def recalibrate(session: Session) -> None:
    """Estimate BatchNorm statistics of the consensus weights from each rank's first batches, averaged over ranks."""
    setup = session.setup
    batches = session.batches.steps(1, setup.total_steps)
    few = islice(batches, setup.options.recalibrate_batches)  # fewer in a shorter run
    recalibrate_(setup.module, (setup.task.data.transformed(inputs) for inputs, _ in few))
    world = setup.topology.world
    with world.uncounted():
        mean_(internals(setup.sync).flat.buffers, world)
