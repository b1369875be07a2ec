"""Evaluation and accumulation in every mode."""

import torch
from loops import Loop, apart, norm_net, random_batch
from mode_cases import ALL, MODES, STEPS
from rank_pool import RankPool
from torch import Tensor, nn

# Evaluation.


def evaluate_and_return(mode: str) -> tuple[bool, bool, float]:
    loop = Loop(ALL[mode](), model=norm_net).run(3)
    own = loop.flat.snapshot()
    mean = loop.weights
    loop.topology.world.all_reduce_(mean)
    mean /= loop.topology.world.size
    if loop.sync.traits.consensus == "anchor":
        mean = loop.sync.anchor.clone()  # type: ignore[attr-defined]
    with loop.sync.eval_weights():
        distance = apart(loop.flat.parameters, mean)
    restored = all(map(torch.equal, loop.flat.snapshot(), own))
    try:
        with loop.sync.eval_weights():
            raise RuntimeError("evaluation failed")
    except RuntimeError:
        restored_after_error = all(map(torch.equal, loop.flat.snapshot(), own))
    return restored, restored_after_error, distance


@MODES
def test_evaluation_sees_the_consensus_and_leaves_no_trace(ranks3: RankPool, mode: str) -> None:
    for restored, restored_after_error, distance in ranks3.run(evaluate_and_return, mode):
        assert restored
        assert restored_after_error
        assert distance < 1e-15


# Accumulation: H counts optimizer steps, and only the last micro-batch synchronises.


def accumulate(mode: str) -> tuple[float, int, int]:
    """Two micro-batches a step against one batch of both."""
    one = Loop(ALL[mode](), batches=lambda step, rank: double_batch(step, rank)).run(STEPS).flush()
    two = Loop(ALL[mode]())
    for step in range(1, STEPS + 1):
        rank = two.topology.world.rank
        for part in range(2):
            inputs, target = (tensor.chunk(2)[part] for tensor in double_batch(step, rank))
            with two.sync.backward_context(step, last_micro_batch=part == 1):
                (nn.functional.mse_loss(two.model(inputs), target) / 2).backward()
        two.sync.before_step(step)
        two.optimizer.step()
        two.sync.after_step(step)
        two.optimizer.zero_grad()
    two.sync.flush(STEPS)
    one_stats, two_stats = one.topology.world.stats, two.topology.world.stats
    return apart(one.weights, two.weights), one_stats.payload_bytes, two_stats.payload_bytes


def double_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    first, second = random_batch(step, rank), random_batch(step, rank + 500)
    return torch.cat((first[0], second[0])), torch.cat((first[1], second[1]))


@MODES
def test_accumulation_changes_neither_the_result_nor_the_traffic(ranks2: RankPool, mode: str) -> None:
    """accelerate's LocalSGD counts micro-batches, and so synchronises twice as often here."""
    for distance, bytes_of_one, bytes_of_two in ranks2.run(accumulate, mode):
        assert distance < 1e-12
        assert bytes_of_one == bytes_of_two
