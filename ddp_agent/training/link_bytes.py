"""The kernel's count of bytes that a node's network interface sends during training, to check `Comm`'s count."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ddp_agent.errors import ConfigError
from ddp_agent.training.clock import TRAINING, Phase

INTERFACE = "DDP_AGENT_LINK"  # environment variable: the interface's name
RATE = "DDP_AGENT_LINK_RATE"  # environment variable: its bits per second, where they are known
QUIET_S = 0.02  # without a byte sent, all that training handed to the kernel has left. 2.5 kB at 1 Mbit/s
_COUNTERS = Path("/proc/self/net/dev")  # of this process's network namespace; /sys shows the one it was mounted in


@dataclass
class Link:
    """Counter of everything that leaves the node while it trains.

    It includes the bytes of all ranks of the node, headers, acknowledgements and retransmissions.
    """

    interface: str
    rate_bits_per_s: int | None = None
    training_bytes: int | None = 0  # None: a part of the run was not measured
    _since: int | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the link that the environment names, or None. Raises ConfigError if the interface does not exist."""
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
        """Return the kernel's counter of sent bytes."""
        lines = _COUNTERS.read_text().splitlines()[2:]
        counters = {name.strip(): numbers.split() for name, _, numbers in (line.partition(":") for line in lines)}
        return int(counters[self.interface][8])  # after eight fields about what was received

    def measure(self, phase: Phase | None) -> None:
        """Count bytes from now on if `phase` is part of training.

        An exchange is over for its sender as soon as the kernel has the bytes. So at the end of training this waits
        until they have left.
        """
        if (phase in TRAINING) == (self._since is not None):
            return
        if self._since is None:
            self._since = self.sent_bytes()
            return
        before, sent = -1, self.sent_bytes()
        while sent != before:
            time.sleep(QUIET_S)
            before, sent = sent, self.sent_bytes()
        if self.training_bytes is not None:
            self.training_bytes += sent - self._since
        self._since = None


def summary(link: Link | None) -> dict[str, Any]:
    """Return the link's keys of `summary.json`."""
    return {
        "link_bytes": link.training_bytes if link else None,
        "link_rate_bits_per_s": link.rate_bits_per_s if link else None,
    }
