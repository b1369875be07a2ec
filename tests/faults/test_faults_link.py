"""A link that is down for a moment, down for good, or slow: two ranks in networks of their own, and the cable."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cable import Cable, CabledRun, why_not
from fault_points import Fault
from forked_torchrun import Outcome, run
from whole_runs import MODES, SMALL, Wholes, checkpoints

REASON = why_not()
pytestmark = [pytest.mark.faults, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
SLOW = Fault("step", "slow", rank=None)
TIMEOUT_S = 4.0
ENDLESS = ("max_steps=1000000", "eval_every=1000000", "consensus_every=null", f"timeout_s={TIMEOUT_S:g}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    yield cable
    cable.close()


@pytest.mark.parametrize("mode", ["allreduce", "streaming_diloco"])
def test_a_link_that_is_down_for_3_s_changes_no_bit(mode: str, cable: Cable, tmp_path: Path, wholes: Wholes) -> None:
    with CabledRun(cable, tmp_path, [*SMALL, *MODES[mode]], [SLOW]) as running:
        running.wait_for_step(20)
        cable.pull()
        time.sleep(3)
        cable.mend()
        outcome = running.wait()
    assert outcome.codes == [[0, 0]], outcome.stderr
    assert "no sign of life" not in outcome.stderr
    wholes.assert_same_end(outcome, mode, 2)


@pytest.mark.parametrize(
    "typed", [("sync=allreduce",), ("sync=local_sgd", "sync.period=1000000")], ids=["met", "alone"]
)
def test_a_link_that_stays_down_is_an_error_within_the_timeout(
    typed: tuple[str, ...], cable: Cable, tmp_path: Path
) -> None:
    """On both sides, also where no rank waits for another."""
    with CabledRun(cable, tmp_path, [*SMALL, *typed, *ENDLESS], [SLOW]) as running:
        running.wait_for_step(20)
        cable.pull()
        pulled = time.monotonic()
        outcome = running.wait()
    assert time.monotonic() - pulled < TIMEOUT_S + 5
    assert outcome.codes == [[4, 4]], outcome.stderr
    assert_both_say_it(outcome)
    assert checkpoints(outcome.run_dir) == []


def assert_both_say_it(outcome: Outcome) -> None:
    said = [(outcome.run_dir.parent / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "Traceback" not in outcome.stderr
    assert len(re.findall(r"^rank 1: no sign of life for \d s, last seen in step \d+$", said[0], re.MULTILINE)) == 1
    assert len(re.findall(r"store has not answered for \d s: is the link down\?$", said[1], re.MULTILINE)) == 1
    assert (outcome.status["status"], outcome.status["rank"]) == ("failed", 1)


def test_a_very_slow_link_is_only_slow_and_the_run_says_how_slow(cable: Cable, tmp_path: Path) -> None:
    """2.6 kB over 64 kbit/s, six times."""
    typed = ["model=linear", "device=cpu", "global_batch_size=48", "max_steps=24", "log_every=8", "eval_every=24"]
    typed += ["sync=local_sgd", "sync.period=4"]
    fast = run(tmp_path / "fast", 2, typed)
    cable.slow_down("64kbit")
    with CabledRun(cable, tmp_path / "slow", typed) as slowed:
        slow = slowed.wait()
    assert (fast.codes, slow.codes) == ([[0, 0]], [[0, 0]]), fast.stderr + slow.stderr
    models = [(it.run_dir / "model.safetensors").read_bytes() for it in (fast, slow)]
    assert models[0] == models[1]
    waited_s = [json.loads((it.run_dir / "summary.json").read_text())["exposed_comm_s"] for it in (fast, slow)]
    assert waited_s[1] > 1.5 > waited_s[0]
