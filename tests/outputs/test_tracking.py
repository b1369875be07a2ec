"""metrics.jsonl is whole and true, TensorBoard says the same, and neither can stop a training."""

import inspect
import json
import logging
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from records import Records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from ddp_agent.outputs.console import ConsoleProgress
from ddp_agent.outputs.observer import Evaluation, Observer, Result, Start
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History
from ddp_agent.outputs.tracking import MetricsLog, TensorBoard
from ddp_agent.training.previews import Previews
from ddp_agent.training.profiling import Trace

SUMMARY = {"steps": 30, "test_metric": 0.9, "train_s": 2.5, "target": 0.99, "time_to_target_s": None}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensorboard(path: Path) -> Any:
    return read_events(path / "tensorboard")


def read_events(path: Path) -> Any:
    reader = EventAccumulator(str(path), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return reader.Reload()


def series(reader: Any, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, pytest.approx(event.value)) for event in reader.Scalars(tag)]


def text(reader: Any, tag: str) -> str:
    event = reader.Tensors(f"{tag}/text_summary")[-1]
    return str(event.tensor_proto.string_val[0].decode())


def run_steps(tracker: Records, first: int, last: int, model: nn.Module) -> None:
    """Five seconds a step, 40 MB a step; logged every step, evaluated every second one."""
    for step in range(first, last + 1):
        with torch.no_grad():
            next(model.parameters()).fill_(step)
        tracker.log(step, {"train_loss": 1 / step})
        if step % 2 == 0:
            values = {"test_accuracy": step / 100, "test_loss": 2 / step}
            tracker.evaluation(step, values, train_s=5.0 * step, payload_bytes=40_000_000 * step, model=model)
            tracker.board.text("sample", f"after {step}", step)


