"""A whole run: the files that it leaves, and options that hold in every mode."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool, RankProcesses
from run_states import recorded, same
from runs import EACH, MODES, config, mode, run
from torch import nn

from ddp_agent.checkpoint import export
from ddp_agent.checkpoint.manifest import Manifest
from ddp_agent.distributed.traffic import from_plain, total_bytes
from ddp_agent.errors import ConfigError
from ddp_agent.outputs.metrics_file import read_metrics
from ddp_agent.training.model import create_model
from ddp_agent.training.settings import parse

ALL_MODES = pytest.mark.parametrize("name", MODES)
SUMMARY_KEYS = """
    status dataset model sync reducer world_size seed steps samples params metric_name test_metric test_loss best_metric
    train_s wall_s data_s compute_s exposed_comm_s eval_s checkpoint_s syncs payload_bytes wire_bytes consensus_distance
    target time_to_target_s bytes_to_target samples_per_s torch_version device init_sha256 data_sha256 order_sha256
    straggler_wait_s collectives traffic higher_is_better peak_memory_bytes python_version platform cpus commit
    consensus_relative change_cosine gradient_cosine pseudo_gradient_norm critical_batch_samples
"""


@dataclass(frozen=True)
class Plain:
    """One run a mode without options, made once: its directory, and the summaries of two ranks."""

    path: Path
    summaries: list[dict[str, Any]]


@pytest.fixture(scope="session")
def plain_runs(rank_processes: RankProcesses, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plain]:
    @cache
    def made(name: str) -> Plain:
        path = tmp_path_factory.mktemp("plain") / name
        return Plain(path, RankPool(2, rank_processes).run(run, *mode(name), str(path)))

    return made


@ALL_MODES
def test_a_run_leaves_everything_behind(ranks2: RankPool, tmp_path: Path, name: str) -> None:
    summary, other = ranks2.run(run, *mode(name, "eval_every=3", "target=0.2"), str(tmp_path))
    assert isinstance(summary, dict)
    assert summary.keys() >= set(SUMMARY_KEYS.split())
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["traffic"] == summary["traffic"]
    assert {**written, "traffic": None} == pytest.approx({**summary, "traffic": None})
    stated = from_plain(written["traffic"])
    assert sum(each.calls for each in stated) == summary["collectives"]
    assert total_bytes(stated) == summary["payload_bytes"]
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "finished"
    assert summary["sync"] == name
    assert (summary["steps"], summary["samples"]) == (8, 8 * 48)
    assert recorded(tmp_path, "test_accuracy") == [3, 6, 8]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert Manifest.read(tmp_path / "checkpoints" / "step-00000008").step == 8
    assert other["test_metric"] == summary["test_metric"]


@ALL_MODES
def test_the_parts_of_the_time_sum_to_the_whole(ranks2: RankPool, tmp_path: Path, name: str) -> None:
    summary = ranks2.run(run, *mode(name, "eval_every=2", "checkpoint_every=3"), str(tmp_path))[0]
    parts = ("data_s", "compute_s", "exposed_comm_s", "eval_s", "checkpoint_s")
    assert all(summary[part] >= 0 for part in parts)
    assert sum(summary[part] for part in parts) == pytest.approx(summary["wall_s"], rel=1e-9)
    assert summary["train_s"] == pytest.approx(sum(summary[part] for part in parts[:3]), rel=1e-9)
    assert 0 <= summary["straggler_wait_s"] <= summary["exposed_comm_s"]


def test_modes_differ_in_nothing_but_the_mode(
    ranks2: RankPool, plain_runs: Callable[[str], Plain], tmp_path: Path
) -> None:
    keys = ("init_sha256", "data_sha256", "order_sha256", "samples", "steps", "params")
    summaries = [plain_runs(name).summaries[0] for name in MODES]
    found = {tuple(summary[key] for key in keys) for summary in summaries}
    assert len(found) == 1
    other_seed = ranks2.run(run, *mode("allreduce", "seed=1"), str(tmp_path / "seed"))[0]
    assert other_seed["init_sha256"] not in next(iter(found))  # control
    assert other_seed["order_sha256"] not in next(iter(found))


def exported(path: str) -> tuple[list[float], float]:
    """The outputs of the exported model on some inputs, and its accuracy on the test set."""
    model = export.load(path)
    cfg, choices = config()
    from ddp_agent.training.settings import parse

    task = parse(cfg, choices=choices, world_size=1).dataset.load()
    inputs, targets = task.data.test.tensors
    with torch.no_grad():
        output = model(inputs)
    return output[0].tolist(), (output.argmax(1) == targets).double().mean().item()


@ALL_MODES
def test_the_exported_model_is_the_one_that_was_scored(plain_runs: Callable[[str], Plain], name: str) -> None:
    plain = plain_runs(name)
    assert exported(str(plain.path))[1] == pytest.approx(plain.summaries[0]["test_metric"], abs=1e-12)


# Options hold in every mode.

HALF_SQUARED = ("optimizer=adamw", "dataset.loss=half_squared_error")


@ALL_MODES
@pytest.mark.parametrize(
    "options",
    [
        ("accumulation_steps=2", "clip_norm=0.5", "precision=bf16", "ema_decay=0.9", "evaluate_own=true"),
        ("precision=fp16", "consensus_every=null", "schedule=cosine", "schedule.warmup_steps=3", *HALF_SQUARED),
    ],
    ids=["bf16, accumulated, clipped", "fp16, scheduled"],
)
def test_options_hold_in_every_mode(
    ranks2: RankPool, plain_runs: Callable[[str], Plain], tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    plain = plain_runs(name).summaries[0]
    summary = ranks2.run(run, *mode(name, *options), str(tmp_path / "with"))[0]
    assert isinstance(summary, dict), summary
    for key in ("steps", "samples", "syncs", "payload_bytes"):
        assert summary[key] == plain[key], key
    assert summary["test_loss"] != plain["test_loss"]
    keys = {key for record in read_metrics(tmp_path / "with" / "metrics.jsonl", 99) for key in record}
    if "ema_decay=0.9" in options:
        assert keys >= {"ema_test_accuracy", "own_test_accuracy"}
        averaged, plain_model = export.load(tmp_path / "with" / "ema"), export.load(tmp_path / "with")
        assert not same(averaged.state_dict(), plain_model.state_dict())
    assert recorded(tmp_path / "with", "consensus_distance") == ([8] if "consensus_every=null" in options else [])


@pytest.mark.parametrize(
    "option",
    [
        *("clip_norm=0.01", "precision=bf16", "precision=fp16", "schedule=cosine", "optimizer=adamw"),
        *("schedule.warmup_steps=3", "dataset.loss=half_squared_error"),
    ],
)
def test_each_option_does_something(
    ranks2: RankPool, plain_runs: Callable[[str], Plain], tmp_path: Path, option: str
) -> None:
    summary = ranks2.run(run, *mode("local_sgd", option), str(tmp_path))[0]
    assert summary["test_loss"] != plain_runs("local_sgd").summaries[0]["test_loss"]


@pytest.mark.parametrize(("every", "looks"), [(4, 1), (400, 0)])
def test_the_summary_tells_how_far_apart_ranks_were_before_they_were_averaged(
    ranks2: RankPool, tmp_path: Path, every: int, looks: int
) -> None:
    """After the last step, which ends a period, the distance is 0: the summary has it only if nothing was measured."""
    summary = ranks2.run(run, *mode("local_sgd", f"consensus_every={every}"), str(tmp_path))[0]
    records = read_metrics(tmp_path / "metrics.jsonl", 99)
    measured = [record["consensus_distance"] for record in records if "change_cosine" in record]
    assert len(measured) == looks
    assert summary["consensus_distance"] == (measured[-1] if measured else 0)
    assert bool(measured) == (summary["consensus_distance"] > 0)


def test_a_norm_is_clipped_of_the_mean_over_ranks_and_micro_batches(
    ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    """One rank with the whole batch clips the same gradient, in each of eight steps."""
    clipped = ("clip_norm=0.05", "consensus_every=null")
    for name, options in {"plain": clipped, "accumulated": (*clipped, "accumulation_steps=2")}.items():
        one = ranks1.run(run, *mode("allreduce", *clipped), str(tmp_path / name / "one"))[0]
        two = ranks2.run(run, *mode("allreduce", *options), str(tmp_path / name / "two"))[0]
        assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-5)
        own = ranks2.run(run, *mode("independent", *options), str(tmp_path / name / "own"))[0]
        assert own["test_loss"] != pytest.approx(one["test_loss"], rel=1e-5)  # control: each clips its own


def run_compiled(cfg: dict[str, Any], choices: dict[str, str], path: str) -> tuple[dict[str, Any] | str, int]:
    """Run with dynamo's capture, without inductor's code generation (a C++ compiler and 20 s per model)."""
    from torch._dynamo.utils import counters

    compile_module = nn.Module.compile
    nn.Module.compile = partialmethod(compile_module, backend="eager")  # type: ignore[assignment,method-assign]
    torch._dynamo.reset()  # or an earlier test's graphs are used again, and none is counted
    counters.clear()
    try:
        return run(cfg, choices, path), counters["stats"]["unique_graphs"]
    finally:
        nn.Module.compile = compile_module  # type: ignore[method-assign]


@pytest.mark.parametrize("name", EACH)
def test_a_compiled_model_trains_alike_in_every_mode(
    ranks2: RankPool, plain_runs: Callable[[str], Plain], tmp_path: Path, name: str
) -> None:
    plain = plain_runs(name).summaries[0]
    compiled, graphs = ranks2.run(run_compiled, *mode(name, "compile=true"), str(tmp_path / "compiled"))[0]
    assert graphs > 0
    assert isinstance(compiled, dict), compiled
    assert compiled["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-5)
    assert (compiled["syncs"], compiled["payload_bytes"]) == (plain["syncs"], plain["payload_bytes"])
    assert isinstance(export.load(tmp_path / "compiled"), nn.Module)


def test_a_model_that_does_not_fit_the_data_is_refused_before_any_process_group() -> None:
    cfg, choices = config("model=resnet20", "dataset=article")
    settings = parse(cfg, choices=choices, world_size=1)
    with pytest.raises(ConfigError, match=r"model: .*expected images"):
        create_model(settings, settings.dataset.load())


def test_time_to_target(ranks2: RankPool, tmp_path: Path) -> None:
    reached = ranks2.run(run, *mode("local_sgd", "target=0.01", "eval_every=4"), str(tmp_path / "reached"))[0]
    assert reached["steps_to_target"] == 4
    assert 0 < reached["time_to_target_s"] < reached["train_s"]
    assert 0 < reached["bytes_to_target"] < reached["payload_bytes"]
    missed = ranks2.run(run, *mode("local_sgd", "target=1.1"), str(tmp_path / "missed"))[0]
    assert missed["time_to_target_s"] is missed["bytes_to_target"] is missed["steps_to_target"] is None


def test_batchnorm_is_recalibrated_for_evaluation(ranks2: RankPool, tmp_path: Path) -> None:
    """Ranks' own statistics (`local`) belong to other weights than the mean, so the score suffers."""
    options = ("model=resnet20", "recalibrate_batches=4", "max_steps=4", "optimizer.lr=0.01")
    found = {
        policy: ranks2.run(run, *mode("local_sgd", *options, f"sync.buffers={policy}"), str(tmp_path / policy))
        for policy in ("recalibrate", "average", "local")
    }
    for policy, summaries in found.items():
        assert all(isinstance(summary, dict) for summary in summaries), summaries
        assert (summaries[0]["test_loss"] == summaries[1]["test_loss"]) or policy == "local"
    assert found["recalibrate"][0]["payload_bytes"] < found["average"][0]["payload_bytes"]
    assert len({summaries[0]["test_loss"] for summaries in found.values()}) == 3
    assert exported(str(tmp_path / "recalibrate"))[1] == pytest.approx(found["recalibrate"][0]["test_metric"])


@pytest.mark.parametrize("log_every", [2, 99])
def test_numbers_that_are_not_finite_stop_the_run(ranks2: RankPool, tmp_path: Path, log_every: int) -> None:
    """The run stops in the step in which it happens, so that no checkpoint contains such numbers."""
    options = ("optimizer.lr=1e30", f"log_every={log_every}", "checkpoint_every=6")
    for message in ranks2.run(run, *mode("allreduce", *options), str(tmp_path)):
        assert message.startswith("NonFiniteError: in step ")
        assert "nothing of that step is applied or saved" in message
    assert not (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob("checkpoints/step-*"))
