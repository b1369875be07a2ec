"""An exponential moving average of the weights, beside whatever sync mode trains them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddp_agent.sync.engine.flat import Flat


class EMA:
    """Every rank averages its own weights over steps; for evaluation these averages are averaged over ranks."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.model: nn.Module = self._averaged.module
        self._flat = Flat(self._averaged)

    def update(self, model: nn.Module) -> None:
        self._averaged.update_parameters(model)

    @contextmanager
    def eval_weights(self, average_: Callable[[Tensor], None]) -> Iterator[nn.Module]:
        """The mean over ranks inside, as `SyncStrategy.average_` takes it, the rank's own average after."""
        own = self._flat.snapshot()
        try:
            with torch.no_grad():
                average_(self._flat.everything)
            yield self.model
        finally:
            self._flat.restore(own)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._flat.snapshot()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._flat.restore(state["weights"])