@contextmanager
def disk_full_beyond(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a write that would is cut short, the next fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_step_is_one_object_on_disk_at_once(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.log(10, {"train_loss": torch.tensor(0.5), "lr": 0.1})
        assert [record["train_loss"] for record in records(tmp_path)] == [0.5]
        tracker.evaluation(10, {"test_accuracy": 0.9}, train_s=1.5, payload_bytes=2000)
        tracker.log(20, {"train_loss": 0.25})
        first, second = records(tmp_path)
        assert first.pop("unix_s") > 1e9
        assert second.pop("unix_s") > 1e9
        expected = {"step": 10, "train_loss": 0.5, "lr": 0.1, "test_accuracy": 0.9}
        assert first == {**expected, "train_s": 1.5, "payload_bytes": 2000}
        assert second == {"step": 20, "train_loss": 0.25}
        tracker.close()


def test_a_shorter_second_version_of_a_step_leaves_no_rest(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.log(1, {"loss": 0.123456789012345})
        tracker.log(1, {"loss": 1.0})
        tracker.close()
    assert [record["loss"] for record in records(tmp_path)] == [1.0]


def test_numbers_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.log(1, {"train_loss": float("nan"), "norm": torch.tensor(float("inf")), "lr": 0.1})
        tracker.close()
    assert "NaN" not in run.metrics.read_text()
    assert {**records(tmp_path)[0], "unix_s": 0} == {
        "step": 1,
        "unix_s": 0,
        "train_loss": None,
        "norm": None,
        "lr": 0.1,
    }
    assert tensorboard(tmp_path).Tags()["scalars"] == ["lr"]


def test_tensorboard_mirrors_every_number_and_draws_the_metric_three_ways(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        run_steps(tracker, 1, 6, small_model())
        tracker.close()
    reader, lines = tensorboard(tmp_path), records(tmp_path)
    keys = {key for line in lines for key in line} - {"step", "unix_s"}
    for key in keys:
        assert series(reader, key) == [(line["step"], line[key]) for line in lines if key in line]
    assert series(reader, "test_accuracy/by_seconds") == [(10, 0.02), (20, 0.04), (30, 0.06)]
    assert series(reader, "test_accuracy/by_megabytes") == [(80, 0.02), (160, 0.04), (240, 0.06)]
    assert set(reader.Tags()["scalars"]) == keys | {"test_accuracy/by_seconds", "test_accuracy/by_megabytes"}


def test_the_relative_axis_is_training_time_exactly(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        for step, train_s in enumerate((0.25, 1.5, 4.125)):
            tracker.evaluation(step, {"test_accuracy": 0.5}, train_s=train_s, payload_bytes=0)
        tracker.close()
    first, second, third = (event.wall_time for event in tensorboard(tmp_path).Scalars("test_accuracy/by_seconds"))
    assert (second - first, third - first) == pytest.approx((1.25, 3.875), abs=1e-5)


def test_histograms_show_parameters_and_what_changed_since_the_last_evaluation(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        for step, weight in enumerate((1.0, 1.5, -2.0)):
            with torch.no_grad():
                model.weight.fill_(weight)
            if step == 0:
                tracker.begin(model, {})
            else:
                tracker.evaluation(step, {}, train_s=0.0, payload_bytes=0, model=model)
        tracker.close()
    reader = tensorboard(tmp_path)

    def means(tag: str) -> list[tuple[int, float]]:
        return [(h.step, h.histogram_value.sum / h.histogram_value.num) for h in reader.Histograms(tag)]

    assert means("parameters/weight") == [(1, 1.5), (2, -2.0)]
    assert means("updates/weight") == [(1, 0.5), (2, -3.5)]


def test_large_parameters_are_sampled_and_the_same_places_compared(tmp_path: Path) -> None:
    model = nn.Embedding(30_011, 1)
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.begin(model, {})
        with torch.no_grad():
            model.weight.add_(3.0)
        tracker.evaluation(1, {}, train_s=0.0, payload_bytes=0, model=model)
        tracker.close()
    (parameters,) = tensorboard(tmp_path).Histograms("parameters/weight")
    assert 1000 < parameters.histogram_value.num <= 4096
    (updates,) = tensorboard(tmp_path).Histograms("updates/weight")
    assert (updates.histogram_value.min, updates.histogram_value.max) == pytest.approx((3.0, 3.0), abs=1e-5)


def test_weights_that_blew_up_are_left_out_of_histograms(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    with RunDirectory(tmp_path) as run, torch.no_grad():
        tracker = Records(run, "accuracy")
        model.weight[0, 0] = float("nan")
        model.bias.fill_(float("inf"))
        tracker.evaluation(1, {}, train_s=0.0, payload_bytes=0, model=model)
        tracker.close()
    (weight,) = tensorboard(tmp_path).Histograms("parameters/weight")
    assert weight.histogram_value.num == 3


def test_a_model_of_many_kinds_of_parameters_has_histograms(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), nn.Linear(2, 2))
    model.register_parameter("empty", nn.Parameter(torch.empty(0)))
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.evaluation(1, {}, train_s=0.0, payload_bytes=0, model=model)
        tracker.evaluation(2, {}, train_s=0.0, payload_bytes=0, model=nn.ReLU())
        tracker.evaluation(
            3, {}, train_s=0.0, payload_bytes=0, model=nn.ModuleDict({"bf16": nn.Linear(2, 2).bfloat16()})
        )
        tracker.close()
    tags = tensorboard(tmp_path).Tags()["histograms"]
    assert tags == [
        f"parameters/{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias", "bf16.weight", "bf16.bias")
    ]


def test_model_and_config_are_readable_text_without_secrets(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.begin(small_model(), {"sync": {"period": 16}, "hub": {"token": "canary-1"}})
        tracker.finish(SUMMARY, {"sync.period": 16, "hub": {"api_key": "canary-2"}})
    reader = tensorboard(tmp_path)
    assert "| 0 | Linear | weight 4×3, bias 4 | 16 |" in text(reader, "model")
    assert '"period": 16' in text(reader, "config")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"canary" not in file.read_bytes()


def test_a_sample_of_the_inputs_shows_what_layers_give_and_cost(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.begin(small_model(), {}, torch.zeros(1, 3))
        tracker.close()
    assert "| 0 | Linear | weight 4×3, bias 4 | 16 | 4 | 24 |" in text(tensorboard(tmp_path), "model")


def test_a_text_is_shown_as_it_is_line_by_line(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "nats")
        tracker.board.text("sample", "To be,\n*or* not", 7)
        tracker.close()
    reader = tensorboard(tmp_path)
    assert text(reader, "sample") == "    To be,\n    *or* not"
    assert reader.Tensors("sample/text_summary")[-1].step == 7


def test_each_custom_chart_picks_exactly_its_series(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "top.1")
        tracker.begin(small_model(), {})
        tracker.close()
    (event,) = tensorboard(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    picked = {
        chart.title: [tag for tag in MEASURED if any(re.match(pattern, tag) for pattern in chart.multiline.tag)]
        for category in layout.category
        for chart in category.chart
    }
    assert picked == {
        "train and test": ["train_loss", "test_loss"],
        "by step": ["test_top.1"],
        "by seconds of training": ["test_top.1/by_seconds"],
        "by megabytes handed to collectives": ["test_top.1/by_megabytes"],
        "bytes": ["payload_bytes", "wire_bytes"],
        "exposed seconds": ["exposed_comm_s", "straggler_wait_s"],
        "period": ["period"],
        "consensus distance": ["consensus_distance"],
        "relative to the weights": ["consensus_relative"],
        "cosine between ranks": ["gradient_cosine", "change_cosine"],
        "mean change of a period": ["pseudo_gradient_norm"],
        "critical batch in samples": ["critical_batch_samples"],
    }


MEASURED = [
    "train_loss", "test_loss", "test_loss_local", "test_top.1", "test_top51", "test_top.1/by_seconds",
    "test_top.1/by_megabytes", "payload_bytes", "wire_bytes", "exposed_comm_s", "straggler_wait_s",
    "consensus_distance",
    "consensus_relative", "gradient_cosine", "change_cosine", "pseudo_gradient_norm", "critical_batch_samples", "lr",
    "period", "change_cosine/0.weight",
]  # fmt: skip


def test_one_hparams_row_in_the_same_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.begin(small_model(), {})
        tracker.finish(
            SUMMARY, {"sync": {"name": "diloco", "period": 16}, "compile": True, "resume": None, "h": (2, 3)}
        )
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    reader = tensorboard(tmp_path)
    assert series(reader, "summary/test_metric") == [(30, 0.9)]
    assert "summary/time_to_target_s" not in reader.Tags()["scalars"]

    def plugin(tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(reader.SummaryMetadata(tag).plugin_data.content)

    start = plugin("_hparams_/session_start_info").session_start_info
    values = {key: value.string_value or value.number_value for key, value in start.hparams.items()}
    assert values == {"sync.name": "diloco", "sync.period": 16, "compile": "true", "h": "[2, 3]"}
    experiment = plugin("_hparams_/experiment").experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["summary/test_metric", "summary/train_s"]
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"sync.period"}


@pytest.mark.parametrize("more", [{}, {"sync.period": 16}])
def test_the_mode_is_among_the_columns_that_the_hparams_tab_shows(tmp_path: Path, more: dict[str, Any]) -> None:
    """Also where the run that it takes its columns from has no period."""
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.begin(small_model(), {})
        given = {"accumulation_steps": 1, "cadence": "fixed", "dataset": "digits", "sync": "diloco", "seed": 1}
        tracker.finish(SUMMARY, given | more | {"lr": 0.1, "reducer": "dense"})
    data = tensorboard(tmp_path).SummaryMetadata("_hparams_/experiment").plugin_data.content
    infos = HParamsPluginData.FromString(data).experiment.hparam_infos
    shown = sorted(infos, key=lambda info: (not info.differs, info.name))[:5]  # as TensorBoard sorts them
    assert [info.name for info in shown] == ["lr", "reducer", "seed", "sync", "sync.period"]


def interrupted_run(path: Path) -> list[dict[str, Any]]:
    """Ten steps, killed while the eleventh was being written."""
    with RunDirectory(path) as run:
        tracker = Records(run, "accuracy")
        model = small_model()
        tracker.begin(model, {})
        run_steps(tracker, 1, 10, model)
        tracker.close()
    lines = records(path)
    with run.metrics.open("a") as file:
        file.write('{"step": 11, "train_l')
    started_at(path, 1_000_000_000, b"\x07\x00\x00")
    return lines


def started_at(path: Path, unix_s: int, half_a_record: bytes = b"") -> None:
    """Dates the newest event file back: attempts are seconds apart, and readers go by the names."""
    newest = max((path / "tensorboard").iterdir())
    newest.with_name(f"events.out.tfevents.{unix_s}").write_bytes(newest.read_bytes() + half_a_record)
    newest.unlink()


def resume(source: Path, path: Path, first: int, last: int) -> None:
    with RunDirectory(path, restart=source == path) as run:
        tracker = Records(run, "accuracy", history=History.read(source, first - 1))
        model = small_model()
        tracker.begin(model, {})
        run_steps(tracker, first, last, model)
        tracker.close()


@pytest.mark.parametrize("same_directory", [True, False])
def test_a_run_resumed_twice_reads_like_one_that_was_never_interrupted(tmp_path: Path, same_directory: bool) -> None:
    before = interrupted_run(tmp_path / "a")
    second, third = ("a", "a") if same_directory else ("b", "c")
    resume(tmp_path / "a", tmp_path / second, 8, 12)
    assert records(tmp_path / second)[:7] == before[:7]
    started_at(tmp_path / second, 1_000_000_001)
    resume(tmp_path / second, tmp_path / third, 13, 14)
    lines, reader = records(tmp_path / third), tensorboard(tmp_path / third)
    assert [line["step"] for line in lines] == list(range(1, 15))
    replayed = reader.Scalars("train_loss")[:7]
    assert [event.wall_time for event in replayed] == [line["unix_s"] for line in before[:7]]
    assert series(reader, "train_loss") == [(step, 1 / step) for step in range(1, 15)]
    # 35 s and 280 MB at the checkpoint lie beyond its step, 7: a purge by step would have torn these two
    assert series(reader, "test_accuracy/by_seconds") == [(10 * i, 2 * i / 100) for i in range(1, 8)]
    assert series(reader, "test_accuracy/by_megabytes") == [(80 * i, 2 * i / 100) for i in range(1, 8)]
    assert [event.step for event in reader.Histograms("parameters/0.weight")] == list(range(2, 15, 2))
    assert [event.step for event in reader.Histograms("updates/0.weight")] == list(range(2, 15, 2))
    assert "Linear" in text(reader, "model")
    newest = read_events(max((tmp_path / third / "tensorboard").iterdir()))  # this reader purges no texts of old files
    assert [event.step for event in newest.Tensors("sample/text_summary")] == list(range(2, 15, 2))
    assert text(newest, "sample") == "    after 14"
    assert len(newest.Tensors("model/text_summary")) == 1


def test_a_run_resumed_elsewhere_stays_as_it_was(tmp_path: Path) -> None:
    interrupted_run(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    resume(tmp_path / "a", tmp_path / "b", 8, 12)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_a_run_whose_records_are_gone_is_resumed_without_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    resume(tmp_path / "a", tmp_path / "b", 8, 9)
    assert [line["step"] for line in records(tmp_path / "b")] == [8, 9]
    assert series(tensorboard(tmp_path / "b"), "train_loss") == [(8, 1 / 8), (9, 1 / 9)]


def test_a_reader_that_watched_the_first_attempt_follows_the_second(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    reader = tensorboard(tmp_path)
    resume(tmp_path, tmp_path, 8, 8)
    reader.Reload()
    assert series(reader, "train_loss") == [(step, 1 / step) for step in range(1, 9)]


def test_a_restart_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with RunDirectory(tmp_path, restart=True) as run:
        tracker = Records(run, "accuracy", history=History.read(tmp_path, 0))
        tracker.log(1, {"train_loss": 5.0})
        tracker.close()
    assert [line["train_loss"] for line in records(tmp_path)] == [5.0]
    assert series(tensorboard(tmp_path), "train_loss") == [(1, 5.0)]


def test_an_evaluation_repeated_after_a_resume_stays_one_object(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with RunDirectory(tmp_path, restart=True) as run:
        tracker = Records(run, "accuracy", history=History.read(tmp_path, 4))
        tracker.evaluation(4, {"test_accuracy": 1.0}, train_s=20.0, payload_bytes=0)
        tracker.close()
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, 4]
    assert (records(tmp_path)[-1]["test_accuracy"], records(tmp_path)[-1]["train_loss"]) == (1.0, 0.25)


def test_a_full_disk_costs_metrics_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard's writer dies in its thread
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        model = small_model()
        tracker.log(1, {"train_loss": 1.0})
        with disk_full_beyond(run.metrics.stat().st_size + 80):
            for step in range(2, 60):
                tracker.evaluation(step, {"train_loss": 2.0}, train_s=0.0, payload_bytes=0, model=model)
        tracker.log(60, {})  # shorter than the piece of the line that was cut off
        tracker.finish(SUMMARY, {})
    assert tracker.metrics.lost_lines == 58
    assert [line["step"] for line in records(tmp_path)] == [1, 60]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert any("metrics.jsonl" in w for w in warnings)
    assert any("tensorboard" in w for w in warnings)


def test_a_full_device_from_the_first_line_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunDirectory(tmp_path) as run, open("/dev/full", "r+b", buffering=0) as full:
        tracker = Records(run, "accuracy")
        tracker.metrics._file._file, real = full, tracker.metrics._file._file
        real.close()
        for step in range(3):
            tracker.log(step, {"train_loss": 1.0})
        tracker.close()
    assert tracker.metrics.lost_lines == 3
    assert "No space left on device" in caplog.text
    assert len(tensorboard(tmp_path).Scalars("train_loss")) == 3


def test_any_error_of_tensorboards_writer_ends_the_mirror_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError("writer is gone")

    monkeypatch.setattr("ddp_agent.outputs.tensorboard.TensorBoardMirror.record", fails)
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        for step in range(3):
            tracker.log(step, {"train_loss": 1.0})
        tracker.finish(SUMMARY, {})
    assert len(records(tmp_path)) == 3
    assert caplog.text.count("writer is gone") == 1


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.finish(SUMMARY, {})
        tracker.close()


def test_the_text_of_the_final_model_is_shown_at_the_last_step(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        Records(run, "nats").finish(SUMMARY, {}, sample="the end")
    reader = tensorboard(tmp_path)
    assert text(reader, "sample") == "    the end"
    assert reader.Tensors("sample/text_summary")[-1].step == SUMMARY["steps"]


def test_an_observer_that_overrides_nothing_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """The base class is what other ranks and most subclasses rely on."""
    model, observer = small_model(), Observer()
    observer.begin(Start(model=model, config={}, step=0))
    observer.stepped(1)
    observer.logged(1, {})
    observer.evaluated(Evaluation(step=1, values={}, model=model))
    observer.checkpointed(1)
    observer.finished(Result(summary=SUMMARY, hparams={}, run_dir=Path("run")))
    observer.failed(RuntimeError())
    observer.close()
    assert capfd.readouterr() == ("", "")
    hooks = {name for name in vars(Observer) if not name.startswith("_")}
    for kind in (MetricsLog, TensorBoard, ConsoleProgress, Previews, Trace):
        own = {name for name in vars(kind) if not name.startswith("_")}
        assert own & hooks, kind
        for name in own & hooks:
            assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Observer, name)), (kind, name)
