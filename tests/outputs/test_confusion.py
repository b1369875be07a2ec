"""The confusion matrix: counted exactly over all ranks, and shown so that people can read it."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_agent.data.classification import classification
from ddp_agent.data.task import Data, Task
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.outputs.confusion import FEW, Confusion, values
from ddp_agent.outputs.images.drawing import blend
from ddp_agent.outputs.images.tables import MAX_CLASSES, confusion_table
from ddp_agent.training import evaluate
from ddp_agent.training.evaluate import BATCH, Evaluator, Scores

CLASSES = 4


def task(samples: int) -> Task:
    """Inputs are what the model (the identity) is to say; classes differ in how often they are right."""
    generator = torch.Generator().manual_seed(samples)
    outputs = torch.randn(samples, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    outputs[torch.arange(samples), labels] += labels.float()
    data = TensorDataset(outputs, labels)
    held = Data(train=data, test=data, input_shape=(CLASSES,), sha256="")
    return classification(held, outputs=CLASSES, loss="cross_entropy")


def scored(samples: int, alone: bool = False) -> tuple[Any, float, int]:
    comm = world_comm()
    found: Scores = Evaluator(task(samples), comm, torch.device("cpu"))(nn.Identity(), nullcontext, alone=alone)
    assert found.confusion is not None
    return found.confusion.tolist(), found.metric, comm.stats.payload_bytes


def by_hand(samples: int) -> list[list[int]]:
    outputs, labels = task(samples).data.test[:]
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for label, guess in zip(labels.tolist(), outputs.argmax(1).tolist(), strict=True):
        counts[label][guess] += 1
    return counts


@pytest.mark.parametrize("samples", [7, BATCH, 2 * BATCH + 3])  # a batch for one rank alone, and uneven ones
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_sample_is_counted_once_on_however_many_ranks(
    request: pytest.FixtureRequest, size: int, samples: int
) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    for counts, metric, payload_bytes in pool.run(scored, samples):
        assert counts == by_hand(samples)
        assert sum(counts[label][label] for label in range(CLASSES)) == round(metric * samples)
        assert payload_bytes == 0


def test_a_rank_that_scores_alone_counts_the_whole_set(ranks2: RankPool) -> None:
    assert [counts for counts, _, _ in ranks2.run(scored, 2 * BATCH + 3, True)] == [by_hand(2 * BATCH + 3)] * 2


def test_nothing_is_counted_where_there_are_no_classes_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MOST_CLASSES", CLASSES - 1)
    found = Evaluator(task(9), LocalComm(), torch.device("cpu"))(nn.Identity(), nullcontext)
    assert found.confusion is None
    assert values(None, ()) == {}


def test_samples_with_several_labels_are_not_counted() -> None:
    one = task(9)
    labels = one.data.test[:][1]
    data = TensorDataset(one.data.test[:][0], torch.stack([labels, labels], 1))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output.sum()

    objective = replace(one.objective, loss=loss, metric=lambda output, target: output[:, 0])
    several = replace(one, data=replace(one.data, test=data), objective=objective)
    assert Evaluator(several, LocalComm(), torch.device("cpu"))(nn.Identity(), nullcontext).confusion is None


THREE = Confusion(torch.tensor([[8, 0, 2], [0, 0, 0], [1, 4, 5]]), ("ant", "bee", "cow"))


def test_each_class_has_its_accuracy() -> None:
    assert values(THREE.counts, THREE.given_names) == {
        "class_accuracy/ant": 0.8,
        "class_accuracy/bee": None,
        "class_accuracy/cow": 0.5,
    }
    assert values(THREE.counts, ()).keys() == {f"class_accuracy/{label}" for label in range(3)}


def test_many_classes_are_told_in_words_alone() -> None:
    many = torch.eye(FEW + 1, dtype=torch.int64)
    assert values(many, ()) == {}
    assert len(values(torch.eye(FEW, dtype=torch.int64), ())) == FEW


def test_words_begin_with_the_worst_and_say_what_it_is_taken_for() -> None:
    assert THREE.text().splitlines()[1:] == [
        "   0.500       10  cow, most often taken for bee (4)",
        "   0.800       10  ant, most often taken for cow (2)",
    ]


def test_of_many_classes_the_worst_and_the_best_are_told() -> None:
    counts = torch.zeros(30, 30, dtype=torch.int64)
    for label in range(30):
        counts[label, label], counts[label, 0] = 10 * label, counts[label, 0] + 300 - 10 * label
    told = [line.split()[2].strip(",") for line in Confusion(counts, ()).text().splitlines()[1:]]
    assert told == [*map(str, range(1, 11)), "more", "26", "27", "28", "29", "0"]


def test_the_picture_shows_a_rare_mistake_and_where_there_is_none() -> None:
    counts = torch.tensor([[98, 2], [0, 100]])
    drawn = confusion_table(Confusion(counts, ("ant", "bee")))
    assert drawn is not None
    assert all(present(drawn, depth) for depth in (1.0, 0.02**0.5, 0.0))
    assert not present(drawn, 0.02)


def present(pixels: Tensor, depth: float) -> bool:
    return bool((pixels == blend(torch.tensor(depth))).all(-1).any())


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 150, MAX_CLASSES])
def test_any_number_of_classes_up_to_the_most_is_drawn(classes: int) -> None:
    drawn = confusion_table(Confusion(torch.zeros(classes, classes, dtype=torch.int64), ()))
    assert drawn is not None and drawn.dtype == torch.uint8 and drawn.shape[2] == 3
    assert max(drawn.shape) < 1200
    assert confusion_table(Confusion(torch.zeros(MAX_CLASSES + 1, MAX_CLASSES + 1, dtype=torch.int64), ())) is None
