"""Rank 0's previews at every evaluation: they take no training time and cannot end a run."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from runs import mode, run
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_agent.data.classification import classification
from ddp_agent.data.task import Data, Presentation, Task
from ddp_agent.outputs.metrics_file import read_metrics
from ddp_agent.outputs.observer import Evaluation
from ddp_agent.training.previews import SHOWN, Previews, spread

CPU = torch.device("cpu")
ANIMALS = ("ant", "bee", "cow")


class Recorder:
    """A TensorBoard that keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: dict[str, list[tuple[int, Any]]] = {}

    def picture(self, tag: str, draw: Callable[[], Tensor | None], step: int) -> None:
        self.shown.setdefault(tag, []).append((step, draw()))

    def text(self, tag: str, text: str, step: int) -> None:
        self.shown.setdefault(tag, []).append((step, text))


def changed(given: Task, **more: Any) -> Task:
    names = ("data", "objective", "presentation")
    parts: dict[str, Any] = {name: getattr(given, name) for name in names}
    for name, part in parts.items():
        parts[name] = replace(part, **{key: value for key, value in more.items() if hasattr(part, key)})
    return replace(given, **parts)


def task(*shape: int, **more: Any) -> Task:
    """Samples are noise."""
    data = TensorDataset(torch.randn(60, *shape), torch.arange(60) % 3)
    held = Data(train=data, test=data, input_shape=shape, sha256="")
    found = classification(held, outputs=3, loss="cross_entropy", presentation=Presentation(class_names=ANIMALS))
    return changed(found, **more)


class Always(nn.Module):
    """Takes everything for a bee."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training
        return self.bias.expand(len(inputs), 3)


def previewed(given: Task, *steps: int, last_step: int = 99) -> dict[str, list[tuple[int, Any]]]:
    recorder, model = Recorder(), Always()
    previews = Previews(given, recorder, CPU, last_step=last_step)  # type: ignore[arg-type]
    for step in steps:
        previews.evaluated(
            Evaluation(step=step, values={}, model=model, confusion=20 * torch.eye(3, dtype=torch.int64))
        )
        assert model.training
    return recorder.shown


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (12, 30), (1, 12, 30)])
def test_inputs_that_look_like_images_are_drawn(shape: tuple[int, ...]) -> None:
    shown = previewed(task(*shape), 3, 6)
    assert set(shown) == {"predictions", "confusion", "classes"}
    (first, one), (second, other) = shown["predictions"]
    assert (first, second) == (3, 6)
    assert torch.equal(one, other)  # the same samples every time


def test_a_transform_s_output_is_drawn_as_the_task_says() -> None:
    def to_rows(inputs: Tensor) -> Tensor:
        return inputs.view(-1, 1, 10, 20)

    flat = task(200, transform=to_rows)
    as_image, as_spectrogram = (
        previewed(changed(flat, look=look), 1)["predictions"][0][1] for look in ("image", "spectrogram")
    )
    assert as_image.shape == as_spectrogram.shape
    colourful = (as_spectrogram[..., 0] != as_spectrogram[..., 1]).float().mean()
    assert colourful > 0.3 > (as_image[..., 0] != as_image[..., 1]).float().mean()


def test_texts_are_shown_with_labels_and_guesses() -> None:
    shown = previewed(task(64, test_texts=[f"text {i}" for i in range(60)]), 1)
    told = shown["predictions"][0][1].split("\n\n")
    assert len(told) == SHOWN
    assert told[:2] == ["text 0\n  ant, taken for bee", "text 2\n  cow, taken for bee"]
    assert told[5].splitlines() == ["text 12", "  ant, taken for bee"]
    assert any(each.endswith("  bee") for each in told)


def test_rows_of_features_have_no_predictions_to_look_at() -> None:
    assert set(previewed(task(10), 1)) == {"confusion", "classes"}


def test_what_a_model_makes_is_shown_until_the_last_step_whose_file_it_is() -> None:
    with_sample = task(10, sample=lambda model: type(model).__name__)
    assert previewed(with_sample, 2, 4, 6, last_step=6)["sample"] == [(2, "Always"), (4, "Always")]


@pytest.mark.parametrize("count", [1, 2, SHOWN - 1, SHOWN, SHOWN + 1, 10_000])
def test_samples_are_spread_over_the_whole_set(count: int) -> None:
    places = spread(count)
    assert len(set(places)) == len(places) == min(count, SHOWN)
    assert places[0] == 0 and count - count / len(places) - 1 <= places[-1] < count


def test_random_streams_stay_as_they_were() -> None:
    torch.manual_seed(0)
    given = task(1, 8, 8)
    before = torch.get_rng_state()
    previewed(given, 1)
    assert torch.equal(torch.get_rng_state(), before)


def fails(*_: object) -> Any:
    raise RuntimeError("out of paint")


@pytest.mark.parametrize("part", ["guess", "sample", "transform"])
def test_what_fails_is_said_once_and_ends_the_pictures_alone(part: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        previewed(task(1, 8, 8, **{part: fails}), 1, 2)
    assert caplog.text.count("no more pictures and texts: RuntimeError: out of paint; training goes on") == 1


# In whole runs


def shown_in(run_dir: Path) -> dict[str, list[int]]:
    """The steps of every picture and text, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
    texts = {tag.removesuffix("/text_summary"): reader.Tensors(tag) for tag in reader.Tags()["tensors"]}
    pictures = {tag: reader.Images(tag) for tag in reader.Tags()["images"]}
    return {tag: [event.step for event in events] for tag, events in (texts | pictures).items()}


