"""A model without its numbers: what it would be, before memory is taken for it."""

from collections.abc import Callable

import torch
from torch import nn

from ddp_agent.errors import ConfigError
from ddp_agent.memory import require


def skeleton(construct: Callable[[], nn.Module], *, own: bool) -> nn.Module | None:
    """What `construct` makes, on torch's meta device: names and shapes, no numbers.

    Raises ConfigError for a model that cannot be, or that memory cannot hold. Classes that are not our `own` may need
    numbers while they are built: then None, and building tells what is wrong.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = construct()
    except ConfigError:
        raise
    except Exception as error:  # torch has one of its own for each size that no tensor can have
        if not own:
            return None
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"model: no such model can be built ({type(error).__name__}: {reason})") from error
    size_bytes = sum(part.numel() * part.element_size() for part in (*model.parameters(), *model.buffers()))
    try:
        require(size_bytes, "its parameters")
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    return model
