"""The scale of fp16 losses, which a reducer with error feedback must follow."""

from typing import Any

import torch

from ddp_agent.reducers import Reducer


class LossScale(torch.amp.GradScaler):
    """A GradScaler that tells a reducer of its updates.

    Gradients are averaged while they are multiplied by the scale, so a reducer keeps what it owes in those units. For a
    loop of one's own in which gradients travel: pass the reducer that the mode was set up with. The scale and its
    changes stay on the device, so the host waits for nothing.
    """

    def __init__(self, device: str, reducer: Reducer | None = None, **options: Any) -> None:
        super().__init__(device, **options)
        self._reducer = reducer if self.is_enabled() and reducer is not None and reducer.traits.remembers else None
        self._one = torch.ones((), device=device)
        if self._reducer is not None:
            self._reducer.follow_scale(self._one)

    def update(self, new_scale: Any = None) -> None:
        """Update the scale, and what the reducer owes with it."""
        if self._reducer is None:
            super().update(new_scale)
            return
        before = self.scale(self._one)
        super().update(new_scale)
        self._reducer.follow_scale(self.scale(self._one) / before)
