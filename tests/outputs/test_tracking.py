"""Records of a run: metrics.jsonl is whole and true, and TensorBoard shows the same."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from event_files import SUMMARY, records, run_steps, series, small_model, tensorboard, text
from records import Records
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from ddp_agent.outputs.console import ConsoleProgress
from ddp_agent.outputs.observer import Evaluation, Observer, Result, Start
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tracking import MetricsLog, TensorBoard
from ddp_agent.training.previews import Previews
from ddp_agent.training.profiling import Trace


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
    first = {f"0_test_accuracy/by_{unit}" for unit in ("step", "time_ms", "traffic_kB")}
    assert set(reader.Tags()["scalars"]) == keys | {"test_accuracy/by_seconds", "test_accuracy/by_megabytes"} | first
    assert set(sorted(reader.Tags()["scalars"])[:3]) == first, "TensorBoard opens on the tag that is sorted first"
    assert series(reader, "0_test_accuracy/by_step") == series(reader, "test_accuracy")


def test_a_run_of_a_second_and_a_megabyte_is_a_curve_in_each_axis(tmp_path: Path) -> None:
    """Whole seconds and megabytes, which older tags keep, would put all of its evaluations into one place."""
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        for step in (1, 2, 3):
            tracker.evaluation(step, {"test_accuracy": step / 10}, train_s=step / 8, payload_bytes=1500 * step)
        tracker.close()
    reader = tensorboard(tmp_path)
    assert series(reader, "0_test_accuracy/by_time_ms") == [(125, 0.1), (250, 0.2), (375, 0.3)]
    assert series(reader, "0_test_accuracy/by_traffic_kB") == [(2, 0.1), (3, 0.2), (4, 0.3)]


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
        "by step": ["test_top.1"],
        "by milliseconds of training": ["0_test_top.1/by_time_ms"],
        "by kilobytes handed to collectives": ["0_test_top.1/by_traffic_kB"],
        "train and test": ["train_loss", "test_loss"],
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
    "test_top.1/by_megabytes", "0_test_top.1/by_time_ms", "0_test_top.1/by_traffic_kB",
    "payload_bytes", "wire_bytes", "exposed_comm_s", "straggler_wait_s",
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
