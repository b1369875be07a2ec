"""What the network interface of a rank's node sends while the rank trains: the kernel's word beside `Comm`'s count."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ddp_agent.errors import ConfigError

INTERFACE = "DDP_AGENT_LINK"  # its name
RATE = "DDP_AGENT_LINK_RATE"  # bits a second, as far as known
QUIET_S = 0.02  # without a byte sent: what training handed to the kernel has left. 2.5 kB at 1 Mbit/s
_COUNTERS = Path("/proc/self/net/dev")  # of this process's network namespace; /sys is of whoever mounted it


@dataclass
class Link:
    """Everything that leaves the node counts: of all its ranks, headers, acknowledgements and what is sent again."""

    interface: str
    rate_bits_per_s: int | None = None
    training_bytes: int | None = 0  # None: a part of the run was not measured
    _since: int | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Self | None:
        """None when no interface is named. Raises ConfigError for one that is not there."""
        if not (interface := os.environ.get(INTERFACE)):
            return None
        rate = os.environ.get(RATE, "")
        if rate and not rate.isdecimal():
            raise ConfigError(f"{RATE}: found {rate!r}, expected bits a second")
        link = cls(interface, int(rate) if rate else None)
        try:
            link.sent_bytes()
        except (OSError, KeyError):
            raise ConfigError(f"{INTERFACE}: found {interface!r}, expected an interface of `ip link`") from None
        return link

    def sent_bytes(self) -> int:
        lines = _COUNTERS.read_text().splitlines()[2:]
        counters = {name.strip(): numbers.split() for name, _, numbers in (line.partition(":") for line in lines)}
        return int(counters[self.interface][8])  # after eight of what was received

    def measure(self, training: bool) -> None:
        """From now on bytes belong to training, or do not.

        An exchange is over for its sender when the kernel has the bytes: at the end of training, wait until they left.
        """
        if training == (self._since is not None):
            return
        if self._since is None:
            self._since = self.sent_bytes()
            return
        sent = self._sent_in_the_end()
        if self.training_bytes is not None:
            self.training_bytes += sent - self._since
        self._since = None

    def _sent_in_the_end(self) -> int:
        sent = self.sent_bytes()
        while True:
            time.sleep(QUIET_S)
            before, sent = sent, self.sent_bytes()
            if sent == before:
                return sent


def summary(link: Link | None) -> dict[str, Any]:
    return {
        "link_bytes": link.training_bytes if link else None,
        "link_rate_bits_per_s": link.rate_bits_per_s if link else None,
    }
