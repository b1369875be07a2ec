"""An exponential moving average of the weights, in every sync mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddp_agent.sync.engine.flat import Flat


class EMA:
    """A moving average of this rank's weights over steps. For evaluation it is averaged over ranks as well."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.model: nn.Module = self._averaged.module
        self._flat = Flat(self._averaged)

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self._averaged.update_parameters(model)

    @contextmanager
    def eval_weights(self, mean_: Callable[[Tensor], None]) -> Iterator[nn.Module]:
        """Hold the mean over ranks, made by `Internals.mean_`, inside; restore the rank's own average after."""
        own = self._flat.snapshot()
        try:
            with torch.no_grad():
                mean_(self._flat.everything)
            yield self.model
        finally:
            self._flat.restore(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights."""
        return {"weights": self._flat.snapshot()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._flat.restore(state["weights"])
