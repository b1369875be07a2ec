"""Arguments and inputs that fit each model of conf/."""

from typing import Any

import torch
from configs import node
from torch import Tensor

from ddp_agent.config.fields import parameters
from ddp_agent.config.registry import locate

USERS, ITEMS, VOCABULARY, LENGTH = 5, 7, 11, 6


def kind(name: str) -> str:
    """Return the kind of data that a model needs: images, texts or ratings."""
    accepted = parameters(locate("model", node("model", name)["name"]))
    if "users" in accepted:
        return "ratings"
    return "texts" if "vocabulary" in accepted else "images"


def arguments(name: str, outputs: int) -> dict[str, Any]:
    """Return the constructor arguments that come from the data."""
    return {
        "images": {"input_shape": (3, 32, 32), "outputs": outputs},
        "texts": {"input_shape": (LENGTH,), "outputs": outputs, "vocabulary": VOCABULARY},
        "ratings": {"input_shape": (2,), "outputs": 1, "users": USERS, "items": ITEMS},
    }[kind(name)]


def inputs(name: str, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    match kind(name):
        case "ratings":
            user = torch.randint(USERS, (samples, 1), generator=generator)
            return torch.cat([user, torch.randint(ITEMS, (samples, 2), generator=generator)], 1)
        case "texts":
            tokens = torch.randint(1, VOCABULARY, (samples, LENGTH), generator=generator)
            tokens[0, LENGTH // 2 :] = 0  # padding
            return tokens
    return torch.randn(samples, 3, 32, 32, generator=generator)
