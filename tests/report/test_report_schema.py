"""The keys of summary.json that report and plan read are those that a run writes."""

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import planned_runs
import pytest
from report_cases import ACCURACY, make_sweep, printed, result_of

from ddp_agent.outputs.summary import Summary
from ddp_agent.plan.__main__ import main as plan
from ddp_agent.report.report_json import report_json
from ddp_agent.report.runs import run as reading
from ddp_agent.report.runs.files import json_object

WRITTEN = {one.name for one in fields(Summary)}


class Recorder(dict[str, Any]):
    """A summary that records the keys which are read."""

    read: ClassVar[set[str]] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    def recorded(text: str) -> dict[str, Any]:
        content = json_object(text)
        return Recorder(content) if "metric_name" in content else content

    monkeypatch.setattr(reading, "json_object", recorded)
    monkeypatch.setattr(Recorder, "read", set())
    return Recorder.read


def test_the_report_reads_what_runs_write(tmp_path: Path, read: set[str]) -> None:
    result = result_of(make_sweep(tmp_path, ACCURACY, target=0.9, slicing="iid"))
    printed(result)
    report_json(result, [])
    assert read >= {"sync", "wire_bytes", "consensus_distance", "order_sha256", "device", "straggler_wait_s"}
    assert read - WRITTEN == set()


def test_the_plan_reads_what_runs_write(tmp_path: Path, read: set[str]) -> None:
    planned_runs.sweep(tmp_path, planned_runs.World())
    assert plan([str(tmp_path), "--ranks", "2,4"]) == 0
    assert read >= {"sync", "collectives", "traffic", "link_rate_bits_per_s", "data_sha256"}
    assert read - WRITTEN == set()
