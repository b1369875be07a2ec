"""Made-up clusters, and the plan command on their runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from planned_runs import World

from ddp_agent.plan.__main__ import main
from ddp_agent.plan.measured import Measured, labels_of, measure, read

WORLD = World()
SLOW = replace(WORLD, rate=1e8)
LOOPBACK = replace(WORLD, rate=None, headers=1.05)


def measured(*directories: Path) -> list[Measured]:
    runs, _ = read(directories)
    return measure(runs, labels_of(runs))


def plan(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    assert main([*map(str, arguments), "--explain", "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def predicted(outcome: dict[str, Any], ranks: int) -> dict[str, dict[str, Any]]:
    return {each["setting"]: each for each in outcome["predictions"] if each["ranks"] == ranks}
