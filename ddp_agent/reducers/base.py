"""What a reducer has to do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddp_agent.config.fields import check_fields
from ddp_agent.distributed.comm import Comm

Finish = Callable[[], None]


@dataclass(kw_only=True)
class Reducer(ABC):
    """Averages a flat tensor over the ranks of a `Comm`.

    `exact`: nothing is lost, so raw parameters may be averaged. A lossy reducer may average gradients or changes,
    never parameters: what it drops from those is gone.
    `remembers`: it must be given the same numbers at the same places in every call (see `for_tensor`).
    `needs_zeros`: it is worth its while only for tensors that are mostly zero.
    """

    exact: ClassVar[bool]
    remembers: ClassVar[bool] = False
    needs_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def for_tensor(self, shapes: Sequence[torch.Size]) -> "Reducer":
        """What averages one tensor again and again: parameters of these shapes, flattened, one behind the other.

        A reducer that remembers something of a tensor (what it dropped from it, a basis) gives a new one, whose
        state is a part of its own; ask for them in the same order on every rank and after a resume. One without
        memory gives itself.
        """
        return self

    @abstractmethod
    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        """Begins averaging `tensor`; the returned function waits and leaves the mean in it.

        Between the two the caller may compute, but not touch `tensor`. Every rank starts and finishes in one order.
        """

    def mean_(self, tensor: Tensor, comm: Comm) -> None:
        """Replaces `tensor` by its mean over ranks."""
        self.start(tensor, comm)()

    def regroup(self, rank: int, size: int, new_size: int) -> None:  # noqa: B027 (most keep nothing of a rank's own)
        """The next mean is over `new_size` ranks; the last one was over `size`, of which this was number `rank`."""

    def common_state(self) -> dict[str, Any]:
        """Of `state_dict` what is not this rank's own: for one that joins, and owes nothing yet."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, such as error-feedback residuals."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, found {sorted(state)}")
