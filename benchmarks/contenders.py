"""A training step of the trainer and of its peers, who all train the same."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import by_hand, job, rounds
from benchmarks.job import BATCH, PERIOD, Job, Synchronised
from benchmarks.ours import new_trainer, train_for_ever
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.paused import Fit, Paused
from ddp_agent.data.sample_order import SampleOrder
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.sync import AllReduce, LocalSGD, SyncStrategy

SYNCHRONISED = {"gradients": "gradients, every step", "parameters": f"parameters, every {PERIOD} steps"}
TOLERANCE = 1e-3  # of the parameters' norm, after an epoch: only the order of sums differs


@dataclass(frozen=True, kw_only=True)
class Contender:
    """`run` takes so many more steps; `taken` are this rank's samples in the first epoch, [steps, batch]."""

    name: str
    synchronised: Synchronised
    run: Callable[[int], None]
    parameters: Callable[[], Iterable[Tensor]]
    taken: Tensor
    target: float | None = None


def measure(work: Job, ranks: Runtime, repeats: int, peers: Sequence[str]) -> Outcome:
    """`peers`: those that are installed."""
    rows: list[Row] = []
    for create in (gradients_averaged, parameters_averaged):
        with ExitStack() as until_closed:
            rows += _rows(list(create(work, peers, until_closed)), work, repeats)
    return Outcome(
        title=f"An optimizer step of the 10-{job.HIDDEN}-2 MLP, {BATCH} samples a rank",
        how=f"medians of {repeats} alternating rounds of {work.steps} steps (one epoch), time of the slowest rank; "
        "ratio: to the trainer, in the same round, target: at least; no evaluation, checkpoints or progress; all had "
        "the parameters that plain torch has after the same first epoch",
        machine=Machine.here(ranks),
        rows=rows,
    )


def gradients_averaged(work: Job, peers: Sequence[str], until_closed: ExitStack) -> Iterator[Contender]:
    """The first is the yardstick."""
    yield ours(work, AllReduce(), "gradients", until_closed)
    tutorial = by_hand.Tutorial(work)
    yield Contender(
        name="hand-written loop: DDP, DataLoader",
        synchronised="gradients",
        run=tutorial,
        parameters=tutorial.model.parameters,
        taken=by_hand.taken(work),
        target=1.0,
    )
    if "accelerate" in peers:
        from benchmarks import with_accelerate

        accelerated = with_accelerate.Accelerated(work)
        yield Contender(
            name="accelerate",
            synchronised="gradients",
            run=accelerated,
            parameters=accelerated.model.parameters,
            taken=with_accelerate.taken(work),
            target=1.5,
        )
    if "lightning" in peers:
        from benchmarks import with_lightning

        module = with_lightning.Module(work)
        yield Contender(
            name="Lightning, barebones",
            synchronised="gradients",
            run=_paused(functools.partial(with_lightning.fit, module), work, until_closed),
            parameters=module.parameters,
            taken=by_hand.taken(work),
            target=1.5,
        )


def parameters_averaged(work: Job, peers: Sequence[str], until_closed: ExitStack) -> Iterator[Contender]:
    """The first is the yardstick."""
    yield ours(work, LocalSGD(period=PERIOD), "parameters", until_closed)
    local = by_hand.PostLocal(work)
    yield Contender(
        name="hand-written loop: torch PostLocalSGD, DataLoader",
        synchronised="parameters",
        run=local,
        parameters=local.model.parameters,
        taken=by_hand.taken(work),
    )
    if "accelerate" in peers:
        from benchmarks import with_accelerate

        accelerated = with_accelerate.AcceleratedLocalSGD(work)
        yield Contender(
            name="accelerate LocalSGD",
            synchronised="parameters",
            run=accelerated,
            parameters=accelerated.model.parameters,
            taken=with_accelerate.taken(work),
        )


def ours(work: Job, sync: SyncStrategy, synchronised: Synchronised, until_closed: ExitStack) -> Contender:
    trainer = new_trainer(work, sync)
    order = SampleOrder(work.samples, trainer.options.seed).permutation(0)
    return Contender(
        name=f"this tree: trainer, {type(sync).__name__}",
        synchronised=synchronised,
        run=_paused(functools.partial(train_for_ever, trainer), work, until_closed),
        parameters=trainer.module.parameters,
        taken=order.view(work.steps, work.size, BATCH)[:, work.rank],
    )


def _paused(fit: Fit, work: Job, until_closed: ExitStack) -> Paused:
    paused = Paused(fit, work.device)
    until_closed.callback(paused.close)
    return paused


def _rows(contenders: Sequence[Contender], work: Job, repeats: int) -> list[Row]:
    comm = world_comm()
    for contender in contenders:
        check_first_epoch(contender, work)

    def timed(contender: Contender) -> float:
        return rounds.stopwatch(lambda: contender.run(work.steps), work.device)

    turns = {contender.name: functools.partial(timed, contender) for contender in contenders}
    timings = rounds.take_turns(turns, repeats, comm)
    for contender in contenders:
        check_learnt(contender, work, comm)
    return [
        {
            "synchronised": SYNCHRONISED[contender.synchronised],
            "loop": contender.name,
            "us_a_step": timing.median_s / work.steps * 1e6,
            "samples_per_s": round(work.samples / timing.median_s),
            "ratio": timing.ratio,
            "ratio_q1": timing.ratio_q1,
            "ratio_q3": timing.ratio_q3,
            "target": contender.target,
        }
        for contender, timing in zip(contenders, timings.values(), strict=True)
    ]


def check_first_epoch(contender: Contender, work: Job) -> None:
    """Trains one. RuntimeError when it is not the training that the others do: its time would say nothing."""
    contender.run(work.steps)
    found = job.flat(contender.parameters())
    expected = job.expected(work, contender.taken, contender.synchronised)
    if not (found - expected).norm() <= TOLERANCE * expected.norm():
        raise RuntimeError(f"{contender.name} did not train as plain torch does")


def check_learnt(contender: Contender, work: Job, comm: Comm) -> None:
    """RuntimeError when in the end ranks differ, or have not learnt what is easy."""
    found = job.flat(contender.parameters())
    with comm.uncounted():
        same = all(torch.equal(found.to(other.device), other) for other in comm.all_gather(found))
    model = work.model()
    nn.utils.vector_to_parameters(found, model.parameters())
    inputs, targets = (tensor.to(work.device) for tensor in work.data().tensors)
    with torch.no_grad():
        loss = F.cross_entropy(model(inputs), targets).item()
    if not same or not loss < 0.1:  # at the start 0.7, at best about 0.03
        raise RuntimeError(f"{contender.name} did not train: loss {loss:.3f}, ranks {'the same' if same else 'differ'}")
