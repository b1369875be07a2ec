"""Seeds that all ranks share, and seeds of one rank."""

import random

import torch

from ddp_agent import rng


def _draw(seed: int, rank: int | None = None) -> tuple[float, float]:
    rng.seed_everything(seed, rank)
    return torch.rand(()).item(), random.random()


def test_seeds_are_shared_or_a_rank_s_own() -> None:
    assert _draw(0) == _draw(0)
    assert _draw(0, rank=1) == _draw(0, rank=1)
    streams = [_draw(0), _draw(1), _draw(0, rank=0), _draw(0, rank=1), _draw(1, rank=0)]
    assert len(set(streams)) == len(streams)
