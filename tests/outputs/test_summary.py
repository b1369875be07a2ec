"""`summary.json` and its schema say the same, in one order."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from rank_pool import RankPool
from runs import mode, run

from ddp_agent.outputs import summary as module
from ddp_agent.outputs.summary import Summary

SPREAD = ("class_accuracies", "replicas")  # their keys are keys of the file


def test_a_run_has_exactly_the_keys_of_the_schema_in_its_order(ranks2: RankPool, tmp_path: Path) -> None:
    ranks2.run(run, *mode("local_sgd"), str(tmp_path))
    written = json.loads((tmp_path / "summary.json").read_text())
    classes = [f"class_accuracy/{digit}" for digit in range(10)]
    wanted = [key for field in fields(Summary) for key in (classes if field.name == SPREAD[0] else [field.name])]
    assert list(written) == [key for key in wanted if key not in SPREAD]


def test_the_order_is_that_of_the_parts_in_the_file() -> None:
    parts = [part for part in vars(module).values() if is_dataclass(part) and part is not Summary]
    assert [field.name for field in fields(Summary)] == [field.name for part in parts for field in fields(part)]


def test_a_key_without_a_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="made_up"):
        Summary(made_up=1)  # type: ignore[call-arg]
