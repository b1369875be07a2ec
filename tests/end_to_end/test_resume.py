"""A resumed run ends bit for bit like an uninterrupted one."""

import shutil
from pathlib import Path

import pytest
from rank_pool import RankPool
from run_states import recorded, same, states, training_state
from runs import EACH, config, mode, run


def continued_from(whole: Path, step: int, path: Path) -> Path:
    """A directory that holds of a run what it had at `step`, as if it had been killed then."""
    shutil.copytree(whole, path, ignore=shutil.ignore_patterns("step-*", ".lock"))
    checkpoint = f"checkpoints/step-{step:08d}"
    shutil.copytree(whole / checkpoint, path / checkpoint)
    (path / "summary.json").unlink()
    return path


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", EACH)
def test_resume_is_bitwise_at_every_step(name: str, size: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each resume runs in a new directory, from a checkpoint that the previous resumed run wrote."""
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    options = ("checkpoint_every=1", "keep_checkpoints=99", "optimizer=adamw", "ema_decay=0.9")
    assert isinstance(pool.run(run, *mode(name, *options), str(tmp_path / "whole"))[0], dict)
    expected = [training_state(state) for state in states(tmp_path / "whole", 8)]
    before = tmp_path / "whole"
    for step in range(1, 5):
        source = continued_from(before, step, tmp_path / f"killed {step}")
        target = tmp_path / f"resumed {step}"
        cfg, choices = mode(name, *options)
        summary = pool.run(run, cfg | {"resume": str(source)}, choices, str(target))[0]
        assert isinstance(summary, dict), summary
        assert same([training_state(state) for state in states(target, 8)], expected), step
        model, whole = (path / "model.safetensors" for path in (target, tmp_path / "whole"))
        assert model.read_bytes() == whole.read_bytes()
        before = target


def test_a_resumed_run_counts_on(ranks2: RankPool, tmp_path: Path) -> None:
    options = ("checkpoint_every=1", "keep_checkpoints=99")
    whole = ranks2.run(run, *mode("local_sgd", *options), str(tmp_path / "whole"))[0]
    source = continued_from(tmp_path / "whole", 3, tmp_path / "killed")
    resumed = ranks2.run(run, *mode("local_sgd", *options, f"resume={source}"), str(tmp_path / "resumed"))[0]
    for key in ("steps", "samples", "syncs", "payload_bytes", "wire_bytes", "test_metric", "init_sha256"):
        assert resumed[key] == whole[key], key
    assert recorded(tmp_path / "resumed") == recorded(tmp_path / "whole") == [2, 4, 6, 8]


def test_a_restarted_attempt_finds_its_own_checkpoint(ranks2: RankPool, tmp_path: Path) -> None:
    options = ("checkpoint_every=1", "keep_checkpoints=99")
    whole = ranks2.run(run, *mode("diloco", *options), str(tmp_path / "whole"))[0]
    killed = continued_from(tmp_path / "whole", 5, tmp_path / "killed")
    restarted = ranks2.run(run, *mode("diloco", *options), str(killed), 1)[0]
    assert restarted["test_loss"] == whole["test_loss"]
    assert same(*([training_state(s) for s in states(path, 8)] for path in (killed, tmp_path / "whole")))


def test_a_restart_before_the_first_checkpoint_starts_from_scratch(ranks2: RankPool, tmp_path: Path) -> None:
    """Dropout and BatchNorm would tell if anything had been drawn or trained before."""
    ranks2.run(run, *mode("allreduce", "model=resnet20", "max_steps=2"), str(tmp_path / "whole"))
    cfg, choices = mode("allreduce", "model=resnet20", "max_steps=2")
    ranks2.run(run, cfg, choices, str(tmp_path / "restarted"), 1)
    assert same(*([training_state(s) for s in states(tmp_path / path, 2)] for path in ("whole", "restarted")))


def test_a_longer_run_goes_on_from_a_finished_one(ranks2: RankPool, tmp_path: Path) -> None:
    """The last checkpoint comes before the flush: eight steps and then four more are twelve."""
    ranks2.run(run, *mode("local_sgd", "max_steps=6"), str(tmp_path / "six"))
    longer = mode("local_sgd", f"resume={tmp_path / 'six'}")
    ranks2.run(run, *longer, str(tmp_path / "longer"))
    ranks2.run(run, *mode("local_sgd"), str(tmp_path / "whole"))
    assert same(*([training_state(s) for s in states(tmp_path / path, 8)] for path in ("longer", "whole")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("model.hidden=[32]",), "model"),
        (("sync=diloco",), "sync"),
        (("optimizer.lr=0.5",), "optimizer"),
        (("seed=3",), "seed"),
        (("reducer=bf16", "sync=diloco"), "reducer"),
        (("max_steps=4",), "max_steps: found 4, expected at least the checkpoint's step 8"),
        ((), "has finished its 8 steps; to train on, type a larger max_steps as well, such as max_steps=16"),
    ],
)
def test_resume_of_another_run_is_refused(
    ranks2: RankPool, tmp_path: Path, change: tuple[str, ...], named: str
) -> None:
    ranks2.run(run, *mode("local_sgd"), str(tmp_path / "first"))
    before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
    overrides = ["sync=local_sgd", "sync.period=4"] if not any("sync=" in item for item in change) else []
    messages = ranks2.run(run, *config(*overrides, *change, f"resume={tmp_path / 'first'}"), str(tmp_path / "second"))
    assert len(set(messages)) == 1
    assert named in messages[0]
    assert ("leave resume out to start another one" in messages[0]) == ("belongs to another run" in messages[0])
    assert {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()} == before


def test_another_world_size_is_refused(ranks2: RankPool, ranks3: RankPool, tmp_path: Path) -> None:
    ranks2.run(run, *mode("local_sgd"), str(tmp_path / "first"))
    message = ranks3.run(run, *mode("local_sgd", f"resume={tmp_path / 'first'}"), str(tmp_path / "second"))[0]
    assert "2" in message
    assert "3" in message
    assert message.startswith("CheckpointError")
