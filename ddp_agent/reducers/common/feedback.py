"""What lossy reducers do about what they lose."""

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
    """Adds to a tensor what of the last ones was not sent (error feedback; Karimireddy et al. 2019, arXiv:1901.09847).

    So nothing is lost, only late. In every call, to rounding,
        mean over ranks of (input + `unsent` before) = result + mean over ranks of (`unsent` after),
    where the result is the same on every rank. It remembers one tensor, so each needs a reducer of its own: see
    `for_tensor`. One averaging at a time; a state is complete when none is under way.
    """

    _traits = ReducerTraits(remembers=True, feeds_back=True)
    kept: ClassVar[tuple[str, ...]] = ("residual",)  # the flat tensors that are saved; None before the first call
    owed: ClassVar[tuple[str, ...]] = ("residual", "second")  # those of them that are a rank's own

    shapes: list[torch.Size] | None = field(default=None, init=False, repr=False, compare=False)
    residual: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # flat, as long as the tensor
    parts: list[Self] = field(default_factory=list, init=False, repr=False, compare=False)

    def for_tensor(self, shapes: Sequence[torch.Size]) -> Self:
        part = replace(self)
        part.shapes = list(shapes)
        self.parts.append(part)
        return part

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        if self.shapes is None:
            self.shapes = [tensor.shape]
        self._check_size("tensor", tensor, sum(shape.numel() for shape in self.shapes))
        flat = tensor.view(-1)
        # From a checkpoint it comes on the CPU.
        self.residual = torch.zeros_like(flat) if self.residual is None else self.residual.to(flat)
        self._check_size("residual", self.residual, flat.numel())
        finish = self.transmit(flat, self.residual.add_(flat), comm)

        def finish_and_forget() -> None:
            """What is not finite (fp16 gradients overflow now and then) came out, and must not come back for ever."""
            finish()
            for name in self.kept:
                if (kept := getattr(self, name)) is not None:
                    kept.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

        return finish_and_forget

    @abstractmethod
    def transmit(self, tensor: Tensor, residual: Tensor, comm: Comm) -> Finish:
        """Begins averaging `residual`, which is the input and what was not sent before; all are flat.

        When finished, `tensor` holds the mean, and `residual` what was still not sent.
        """

    def unsent(self, comm: Comm) -> Tensor:
        """What this rank still owes, flat: the mean of it over ranks is what is missing in the results so far."""
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
        if self.parts and not state["parts"]:  # saved before the first tensor came: all begin afresh
            state = state | {"parts": [replace(self).state_dict() for _ in self.parts]}
        if len(state["parts"]) != len(self.parts):
            raise ValueError(f"{self}: found the state of {len(state['parts'])} tensors, expected {len(self.parts)}")
        sizes = {} if self.shapes is None else self.sizes(self.shapes)
        for name in self.kept:
            if name in sizes and state[name] is not None:
                self._check_size(name, state[name], sizes[name])
        for name in self.kept:
            setattr(self, name, None if state[name] is None else state[name].clone())
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def sizes(self, shapes: Sequence[torch.Size]) -> dict[str, int]:
        """How long the `kept` tensors are, those for which the shapes alone decide it."""
        return {"residual": sum(shape.numel() for shape in shapes)}

    def _check_size(self, name: str, tensor: Tensor, expected: int) -> None:
        if tensor.numel() != expected:
            raise ValueError(f"{self}: found {tensor.numel()} numbers for the {name}, expected {expected}")
