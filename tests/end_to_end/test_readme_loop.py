"""The README's loop of one's own runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import torch
from rank_pool import RankPool
from torch import nn

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LOOP = re.search(r"## Use a mode in your own loop\n\n```diff\n(.*?)```", README, re.S)


def added(diff: str) -> str:
    """The code after the change."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


def run_the_loop() -> tuple[bool, int, int]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    start = model.weight.detach().clone()
    batches = [(torch.randn(3, 4) + torch.distributed.get_rank(), torch.randn(3, 2)) for _ in range(102)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    names: dict[str, Any] = {"model": model, "optimizer": optimizer, "batches": batches, "loss_fn": nn.MSELoss()}
    assert LOOP
    exec(added(LOOP[1]), names)  # noqa: S102
    weights = [torch.empty_like(model.weight) for _ in range(2)]
    torch.distributed.all_gather(weights, model.weight.detach())
    assert torch.equal(*weights)
    stats = names["topology"].world.stats
    return not torch.equal(start, model.weight), stats.calls, stats.payload_bytes


def test_the_loop_trains_and_synchronises_twice(ranks2: RankPool) -> None:
    """After step 100, and in `flush`; each time the four bytes of ten numbers."""
    assert ranks2.run(run_the_loop) == [(True, 2, 80)] * 2
