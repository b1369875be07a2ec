"""A link's counters, over the phases of training alone."""

import socket
from pathlib import Path

import pytest

from ddp_agent.errors import ConfigError
from ddp_agent.training import link_bytes as module
from ddp_agent.training.clock import Clock
from ddp_agent.training.link_bytes import INTERFACE, RATE, Link, summary

COUNTERS = """\
Inter-|   Receive                        |  Transmit
 face |bytes    packets errs drop fifo … |bytes    packets errs drop fifo …
    lo:  111   1    0    0    0     0    0    0      222   2    0    0    0     0       0          0
  eth0:12345   9    0    0    0     0    0    0    {sent}   9    0    0    0     0       0          0
"""


class Interface:
    """A kernel's table of counters that a test moves on."""

    def __init__(self, file: Path) -> None:
        self.file, self.sent = file, 1_000_000
        self.send(0)

    def send(self, count: int) -> None:
        self.sent += count
        self.file.write_text(COUNTERS.format(sent=self.sent))


@pytest.fixture
def interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interface:
    monkeypatch.setattr(module, "_COUNTERS", tmp_path / "dev")
    monkeypatch.setenv(INTERFACE, "eth0")
    monkeypatch.setenv(RATE, "100000000")
    return Interface(tmp_path / "dev")


def test_only_what_is_sent_while_training_counts(interface: Interface) -> None:
    link = Link.from_environment()
    assert link is not None
    clock = Clock(link)
    interface.send(1)  # start-up
    with clock.phase("compute"):
        for phase, count in (("data", 10), ("eval", 3_000), ("checkpoint", 500_000), ("data", 6_000_000)):
            with clock.phase(phase):  # type: ignore[arg-type]
                interface.send(count)
            interface.send(200 if phase == "data" else 20_000)
    interface.send(70_000_000)
    assert summary(link) == {"link_bytes": 6_040_410, "link_rate_bits_per_s": 100_000_000}


def test_what_is_still_under_way_when_training_pauses_counts(
    interface: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link.from_environment()
    assert link is not None
    link.measure("compute")
    interface.send(100)
    leaving = iter([20, 3, 0, 40])  # the last of it is evaluation's
    monkeypatch.setattr("ddp_agent.training.link_bytes.time.sleep", lambda seconds: interface.send(next(leaving)))
    link.measure("eval")
    assert link.training_bytes == 123


def test_a_run_that_was_measured_in_part_has_no_count(interface: Interface) -> None:
    link = Link("eth0", training_bytes=None)
    link.measure("compute")
    interface.send(5)
    link.measure("eval")
    assert summary(link)["link_bytes"] is None


def test_without_a_named_interface_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERFACE, raising=False)
    assert Link.from_environment() is None
    assert summary(None) == {"link_bytes": None, "link_rate_bits_per_s": None}


@pytest.mark.parametrize(("name", "value"), [(INTERFACE, "eth1"), (RATE, "100mbit"), (RATE, "-1")])
def test_a_link_that_is_not_there_is_refused(
    interface: Interface, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}: found {value!r}, expected"):
        Link.from_environment()


@pytest.mark.skipif(not Path("/proc/self/net/dev").exists(), reason="needs Linux's /proc")
def test_the_kernel_counts_what_this_process_sends() -> None:
    """Loopback, through a real table of counters."""
    link = Link("lo")
    before = link.sent_bytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(bytes(10_000), receiver.getsockname())
    assert link.sent_bytes() - before >= 10_000
