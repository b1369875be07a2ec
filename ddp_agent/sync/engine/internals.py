"""The harness's access to a sync mode beyond its public hooks."""

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import ReplicatedTensor
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.flat import Flat


class Internals:
    """Access to a mode that is set up, for trainer, checkpoint and diagnostics. A user's own loop needs none of it.

    Its methods are the strategy's private ones of these names, which describe them.
    """

    def __init__(self, sync: SyncStrategy) -> None:
        self._sync = sync
        self.due, self.exchanges, self.measurements = sync._due, sync._exchanges, sync._measurements
        self.traffic, self.mean_ = sync._traffic, sync._mean_

    @property
    def flat(self) -> Flat:
        """The model's parameters and buffers as one tensor. Raises ModelChangedError if they cannot be that."""
        self.check_storage()
        return self._sync._flat

    def replicated(self, step: int) -> list[ReplicatedTensor]:
        """Return the tensors that several ranks hold equal, bit for bit, after `step`."""
        self.check_storage()
        return self._sync._all_replicated(step)

    def check_storage(self) -> None:
        """Copy tensors back that left the flat tensor. Raise ModelChangedError for one that cannot go back."""
        if "_guard" in vars(self._sync):
            self._sync._guard.check()

    @property
    def frozen_share(self) -> float:
        """The share of the numbers of a synchronisation that frozen parameters have, from 0 to 1.

        DistributedDataParallel averages gradients of trained parameters alone; other ways take the whole flat tensor.
        """
        shared = self._sync._shared()
        if "_guard" in vars(shared) and shared._guard.hooked:
            return 0.0
        frozen = sum(each.numel() for each in shared._flat.named.values() if not each.requires_grad)
        return frozen / shared._flat.everything.numel()

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


def internals(sync: SyncStrategy) -> Internals:
    """Return the harness's access to `sync`. Raises RuntimeError before `setup`."""
    if "_flat" not in vars(sync):
        raise RuntimeError(f"{type(sync).__name__} is not set up; call setup(model, optimizer, topology, reducer)")
    return Internals(sync)
