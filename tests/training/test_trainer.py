"""The loop and its observers: who is called when, how far it goes, and what it leaves alone."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from rank_pool import RankPool
from runs import mode, run
from torch import Tensor, nn

from benchmarks.step import Workload, article
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.regions import record_regions, region
from ddp_agent.distributed.topology import Topology
from ddp_agent.errors import DataError
from ddp_agent.outputs.observer import Evaluation, Observer, Result, Start, Values
from ddp_agent.outputs.tracking import MetricsLog
from ddp_agent.sync import Independent
from ddp_agent.training.session import Forward, Session
from ddp_agent.training.trainer import Trainer


class Calls(Observer):
    """Keeps the hooks that were called, with their steps."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begin(self, start: Start) -> None:
        self.seen.append(("begin", start.step))

    def stepped(self, step: int) -> None:
        self.seen.append(("stepped", step))

    def logged(self, step: int, values: Values) -> None:
        self.seen.append(("logged", step))

    def evaluated(self, evaluation: Evaluation) -> None:
        self.seen.append(("evaluated", evaluation.step))

    def checkpointed(self, step: int) -> None:
        self.seen.append(("checkpointed", step))

    def finished(self, result: Result) -> None:
        self.seen.append(("finished", result.summary["steps"]))

    def failed(self, error: BaseException) -> None:
        self.seen.append(("failed", type(error)))

    def close(self) -> None:
        self.seen.append("close")


def session(**options: Any) -> Session:
    """One rank with the 10-32-2 MLP, always with the same weights."""
    torch.manual_seed(0)
    workload = Workload(article(), Topology(world=LocalComm(), ranks_per_node=1), torch.device("cpu"))
    made = workload.session(Independent())
    setup = replace(made.setup, options=replace(made.setup.options, **options), sync=Independent())
    return Session(setup)


def test_observers_are_called_in_order_and_training_goes_as_far_as_asked() -> None:
    calls = Calls()
    trainer = Trainer(session(log_every=2, eval_every=3), [calls])
    trainer.fit(until=4)
    assert trainer.session.step == 4
    assert calls.seen == [
        *(("stepped", 1), ("stepped", 2), ("logged", 2), ("stepped", 3), ("evaluated", 3), ("stepped", 4)),
        *(("logged", 4), ("evaluated", 4)),
    ]
    calls.seen.clear()
    trainer.fit(until=5)
    assert calls.seen == [("stepped", 5), ("logged", 5), ("evaluated", 5)]


def test_two_pieces_of_training_are_one() -> None:
    whole, pieces = Trainer(session()), Trainer(session())
    whole.fit(until=6)
    pieces.fit(until=2)
    pieces.fit(until=6)
    one, other = (list(trainer.session.setup.module.parameters()) for trainer in (whole, pieces))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_clock_stands_when_training_ends_or_fails() -> None:
    trainer = Trainer(session())
    trainer.fit(until=2)
    assert trainer.session.costs() == pytest.approx(trainer.session.costs())
    before = trainer.session.clock.state_dict()
    assert trainer.session.clock.state_dict() == before
    broken = Trainer(session())
    with mock.patch.object(Session, "set_lr", side_effect=RuntimeError), pytest.raises(RuntimeError):
        broken.fit(until=2)
    assert broken.session.clock.state_dict() == broken.session.clock.state_dict()


class Empty(nn.Module):
    """A model whose truth value is False, as that of an empty container is."""

    def __len__(self) -> int:
        return 0

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :2]


class Averaging(Empty):
    """The same model as DistributedDataParallel wraps it, told apart by its output."""

    def forward(self, inputs: Tensor) -> Tensor:
        return -inputs[:, :2]


def test_a_model_that_is_false_is_the_one_that_is_used() -> None:
    task = article()
    inputs, target = task.data.train[0]
    batch = inputs.unsqueeze(0), target.unsqueeze(0)
    forward = Forward(
        task=task, module=Empty(), model=Averaging(), device=torch.device("cpu"), precision="fp32", accumulation=1
    )
    assert forward.own_loss(*batch) == task.objective.loss(batch[0][:, :2], batch[1])
    assert forward.loss(*batch) == task.objective.loss(-batch[0][:, :2], batch[1])


def test_regions_are_one_idle_context_without_a_trace() -> None:
    assert region("forward") is region("communication")
    record_regions(True)
    try:
        assert region("forward") is not region("forward")
    finally:
        record_regions(False)


# In whole runs


def hooks_of(cfg: dict[str, Any], choices: dict[str, str], path: str, fails: type[BaseException] | None) -> Any:
    """What an observer beside those of rank 0 sees, and how many observers each rank has."""
    calls, counts, loop = Calls(), [], Trainer.fit

    def fit(trainer: Trainer, **options: Any) -> Any:
        counts.append(len(trainer.observers))
        if fails:
            raise fails("asked to")
        return loop(trainer, **options)

    with (
        mock.patch.object(Trainer, "fit", fit),
        mock.patch.multiple(
            MetricsLog,
            begin=lambda _, start: calls.begin(start),
            checkpointed=lambda _, step: calls.checkpointed(step),
            finished=lambda _, result: calls.finished(result),
            failed=lambda _, error: calls.failed(error),
            close=lambda _: calls.close(),
        ),
    ):
        try:
            run(cfg, choices, path)
        except RuntimeError:
            calls.seen.append("raised")
    return calls.seen, counts


def test_a_run_begins_finishes_and_closes_its_observers_on_rank_0_alone(ranks2: RankPool, tmp_path: Any) -> None:
    first, second = ranks2.run(hooks_of, *mode("allreduce", "checkpoint_every=3"), str(tmp_path), None)
    saved = [("checkpointed", step) for step in (3, 6, 8)]
    assert first == ([("begin", 0), *saved, ("finished", 8), "close"], [4])
    assert second == ([], [0])


@pytest.mark.parametrize("fails", [RuntimeError, DataError])
def test_a_failure_closes_them_as_well(ranks2: RankPool, tmp_path: Any, fails: type[BaseException]) -> None:
    first, second = ranks2.run(hooks_of, *mode("allreduce"), str(tmp_path), fails)
    raised = ["raised"] if fails is RuntimeError else []
    assert first == ([("begin", 0), ("failed", fails), "close", *raised], [4])
    assert second == (raised, [0])
