"""The process that all replicas know: torchft's lighthouse, which knows who is alive, and a store.

The coordinator is trusted and must outlive the run, like torchrun's store. Lighthouse and store listen on one address
alone, by default the loopback. Torch's store by itself would listen on every interface, so it is given a socket.
"""

from ddp_agent.distributed.c10d import PrefixStore, Store
from ddp_agent.distributed.loopback import join, listen, store_at
from ddp_agent.distributed.run_secret import SignedStore, prefix

LIGHTHOUSE = "lighthouse"  # keys of the store
LOST_AFTER_S = "lost_after_s"
PATIENCE_S = "patience_s"


class Coordinator:
    """A lighthouse and a store that serve until `close`. `address` is HOST:PORT of the store.

    `lost_after_s`: how long a replica may send no heartbeat. `patience_s`: how long a replica that is alive may let the
    others wait in a round. Raises ImportError without torchft, UnreachableError for an address that cannot be served.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, lost_after_s: float, patience_s: float) -> None:
        from torchft.coordination import LighthouseServer  # an extra, and slow to import

        listener = listen(host, port)
        port = listener.getsockname()[1]
        self.store = store_at(host, listener)
        self._lighthouse = LighthouseServer(
            bind=join(host, 0),
            min_replicas=1,
            join_timeout_ms=round(1000 * patience_s),
            quorum_tick_ms=50,
            heartbeat_timeout_ms=round(1000 * lost_after_s),
        )
        self.lighthouse = f"http://{join(host, int(self._lighthouse.address().rpartition(':')[2]))}"
        values = values_in(shared(self.store))
        values.set(LOST_AFTER_S, repr(lost_after_s))
        values.set(PATIENCE_S, repr(patience_s))
        values.set(LIGHTHOUSE, self.lighthouse)
        self.address = join(host, port)

    def close(self) -> None:
        """Stop the lighthouse. The store ends with its last reference."""
        self._lighthouse.shutdown()


def shared(store: Store) -> Store:
    """Return the part of the coordinator's store that the replicas of one run use."""
    return PrefixStore(prefix("replicas"), store)


def values_in(store: Store) -> SignedStore:
    """Return the values in that part on which replicas agree."""
    return SignedStore(store, "values")
