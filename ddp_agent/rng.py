"""The random streams of training (dropout, augmentation), and seeds for further streams."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RandomStreams:
    """The states of torch's streams on the CPU and on `device`, and of Python's stream, as plain data."""

    device: torch.device

    def state_dict(self) -> dict[str, Any]:
        """Return the states."""
        version, words, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "python": [version, list(words), gauss],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the streams from these states."""
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))


def mixed_seed(seed: int, epoch: int, purpose: str = "sample order") -> int:
    """Return a seed of 63 bits. It is hashed: with a sum, seed 0 in epoch 1 would repeat seed 1 in epoch 0."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int, rank: int | None = None) -> None:
    """Seed torch's and Python's streams: equal on all ranks without `rank`, else with a stream per rank.

    The first is for initial weights, the second for dropout and augmentation.
    """
    name = str(seed) if rank is None else f"{seed}/{rank}"  # hashed: seed 0 of rank 1 is not seed 1 of rank 0
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    random.seed(value)
    torch.manual_seed(value)  # every GPU too
