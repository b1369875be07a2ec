"""Slow momentum over periods of local steps."""

from dataclasses import dataclass, replace

from torch import Tensor

from ddp_agent.config.fields import Decay, NonNegativeFloat
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.periodic import AnchoredWithMomentum


@dataclass(kw_only=True, eq=False)
class SlowMo(AnchoredWithMomentum):
    """Momentum on the mean change over H steps, in units of the learning rate (Wang et al. 2020, arXiv:1910.00643)."""

    slow_lr: NonNegativeFloat = 1.0  # alpha
    slow_momentum: Decay = 0.5  # beta

    @property
    def traits(self) -> SyncTraits:
        return replace(super().traits, acts_alone=(self.slow_lr, self.slow_momentum) != (1, 0))

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        """Step: u <- beta u + D / g; anchor <- anchor - alpha g u. g is the learning rate of the step just done.

        u (`_momentum`) is a sum of gradients.
        """
        lr = float(self._optimizer.param_groups[0]["lr"])
        self._momentum.mul_(self.slow_momentum)
        if lr > 0:
            self._momentum.add_(pseudo_gradient, alpha=1 / lr)
            self.anchor.sub_(self._momentum, alpha=self.slow_lr * lr)
        else:  # D / g is undefined: apply the change directly
            self.anchor.sub_(pseudo_gradient, alpha=self.slow_lr)
