"""debug=profile: a trace that Perfetto reads, with a region for each phase."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from rank_pool import RankPool
from runs import mode, run

from ddp_agent.config.options import UNTRACED_STEPS


def regions(path: Path) -> Counter[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


@pytest.mark.parametrize("name", ["allreduce", "local_sgd"])
def test_a_trace_has_every_phase_and_changes_nothing(ranks2: RankPool, tmp_path: Path, name: str) -> None:
    steps = UNTRACED_STEPS + 4
    options = (f"max_steps={steps}", "eval_every=9", "checkpoint_every=10", "log_every=1")
    plain = ranks2.run(run, *mode(name, *options), str(tmp_path / "plain"))[0]
    traced = ranks2.run(run, *mode(name, *options, "profile_steps=4"), str(tmp_path / "traced"))[0]
    assert isinstance(plain, dict) and isinstance(traced, dict), (plain, traced)
    for key in ("test_loss", "steps", "payload_bytes", "syncs"):
        assert traced[key] == plain[key], key
    for rank in (0, 1):
        found = regions(tmp_path / "traced" / f"trace.rank{rank}.json.gz")
        for region in ("forward", "sync.before_step", "sync.after_step", "Optimizer.step#SGD.step"):
            assert found[region] == 4, region
        assert found["data"] >= 4
        assert {"compute", "eval", "checkpoint", "communication"} <= set(found)
    assert not list((tmp_path / "plain").glob("trace*"))
