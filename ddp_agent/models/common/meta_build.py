"""A model without its numbers: what it would be, before memory is taken for it."""

from collections.abc import Callable

import torch
from torch import nn

from ddp_agent.config.memory import require
from ddp_agent.errors import ConfigError


def skeleton(construct: Callable[[], nn.Module]) -> nn.Module:
    """What `construct` makes, on torch's meta device: names and shapes, no numbers.

    For classes of this package: others' may need numbers while they are built. Raises ConfigError for a model that
    cannot be, or that memory cannot hold.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = construct()
    except ConfigError:
        raise
    except Exception as error:  # torch has one of its own for each size that no tensor can have
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model: no such model can be built ({type(error).__name__}: {reason})") from error
    try:
        require(sum(part.nbytes for part in (*model.parameters(), *model.buffers())), "its parameters")
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    return model
