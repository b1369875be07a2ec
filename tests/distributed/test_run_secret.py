"""What a stranger writes into the store of a run: it is ignored, whatever it is, and the run goes on."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_agent.distributed import failure_detector, run_secret
from ddp_agent.distributed.c10d import HashStore, PrefixStore, Store, TCPStore
from ddp_agent.distributed.failure_detector import FailureDetector
from ddp_agent.distributed.failure_report import Failure, parse_step
from ddp_agent.distributed.heartbeat import Heartbeat, Process
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.distributed.progress import Report
from ddp_agent.distributed.rendezvous import Rendezvous, short_text
from ddp_agent.distributed.run_secret import SignedStore, prefix
from ddp_agent.distributed.stop_signals import parse_request

FORGED = Failure(0, 3, 4, "forged")
ASKED = "SIGTERM on rank 0"


@pytest.fixture(autouse=True)
def known_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run_secret.VARIABLE, "the run's own")
    for name in ("POLL_S", "HURRY_S"):
        monkeypatch.setattr(failure_detector, name, 0.01)


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(server: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)


def signed_with(secret: str, name: str, key: str, text: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(run_secret.VARIABLE, secret)
        return SignedStore(HashStore(), name).signed(key, text)


def forgeries(name: str, key: str, text: str) -> Iterator[str]:
    """The text without a code, with codes that a stranger can make, with a code of another key, and garbage."""
    yield text
    yield signed_with("", name, key, text)
    yield signed_with("a guess", name, key, text)
    yield signed_with("the run's own", name, "another key", text)
    yield signed_with("the run's own", "another attempt", key, text)
    yield from ("", "\0", "é" * 40, "[" * 9000, "9" * 40_000, "0" * 32 + text)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("failed", FORGED.to_json()),
        ("failed", json.dumps({**json.loads(FORGED.to_json()), "code": 0})),
        ("asked", ASKED),
        ("stop", "1"),
        ("searching", "yes"),
    ],
)
def test_a_stranger_ends_no_run_and_stops_none(key: str, text: str, server: TCPStore) -> None:
    """He reads all keys, and writes over every value that the ranks keep there."""
    name = "group/0/train/1/failures"
    ours = PrefixStore(prefix("ddp_agent"), client(server))
    detectors = [FailureDetector(SignedStore(ours, name), rank=rank, world_size=2, timeout_s=20) for rank in range(2)]
    stranger = client(server)
    base = next(it for it in stranger.list_keys() if it.endswith(f"{name}/heartbeat/0")).removesuffix("heartbeat/0")
    with ExitStack() as stack:
        for detector in detectors:
            stack.callback(detector.close)
            detector.start()
        for step, forged in enumerate(forgeries(name, key, text), start=1):
            stranger.set(f"{base}{key}", forged)
            for known in ("heartbeat/0", "heartbeat/1", "process/0", "process/1"):
                stranger.set(f"{base}{known}", forged)
            for detector in detectors:
                heard = detector._heartbeats._count
                wait_until(lambda beats=detector._heartbeats, heard=heard: beats._count > heard + 2)  # type: ignore[misc]
            assert not any(detector.stops_before(step) for detector in detectors)
        assert [(it.failure, it.stop_request) for it in detectors] == [(None, "")] * 2
        told = detectors[1].fail("the real one", 5, echo=False)
        wait_until(lambda: detectors[0].failure is not None)
        assert told == detectors[0].failure == Failure(1, step, 5, "the real one")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_heartbeat_that_is_repeated_is_no_sign_of_life(server: TCPStore) -> None:
    """A stranger may write a genuine value again, which he has read. Its number is not new."""
    store = SignedStore(client(server), "failures")
    other = FailureDetector(store, rank=1, world_size=2, timeout_s=0.3)
    other._send_heartbeat()
    stranger = PrefixStore("failures", client(server))
    old, watcher = stranger.get("heartbeat/1"), FailureDetector(store, rank=0, world_size=2, timeout_s=0.3)
    other._send_heartbeat()
    new = stranger.get("heartbeat/1")
    watcher.start()
    try:
        deadline = time.monotonic() + 20
        while watcher.failure is None and time.monotonic() < deadline:
            for value in (old, new):
                stranger.set("heartbeat/1", value.decode())
                time.sleep(0.005)
        assert watcher.failure is not None and watcher.failure.rank == 1
    finally:
        watcher.close()


@pytest.mark.parametrize("key", ["run_time", "attempts"])
def test_ranks_agree_over_a_value_that_a_stranger_has_put_there(key: str, server: TCPStore) -> None:
    for number, forged in enumerate(forgeries("agreement", key, "1")):
        ours = PrefixStore(f"{number}", PrefixStore(prefix("ddp_agent"), client(server)))
        ours.set(f"agreement/{key}", forged)
        rendezvous = Rendezvous(ours, TorchrunEnvironment())
        if key == "attempts":
            assert rendezvous.attempt == 0
        else:
            assert [rendezvous.agree(key, it) for it in ("2026-12-01", "2026-12-02")] == ["2026-12-01"] * 2


def test_nobody_finds_the_keys_of_another_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = set()
    for secret in ("", "one", "two"):
        monkeypatch.setenv(run_secret.VARIABLE, secret)
        prefixes.add(prefix("ddp_agent"))
        assert not secret or secret not in prefix("ddp_agent")
    assert len(prefixes) == 3
    environment: dict[str, str] = {}
    run_secret.ensure(environment)
    assert len(environment[run_secret.VARIABLE]) == 32
    kept = dict(environment)
    run_secret.ensure(environment)
    assert environment == kept, "a restart, and a user's own secret"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=12,
)
KEYS = ("rank", "step", "code", "text", "unreported", "noticed_by")
PARSERS: list[Callable[[str], Any]] = [
    lambda text: Failure.from_json(text, world_size=2),
    Heartbeat.from_json,
    Process.parse,
    parse_request,
    parse_step,
    short_text,
]


@settings(deadline=None, max_examples=100)
@given(
    st.text(max_size=60)
    | VALUES.map(json.dumps)
    | st.fixed_dictionaries(dict.fromkeys(KEYS, VALUES)).map(json.dumps)
    | st.lists(VALUES, min_size=8, max_size=8).map(json.dumps)
)
def test_every_value_is_read_or_refused_as_malformed(text: str) -> None:
    for parse in PARSERS:
        try:
            value = parse(text)
        except ValueError:
            continue
        if isinstance(value, Failure):
            assert value.rank in (0, 1) and 1 <= value.code <= 255 and value.step >= 0
        if isinstance(value, Heartbeat):
            assert type(value.report.step) is int and value.report.step >= 0


@pytest.mark.parametrize("code", [0, -1, 256, True, 4.0, "4", None, 10**400])
def test_a_failure_without_a_failures_code_is_none(code: object) -> None:
    """Also when a rank of this run had written it."""
    with pytest.raises(ValueError, match="exit code of a failure"):
        Failure.from_json(json.dumps({**json.loads(FORGED.to_json()), "code": code}), world_size=2)


def test_values_survive_the_store() -> None:
    store: Store = HashStore()
    signed = SignedStore(store, "values")
    report = Report(step=7, launched=3, moves=9, waiting=True, path="/a/ü")
    heartbeat = Heartbeat(count=2, promise=8, report=report)
    signed.set("heartbeat", heartbeat.to_json())
    assert signed.get("heartbeat", Heartbeat.from_json) == heartbeat
    assert signed.get("nothing", str) is None
    long = Failure(1, 2, 3, "ü" * 20_000)
    signed.set("failed", long.to_json())
    read = signed.get("failed", lambda text: Failure.from_json(text, 2))
    assert read is not None and read.code == 3 and 4000 < len(read.text) <= 5000
