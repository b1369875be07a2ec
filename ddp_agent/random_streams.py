"""The random streams that training draws from (dropout, augmentation)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RandomStreams:
    """Torch's on the CPU and on `device`, and Python's own, as plain data."""

    device: torch.device

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "python": [version, list(words), gauss],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
