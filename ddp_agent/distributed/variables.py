"""Environment variables that hold numbers or addresses: one line for each that is malformed. Needs no torch.

An empty variable counts as one that is not set.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ddp_agent.errors import ConfigError

MOST = 2**31 - 1


@dataclass(frozen=True)
class Whole:
    """An integer from `low` to `high`."""

    low: int = 0
    high: int = MOST

    def accepts(self, text: str) -> bool:
        # Without the limit on digits `int` itself would refuse a text of more than 4300.
        return re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) is not None and self.low <= int(text) <= self.high

    def __str__(self) -> str:
        return f"an integer >= {self.low}" + (f" and <= {self.high}" if self.high < MOST else "")


@dataclass(frozen=True)
class Written:
    """A text that a regular expression matches as a whole. `words` describes it in a message."""

    regex: str
    words: str

    def accepts(self, text: str) -> bool:
        return re.fullmatch(self.regex, text, re.ASCII) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Command:
    """The words of a command, quoted as a shell reads them."""

    def accepts(self, text: str) -> bool:
        try:
            return bool(shlex.split(text))
        except ValueError:
            return False

    def __str__(self) -> str:
        return "a command with balanced quotes"


VARIABLES: dict[str, Whole | Written | Command] = {
    "RANK": Whole(),
    "WORLD_SIZE": Whole(1),
    "LOCAL_RANK": Whole(),
    "LOCAL_WORLD_SIZE": Whole(1),
    "GROUP_RANK": Whole(),
    "GROUP_WORLD_SIZE": Whole(1),
    "MASTER_ADDR": Written(r"[\w.:%\[\]-]{1,255}", "a host name or address"),
    "MASTER_PORT": Whole(1, 65535),
    "TORCHELASTIC_RESTART_COUNT": Whole(),
    "TORCHELASTIC_MAX_RESTARTS": Whole(),
    "PET_NODE_RANK": Whole(),
    "PET_MASTER_PORT": Whole(1, 65535),
    "PET_MAX_RESTARTS": Whole(),
    "PET_NPROC_PER_NODE": Written(r"0*[1-9][0-9]{0,3}|auto|gpu|cpu|xpu", "an integer >= 1, auto, gpu or cpu"),
    "OMP_NUM_THREADS": Written(r"0*[1-9][0-9]{0,5}(,0*[1-9][0-9]{0,5})*", "an integer >= 1"),
    "DDP_AGENT_RUN_TIME": Written(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a time such as 2026-01-31_12-00-00-000"),
    "DDP_AGENT_NPROC_PER_NODE": Whole(1, 1024),
    "DDP_AGENT_EARLIER_ATTEMPTS": Whole(),
    "DDP_AGENT_REPLICA": Whole(),
    "DDP_AGENT_REPLICAS": Whole(1),
    "DDP_AGENT_COORDINATOR": Written(r"[\w.:%\[\]-]{1,255}:[0-9]{1,5}", "HOST:PORT"),
    "DDP_AGENT_LINK_RATE": Written(r"[0-9]{1,18}", "bits per second, an integer"),
    "DDP_AGENT_ON_NODES": Command(),
}
"""Every variable of which a wrong value could stop a run half-way or change what it does."""


def malformed(environment: Mapping[str, str]) -> list[str]:
    """Return one line per variable whose value is none: its name, what was found, and what is expected."""
    return [
        f"{name}: found {environment[name][:80]!r} in the environment, expected {kind}"
        for name, kind in VARIABLES.items()
        if environment.get(name) and not kind.accepts(environment[name])
    ]


def whole(environment: Mapping[str, str], name: str, default: int) -> int:
    """Return the integer that a variable holds, or `default` if it is empty or not set. Raise ConfigError."""
    text = environment.get(name) or str(default)
    if not Whole().accepts(text):
        raise ConfigError(f"{name}: found {text[:80]!r} in the environment, expected {VARIABLES.get(name, Whole())}")
    return int(text)
