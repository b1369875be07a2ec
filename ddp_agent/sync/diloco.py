"""An outer optimizer over the mean change of the ranks."""

from dataclasses import dataclass, replace

from torch import Tensor

from ddp_agent.config.fields import Fraction, NonNegativeFloat
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.periodic import AnchoredWithMomentum


@dataclass(kw_only=True, eq=False)
class DiLoCo(AnchoredWithMomentum):
    """Outer SGD with Nesterov momentum on the mean change over H steps (Douillard et al. 2023, arXiv:2311.08105)."""

    outer_lr: NonNegativeFloat = 0.7
    outer_momentum: Fraction = 0.6  # the paper's 0.9 is for H in the hundreds; at short periods it overshoots
    nesterov: bool = True

    @property
    def traits(self) -> SyncTraits:
        return replace(super().traits, acts_alone=(self.outer_lr, self.outer_momentum) != (1, 0))

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        outer_sgd_(self.anchor, self._momentum, pseudo_gradient, self.outer_lr, self.outer_momentum, self.nesterov)


def outer_sgd_(
    anchor: Tensor, buffer: Tensor, pseudo_gradient: Tensor, lr: float, momentum: float, nesterov: bool
) -> None:
    """Step as torch.optim.SGD: b <- m b + D; anchor <- anchor - lr (D + m b), or - lr b without Nesterov. D is lost."""
    buffer.mul_(momentum).add_(pseudo_gradient)
    direction = pseudo_gradient.add_(buffer, alpha=momentum) if nesterov else buffer
    anchor.sub_(direction, alpha=lr)
