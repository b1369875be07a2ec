"""Deletion of old checkpoints, and writing beside training: the state at the time of the call is saved."""

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from checkpoint_cases import FINGERPRINT, load, names
from rank_pool import RankPool
from runs import mode, run

from ddp_agent.checkpoint import saving, writer
from ddp_agent.checkpoint.folder import manifest_of
from ddp_agent.checkpoint.writer import Writer, copied
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.errors import CheckpointError

METRICS = {5: 0.2, 10: 0.9, 15: None, 20: 0.9, 25: 0.1}


def saved(directory: Path, **options: Any) -> list[str]:
    keeper = Writer(directory, LocalComm(), fingerprint=FINGERPRINT, **options)
    for step, metric in METRICS.items():
        keeper.save(step, {"step": step}, {"metric": metric, "metric_name": "m", "higher_is_better": True})
    keeper.wait()
    return names(directory)


@pytest.mark.parametrize("beside", [False, True])
def test_the_newest_and_the_best_stay(tmp_path: Path, beside: bool) -> None:
    """The first of equally good checkpoints counts as the best."""
    options: dict[str, Any] = {"keep": 2, "beside_training": beside}
    assert saved(tmp_path / "a", **options) == ["step-00000020", "step-00000025"]
    assert saved(tmp_path / "b", **options, keep_best=True) == ["step-00000010", "step-00000020", "step-00000025"]


def test_the_state_is_that_of_the_moment_though_training_goes_on(tmp_path: Path) -> None:
    weights = torch.arange(6.0)
    state = {"weights": weights, "groups": [{"momentum": weights.view(2, 3)}], "pair": (weights[1:], 3)}
    gate, real = threading.Event(), saving.save

    def late(*args: Any, **options: Any) -> Any:
        assert gate.wait(20)
        return real(*args, **options)

    keeper = Writer(tmp_path, LocalComm(), fingerprint=FINGERPRINT, keep=1, beside_training=True)
    with mock.patch.object(writer, "save", late):
        keeper.save(5, state, {})
        assert names(tmp_path) == []  # returned before anything was written
        weights.zero_()
        gate.set()
        keeper.wait()
    loaded = load(tmp_path)
    assert loaded is not None
    assert loaded[1]["weights"].tolist() == list(range(6))
    assert loaded[1]["groups"][0]["momentum"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded[1]["pair"][0].tolist() == [1, 2, 3, 4, 5]


def test_a_copy_shares_nothing_and_forgets_no_type() -> None:
    tensor = torch.ones(3, requires_grad=True)
    state = {"a": [tensor], "b": (tensor, 1, None, "x"), 7: {"c": 0.5}}
    twin = copied(state)
    with torch.no_grad():
        tensor.zero_()
    assert (twin["a"][0].tolist(), type(twin["b"]), twin["b"][1:], twin[7]) == (
        [1] * 3,
        tuple,
        (1, None, "x"),
        {"c": 0.5},
    )
    assert not twin["a"][0].requires_grad


def test_what_went_wrong_beside_training_is_raised_by_the_next_call_and_only_once(tmp_path: Path) -> None:
    keeper = Writer(tmp_path, LocalComm(), fingerprint=FINGERPRINT, keep=1, beside_training=True)
    keeper.save(5, {"path": tmp_path}, {})
    with pytest.raises(CheckpointError, match=r"step-00000005 was not saved.*state\['path'\]"):
        keeper.save(10, {"step": 10}, {})
    keeper.wait()
    keeper.save(15, {"step": 15}, {})
    keeper.wait()
    assert names(tmp_path) == ["step-00000015"]


def weights_of(path: Path) -> dict[str, list[bytes]]:
    """Return each rank's parameters, by checkpoint."""
    weights = {}
    for folder in sorted((path / "checkpoints").iterdir()):
        states = [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank-*.pt"))]
        weights[folder.name] = [state["weights"][0].numpy().tobytes() for state in states]
    return weights


def test_a_run_saves_the_same_beside_training(ranks2: RankPool, tmp_path: Path) -> None:
    options = ("checkpoint_every=2", "keep_checkpoints=9")
    for beside in ("false", "true"):
        summaries = ranks2.run(run, *mode("local_sgd", *options, f"async_checkpoints={beside}"), str(tmp_path / beside))
        assert isinstance(summaries[0], dict), summaries
    one, other = weights_of(tmp_path / "false"), weights_of(tmp_path / "true")
    assert list(one) == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    assert one == other
    assert len({weights for ranks in one.values() for weights in ranks}) > 4  # ranks and steps differ


def test_a_run_keeps_its_best(ranks2: RankPool, tmp_path: Path) -> None:
    """`lr` grows until nothing is learnt. The best model comes early and is saved although no checkpoint is due."""
    options = ("keep_best_checkpoint=true", "keep_checkpoints=1", "eval_every=1", "optimizer.lr=0.5")
    summary = ranks2.run(run, *mode("local_sgd", *options), str(tmp_path))[0]
    kept = {path.name: manifest_of(path).details for path in (tmp_path / "checkpoints").iterdir()}
    assert "step-00000008" in kept
    assert max(details["metric"] or 0 for details in kept.values()) == summary["best_metric"] or len(kept) == 1
