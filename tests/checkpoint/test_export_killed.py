"""An export that is killed at any moment leaves one that loads: the earlier one or the new one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp_agent.checkpoint import export
from ddp_agent.models.mlp import MLP

DESCRIPTION = {"name": "MLP", "arguments": {"input_shape": [4], "outputs": 3, "hidden": [8]}}
CALLS = ("replace", "fsync", "unlink")
INPUTS = torch.linspace(-1, 1, 8).view(2, 4)


def model(value: float) -> nn.Module:
    made = MLP(input_shape=(4,), outputs=3, hidden=(8,))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def outputs(run_dir: Path) -> Tensor:
    loaded: Tensor = export.load(run_dir)(INPUTS)
    return loaded


def dies_at(count: int, when: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that ends the process before or after the call of this number; all calls are counted."""

    def counted(*arguments: Any, **more: Any) -> Any:
        global _calls
        _calls += 1
        if _calls == count and when == "before":
            os._exit(9)
        result = real(*arguments, **more)
        if _calls == count and when == "after":
            os._exit(9)
        return result

    return counted


_calls = 0


def save_and_die(run_dir: Path, value: float, count: int, when: str) -> bool:
    """Save in a forked child that is killed at a call. Return False if it had fewer calls."""
    child = os.fork()
    if child == 0:
        for name in CALLS:
            setattr(os, name, dies_at(count, when, getattr(os, name)))
        export.save(run_dir, model(value), description=DESCRIPTION)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_anywhere_the_old_export_loads_or_the_new_one(when: str, tmp_path: Path) -> None:
    export.save(tmp_path / "old", model(0.1), description=DESCRIPTION)
    expected = {value: model(value)(INPUTS) for value in (0.1, 0.2, 0.3)}
    loaded = []
    for count in range(1, 50):
        run_dir = Path(shutil.copytree(tmp_path / "old", tmp_path / str(count)))
        if not save_and_die(run_dir, 0.2, count, when):
            break
        found = outputs(run_dir)
        loaded.append(next(value for value in expected if torch.equal(found, expected[value])))
        save_and_die(run_dir, 0.3, count, when)  # the next attempt is killed at the same place
        assert any(torch.equal(outputs(run_dir), each) for each in expected.values())
        export.save(run_dir, model(0.3), description=DESCRIPTION)
        assert torch.equal(outputs(run_dir), expected[0.3])
        assert sorted(path.name for path in run_dir.iterdir() if path.suffix != ".tmp") == [
            "model.json",
            "model.safetensors",
        ]
    assert loaded == sorted(loaded) and set(loaded) == {0.1, 0.2}, "one call decides"