def test_a_run_shows_all_of_it_and_tells_each_class(ranks2: RankPool, tmp_path: Path) -> None:
    summary = ranks2.run(run, *mode("local_sgd", "eval_every=3"), str(tmp_path))[0]
    assert isinstance(summary, dict), summary
    shown = shown_in(tmp_path)
    assert [shown[tag] for tag in ("predictions", "confusion", "classes")] == [[3, 6, 8]] * 3
    classes = [f"class_accuracy/{digit}" for digit in range(10)]
    records = [record for record in read_metrics(tmp_path / "metrics.jsonl", 99) if "test_accuracy" in record]
    assert all(record.keys() >= set(classes) for record in records)
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert [kept[key] for key in classes] == [records[-1][key] for key in classes]
    assert sum(kept[key] for key in classes) / 10 == pytest.approx(kept["test_metric"], abs=0.01)  # even classes


def with_bad_sample(given: Task) -> Task:
    return changed(given, guess=fails_to_guess)


def fails_to_guess(output: Tensor) -> Tensor:
    if len(output) == SHOWN:
        raise RuntimeError("out of paint")
    return output.argmax(1)


def test_a_run_whose_pictures_fail_ends_like_any_other(ranks2: RankPool, tmp_path: Path) -> None:
    only_previews_have_as_many = f"global_batch_size={2 * SHOWN - 2}"
    choices = mode("allreduce", "eval_every=3", only_previews_have_as_many)
    plain = ranks2.run(run, *choices, str(tmp_path / "plain"))[0]
    failed = ranks2.run(run, *choices, str(tmp_path / "failed"), 0, with_bad_sample)[0]
    assert isinstance(plain, dict) and isinstance(failed, dict), failed
    assert failed["test_loss"] == plain["test_loss"]
    assert "predictions" not in shown_in(tmp_path / "failed")
    assert (tmp_path / "failed" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()


NAP_S = 0.5


def napping(given: Task) -> Task:
    return changed(given, sample=nap)


def nap(model: nn.Module) -> str:
    time.sleep(NAP_S)
    return "awake"


def test_the_time_is_nobodys_training_time(ranks2: RankPool, tmp_path: Path) -> None:
    """The other rank waits in its evaluation, too: of the rank that trained longest, the nap is evaluation."""
    summary = ranks2.run(run, *mode("allreduce", "eval_every=4"), str(tmp_path), 0, napping)[0]
    assert isinstance(summary, dict), summary
    assert summary["eval_s"] >= NAP_S
