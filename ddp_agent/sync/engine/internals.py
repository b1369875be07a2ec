"""The harness's access to a sync mode beyond its public hooks."""

from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import ReplicatedTensor
from ddp_agent.distributed.traffic import Collective
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.flat import Flat


class Internals:
    """Access to a mode that is set up, for trainer, checkpoint and diagnostics. A user's own loop needs none of it."""

    def __init__(self, sync: SyncStrategy) -> None:
        self._sync = sync

    @property
    def flat(self) -> Flat:
        """The model's parameters and buffers as one tensor."""
        return self._sync._flat

    @property
    def flats(self) -> list[Flat]:
        """The flat tensors of this rank, one per set of ranks that share them: gradients are clipped one by one."""
        return self._sync._flats()

    @property
    def world(self) -> Comm:
        """The group of all ranks that this mode synchronises."""
        return self._sync._topology.world

    @property
    def syncs(self) -> int:
        """The number of synchronisations so far."""
        return self._sync._syncs

    @syncs.setter
    def syncs(self, count: int) -> None:
        self._sync._syncs = count

    @property
    def shared(self) -> SyncStrategy:
        """The strategy for the parameters that every rank trains. Differs from the mode only under task slicing."""
        return self._sync._shared()

    @property
    def period_start(self) -> int | None:
        """The step after which the current period began; None in a mode without periods."""
        return self._sync._period_start()

    def due(self, step: int) -> bool:
        """Return whether the ranks' parameters are synchronised after `step`."""
        return self._sync._due(step)

    def exchanges(self, step: int) -> bool:
        """Return whether `after_step(step)` exchanges anything."""
        return self._sync._exchanges(step)

    def replicated(self, step: int) -> list[ReplicatedTensor]:
        """Return the tensors that several ranks hold equal, bit for bit, after `step`."""
        return self._sync._all_replicated(step)

    def traffic(self, steps: int) -> list[Collective]:
        """Return every counted collective of a run of `steps` steps, by formula."""
        return self._sync._traffic(steps)

    def mean_(self, everything: Tensor) -> None:
        """Average a tensor laid out like `flat.everything` over the ranks that train each part. Not counted."""
        self._sync._mean_(everything)

    def measurements(self) -> dict[str, float]:
        """Return values of the mode's own state that are worth logging, by metric name."""
        return self._sync._measurements()


def internals(sync: SyncStrategy) -> Internals:
    """Return the harness's access to `sync`. Raises RuntimeError before `setup`."""
    if "_flat" not in vars(sync):
        raise RuntimeError(f"{type(sync).__name__} is not set up; call setup(model, optimizer, topology, reducer)")
    return Internals(sync)
