"""A text by characters: how it is cut, that each tested character counts once, and the errors for bad files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import node
from rank_pool import RankPool
from runs import mode, run
from torch import Tensor, nn

from ddp_agent.config.registry import build
from ddp_agent.data.datasets.char_lm import NOT_SCORED, scored_windows, windows, write
from ddp_agent.data.task import Task
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.errors import DataError
from ddp_agent.training.evaluate import Evaluator

TEXT = "To be, or not to be:\nthat is the question.\r\n" * 7


def text_file(folder: Path, text: str = TEXT, name: str = "input.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode())
    return folder


def load(data_root: Path, **values: Any) -> Task:
    given = {"context": 8, **values}
    task: Task = build("dataset", node("dataset", "char_lm", **given), data_root=data_root).load()
    return task


@pytest.mark.parametrize(("folder", "name"), [("", "input.txt"), ("tinyshakespeare", "input.txt"), ("", "my own.txt")])
def test_any_text_is_read_as_it_is(tmp_path: Path, folder: str, name: str) -> None:
    text_file(tmp_path / folder, "Ça\r\n" * 20, name)
    task = load(tmp_path, file=name, context=4)
    inputs, targets = task.data.train[:]
    assert (task.objective.outputs, task.model_arguments, task.data.input_shape) == (4, {"vocabulary": 4}, (4,))
    alphabet = "\n\raÇ"
    assert "".join(alphabet[token] for token in inputs.flatten()) == ("Ça\r\n" * 20)[: inputs.numel()]
    assert "".join(alphabet[token] for token in targets.flatten()) == ("Ça\r\n" * 20)[1 : 1 + inputs.numel()]


def test_training_windows_lie_one_behind_the_other() -> None:
    inputs, targets = windows(torch.arange(14), 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(targets, inputs + 1)
    assert windows(torch.arange(13), 4)[1].flatten().tolist() == list(range(1, 13))  # the last is only a target


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [40, 41, 47, 80])
def test_every_tested_character_is_a_target_once(length: int, context: int) -> None:
    first = length - -(-length // 10)
    (inputs, targets), scored = scored_windows(torch.arange(length), first, context)
    counted = targets[targets != NOT_SCORED]
    assert counted.tolist() == list(range(first, length))
    assert torch.equal((inputs + 1)[targets != NOT_SCORED], counted)  # each follows what the model has seen
    assert inputs.min() >= 0 and inputs.shape == targets.shape == (len(inputs), context)
    assert scored * len(inputs) == pytest.approx(len(counted))
    behind = (targets != NOT_SCORED).int().argmax(1)
    assert (behind >= context // 2).all() or context == 1


class Bigram(nn.Module):
    """Knows a probability for each pair of characters."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(outputs, outputs, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def test_the_score_is_the_mean_over_the_last_tenth(tmp_path: Path) -> None:
    task = load(text_file(tmp_path))
    model = Bigram(task.objective.outputs)
    alphabet = sorted(set(TEXT))
    tokens = [alphabet.index(character) for character in TEXT]
    log_p = model.table.detach().log_softmax(1)
    tested = range(len(TEXT) - math.ceil(len(TEXT) / 10), len(TEXT))
    expected = -sum(log_p[tokens[place - 1], tokens[place]].item() for place in tested) / len(tested)
    scores = Evaluator(task, LocalComm(), torch.device("cpu"))(model, torch.no_grad)
    assert scores.metric == pytest.approx(expected, rel=1e-6)
    assert scores.loss == pytest.approx(expected, rel=0.05)  # the last window has fewer
    assert task.objective.metric_name == "nats" and not task.objective.higher_is_better


def test_what_is_written_follows_the_model_and_is_the_same_each_time() -> None:
    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(100.0))

        def forward(self, tokens: Tensor) -> Tensor:
            assert tokens.shape[1] <= 3
            return nn.functional.one_hot((tokens + 1) % 4, 4) * self.scale

    assert write(Next(), alphabet="\nabc", context=3, length=9) == "abc\nabc\na"
    assert write(Next(), alphabet="xyz!", context=3, length=5) == "yz!xy"  # without line ends it begins with the first
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = Bigram(4)
    texts = {write(model, alphabet="\nabc", context=3, length=40) for _ in range(2)}
    assert len(texts) == 1 and len(texts.pop()) == 40
    assert torch.equal(torch.get_rng_state(), before)  # training goes on as if nothing had been written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file, expected a text"),
        (b"\xfe\x00T", "found .*can't decode.*expected a text in UTF-8"),
        (b"a" * 99, "found nothing but 'a', expected a text of two or more different characters"),
        (b"To be or n", r"found 10 characters, of which the first 9 .* more than dataset.context=9"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, context=9)
    assert str(caught.value).startswith(str(tmp_path / "input.txt"))


def test_the_shortest_text_for_a_context_has_one_window(tmp_path: Path) -> None:
    task = load(text_file(tmp_path, "abcdefghijkl"), context=9)
    assert (len(task.data.train), len(task.data.test)) == (1, 1)  # type: ignore[arg-type]


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"found no input.txt, and no folder tinyshakespeare.*download=true, or take https://"
    ):
        load(tmp_path)
    with pytest.raises(DataError, match=r"faust.txt: found no such file.*dataset.file"):
        load(tmp_path, file="faust.txt")
    (tmp_path / "texts").mkdir()
    with pytest.raises(DataError, match=r"texts: is a folder, expected a regular file; it should be a text"):
        load(tmp_path, file="texts")


def test_a_run_ends_with_a_sample(ranks2: RankPool, tmp_path: Path) -> None:
    small = ("model.width=16", "model.layers=1", "model.buckets=64", "model.heads=2", "model.ngram_width=4")
    typed = ("dataset=char_lm", "model=gpt", "global_batch_size=4", "dataset.context=8", "dataset.sample=30")
    data = text_file(tmp_path / "data")
    summary = ranks2.run(run, *mode("diloco", *typed, *small, f"data_root={data}"), str(tmp_path / "run"))[0]
    assert isinstance(summary, dict), summary
    assert summary["metric_name"] == "nats"
    found = (tmp_path / "run" / "sample.txt").read_bytes().decode()
    assert len(found) == 30 and set(found) <= set(TEXT)


@pytest.mark.data
def test_the_published_file(data_root: Path) -> None:
    task = load(data_root, context=64)
    assert task.objective.outputs == 65
    targets = task.data.test[:][1]
    assert int((targets != NOT_SCORED).sum()) == 111_540
    assert len(task.data.train) == (1_115_394 - 111_540 - 1) // 64  # type: ignore[arg-type]
