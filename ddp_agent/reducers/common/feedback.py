"""Error feedback: lossy reducers send later the part that they dropped."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.reducers.base import Finish, Reducer, ReducerTraits


@dataclass(kw_only=True)
class ErrorFeedback(Reducer, ABC):
    """Reducer that adds to its input the part of earlier inputs that it did not send (Karimireddy et al. 2019).

    arXiv:1901.09847. Nothing is lost, it only comes late. In every call, to rounding,
        mean over ranks of (input + `unsent` before) = result + mean over ranks of (`unsent` after),
    where the result is the same on every rank. A reducer remembers one tensor, so each tensor needs a reducer of its
    own (`for_tensor`). There is one averaging at a time, and a state is complete only between two.
    """

    _traits = ReducerTraits(remembers=True, feeds_back=True)
    kept: ClassVar[tuple[str, ...]] = ("residual",)  # names of saved flat tensors; None before a call
    owed: ClassVar[tuple[str, ...]] = ("residual", "second")  # names of those that differ between ranks

    shapes: list[torch.Size] | None = field(default=None, init=False, repr=False, compare=False)
    residual: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # flat, as long as the tensor
    parts: list[Self] = field(default_factory=list, init=False, repr=False, compare=False)
    _scaled: bool = field(default=False, init=False, repr=False, compare=False)  # inputs are multiplied by a scale
    _before: dict[str, Tensor | None] | None = field(default=None, init=False, repr=False, compare=False)
    """What was kept before the last call, if inputs are scaled, for a step that is skipped: 4 bytes per number."""

    def for_tensor(self, shapes: Sequence[torch.Size]) -> Self:
        part = replace(self)
        part.shapes, part._scaled = list(shapes), self._scaled
        self.parts.append(part)
        return part

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        if self.shapes is None:
            self.shapes = [tensor.shape]
        self._check_size("tensor", tensor, sum(shape.numel() for shape in self.shapes))
        flat = tensor.view(-1)
        # A checkpoint leaves it on the CPU.
        self.residual = torch.zeros_like(flat) if self.residual is None else self.residual.to(flat)
        self._check_size("residual", self.residual, flat.numel())
        if self._scaled:
            self._before = {name: None if (kept := getattr(self, name)) is None else kept.clone() for name in self.kept}
        finish = self.transmit(flat, self.residual.add_(flat), comm)

        def finish_and_forget() -> None:
            finish()
            # fp16 gradients overflow now and then. The result has shown it, and it must not come back in every call.
            for name in self.kept:
                if (kept := getattr(self, name)) is not None:
                    kept.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

        return finish_and_forget

    @torch.no_grad()
    def follow_scale(self, ratio: Tensor) -> None:
        self._scaled = True
        for part in self.parts:
            part.follow_scale(ratio)
        before, self._before = self._before or {}, None
        if ratio.is_cpu and ratio == 1:  # elsewhere the host would wait for the device
            return
        for name in self.kept:
            now: Tensor | None = getattr(self, name)
            if now is None:
                continue
            ratio_here = ratio.to(now.device)
            if name in before:
                past = before[name]
                past = torch.zeros_like(now) if past is None else past.to(now)
                now = torch.where(ratio_here < 1, past, now)
            setattr(self, name, now * ratio_here if name in self.owed else now)

    @abstractmethod
    def transmit(self, tensor: Tensor, residual: Tensor, comm: Comm) -> Finish:
        """Start to average `residual`, the input plus the part that was not sent before. Both tensors are flat.

        The returned function leaves the mean in `tensor`, and in `residual` the part that was still not sent.
        """

    def unsent(self, comm: Comm) -> Tensor:
        """Return the part that this rank has not sent, flat. Its mean over ranks is what the results so far lack."""
        if self.residual is None:
            raise ValueError(f"{self} has not averaged anything yet")
        return self.residual.clone()

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        for part in self.parts:
            part.regroup(rank, size, new_size)

    def common_state(self) -> dict[str, Any]:
        kept = {name: None for name in self.kept if name in self.owed}
        return self.state_dict() | kept | {"parts": [part.common_state() for part in self.parts]}

    def state_dict(self) -> dict[str, Any]:
        own = {name: None if (tensor := getattr(self, name)) is None else tensor.clone() for name in self.kept}
        return own | {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != {*self.kept, "parts"}:
            raise ValueError(f"{self}: found a state of {sorted(state)}, expected {[*self.kept, 'parts']}")
        if self.parts and not state["parts"]:  # saved before the first tensor: all start from scratch
            state = state | {"parts": [replace(self).state_dict() for _ in self.parts]}
        if len(state["parts"]) != len(self.parts):
            raise ValueError(f"{self}: found the state of {len(state['parts'])} tensors, expected {len(self.parts)}")
        for name, size in ({} if self.shapes is None else self.sizes(self.shapes)).items():
            if state.get(name) is not None:
                self._check_size(name, state[name], size)
        for name in self.kept:
            setattr(self, name, None if state[name] is None else state[name].clone())
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def sizes(self, shapes: Sequence[torch.Size]) -> dict[str, int]:
        """Return the lengths of those `kept` tensors whose length follows from the shapes alone."""
        return {"residual": sum(shape.numel() for shape in shapes)}

    def _check_size(self, name: str, tensor: Tensor, expected: int) -> None:
        if tensor.numel() != expected:
            raise ValueError(f"{self}: found {tensor.numel()} numbers for the {name}, expected {expected}")
