"""Models on torch's meta device: their shapes, before memory is taken for their numbers."""

from collections.abc import Callable

import torch
from torch import nn

from ddp_agent.config.memory import require
from ddp_agent.errors import ConfigError


def build_on_meta(construct: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that `construct` makes, on the meta device: names and shapes without numbers.

    For classes of this package only: those of other packages may need numbers while they are built. Raises ConfigError
    for a model that cannot be built, or that the machine's memory cannot hold.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = construct()
    except ConfigError:
        raise
    except Exception as error:  # torch raises many kinds for sizes that no tensor can have
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model: no such model can be built ({type(error).__name__}: {reason})") from error
    try:
        require(sum(part.nbytes for part in (*model.parameters(), *model.buffers())), "its parameters")
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    return model
