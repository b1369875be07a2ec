"""The share of the traffic that frozen parameters have, which a run records."""

from pathlib import Path
from typing import Any

import pytest
from rank_pool import RankPool
from runs import mode, run
from torch import nn

FROZEN = 4 * 4 + 4
SMALL, LARGE = 10, 20_000  # widths: the gradients of the large one are more than DistributedDataParallel's first bucket


class PartlyFrozen(nn.Sequential):
    """A model of which the middle is not trained."""

    def __init__(self, width: int, frozen: bool = True) -> None:
        middle = nn.Linear(4, 4).requires_grad_(not frozen)
        super().__init__(nn.Flatten(), nn.Linear(64, 4), middle, nn.Linear(4, width), nn.Linear(width, 10))


def shares(names: list[str], path: str, **model: Any) -> dict[str, Any]:
    found = {}
    for name in names:
        cfg, choices = mode(name, "device=cpu", "max_steps=4")
        node = {"name": "test_frozen_share:PartlyFrozen", **model}
        summary = run(cfg | {"model": node, "trusted_packages": ["test_frozen_share"]}, choices, f"{path}/{name}")
        assert isinstance(summary, dict), summary
        found[name] = summary["frozen_share"]
    return found


def small_and_large(path: str) -> list[dict[str, Any]]:
    names = ["independent", "allreduce", "compressed", "local_sgd", "diloco"]
    return [
        shares(names, f"{path}/small", width=SMALL),
        shares(["allreduce"], f"{path}/large", width=LARGE),
        shares(["local_sgd"], f"{path}/trained", width=SMALL, frozen=False),
    ]


def test_a_run_records_the_share_of_its_traffic_that_never_changes(ranks2: RankPool, tmp_path: Path) -> None:
    small, large, trained = ranks2.run(small_and_large, str(tmp_path))[0]
    numbers = sum(each.numel() for each in PartlyFrozen(SMALL).parameters())
    assert small.pop("independent") == 0
    assert small == {name: pytest.approx(FROZEN / numbers) for name in small}
    assert large == {"allreduce": 0} and trained == {"local_sgd": 0}
