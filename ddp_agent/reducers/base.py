"""The interface of every reducer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddp_agent.config.fields import check_fields
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes

Finish = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class ReducerTraits:
    """Facts about a reducer that other parts of the package rely on.

    `exact`: the result is the mean, to rounding in the tensor's own type, so raw parameters may be averaged. A lossy
    reducer may average gradients or changes, never parameters: what it drops of those is gone.
    `plain`: it does nothing but average, so a mode that sends tensors by itself does the same.
    `remembers`: it must be given the same numbers at the same places in every call (see `for_tensor`).
    `works_in_buckets`: although it remembers, it may average DDP's buckets, as soon as these stay the same.
    `needs_zeros`: it saves bytes only for tensors that are mostly zero.
    `feeds_back`: what a result lacks is kept and sent later; `unsent(comm)` returns it.
    `rounding`: the largest relative error of a result that is not sent later.
    """

    exact: bool = False
    plain: bool = False
    remembers: bool = False
    works_in_buckets: bool = False
    needs_zeros: bool = False
    feeds_back: bool = False
    rounding: float = 0.0


@dataclass(kw_only=True)
class Reducer(ABC):
    """A way to average a flat tensor over the ranks of a `Comm`.

    A number that is not finite on any rank must come out not finite on all ranks in the result of the same call: the
    NaN guard looks at results, and a lossy reducer that clips or drops such a number would hide it.
    """

    _traits: ClassVar[ReducerTraits] = ReducerTraits()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def traits(self) -> ReducerTraits:
        """The facts that other parts rely on: `_traits` of the class, or less where hyperparameters decide."""
        return self._traits

    def problems(self, run: RunFacts) -> list[Problem]:
        """Return what does not fit between this reducer and a run. The mode says whether the two fit each other."""
        return []

    def for_tensor(self, shapes: Sequence[torch.Size]) -> "Reducer":
        """Return the reducer for a tensor that is averaged repeatedly: parameters of `shapes`, flattened, in order.

        A reducer without memory returns itself. A reducer that remembers something of a tensor (the error that it made,
        a basis) returns a new one, whose state is saved as a part of its own. Ask for them in the same order on every
        rank and after a resume.
        """
        return self

    @abstractmethod
    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        """Start to average `tensor`. Return a function that waits and leaves the mean in `tensor`.

        Between the two calls the caller may compute, but must not touch `tensor`. Every rank starts and finishes in the
        same order.
        """

    @abstractmethod
    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        """Return the collectives of one averaging, in order; only the first one begins in `start`.

        `shapes` are those of the parameters in the tensor, one behind the other, of `itemsize` bytes per number.
        """

    def mean_(self, tensor: Tensor, comm: Comm) -> None:
        """Replace `tensor` by its mean over ranks. A collective."""
        self.start(tensor, comm)()

    def regroup(self, rank: int, size: int, new_size: int) -> None:  # noqa: B027 (most keep nothing per rank)
        """Prepare for means over `new_size` ranks. The last one was over `size`, where this rank had number `rank`."""

    def follow_scale(self, ratio: Tensor) -> None:  # noqa: B027 (most keep nothing)
        """Take note that inputs are multiplied by a GradScaler's scale. `ratio`: its new scale by the one before.

        Call it with 1 before the first step, and after every `update` of the scaler, as `LossScale` does. `ratio` is a
        scalar on the device of the gradients. Below 1 it says that the last step was skipped, since its gradients had
        overflowed: then nothing of the last call counts.
        """

    def common_state(self) -> dict[str, Any]:
        """Return `state_dict` without the entries of this rank alone, for a rank that joins and owes nothing yet."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resume needs, such as error-feedback residuals."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, found {sorted(state)}")
