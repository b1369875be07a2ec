"""Who is named when ranks stand still: one row per case. Reports are those that heartbeats carry."""

import errno
import socket

import pytest

from ddp_agent.distributed import loopback, standstill
from ddp_agent.distributed.ledger import Ledger
from ddp_agent.distributed.progress import Activity, Progress, Report
from ddp_agent.distributed.standstill import AwakeClock, Unchanged, long_s, stuck_rank
from ddp_agent.distributed.stop_signals import grace_s
from ddp_agent.errors import UnreachableError

LIMIT_S, PATIENCE_S = 6.0, 60.0
COMPUTE, DATA = Activity.COMPUTE, Activity.DATA


def at(step: int, activity: Activity = COMPUTE, *, launched: int = 0, waiting: bool = False, path: str = "") -> Report:
    return Report(step=step, activity=activity, launched=launched, waiting=waiting, path=path)


@pytest.mark.parametrize(
    ("reports", "stood_s", "named", "words"),
    [
        ([at(7, waiting=True), at(7)], [7, 7], 1, "main thread has stood still for 7 s in step 7"),
        ([at(7), at(7, waiting=True)], [7, 7], 0, "main thread"),
        ([at(7, waiting=True), at(7, DATA)], [7, 7], 1, "its loader has given no data"),
        ([at(40), at(7)], [0, 7], 1, "in step 7"),  # between two averagings nobody waits
        ([at(7, launched=5), at(7, launched=4)], [7, 7], 1, "in step 7"),  # NCCL: a wait is none of the host's
        ([at(7, waiting=True), at(7, waiting=True), at(7)], [9, 9, 9], 2, "in step 7"),
        ([at(8, waiting=True), at(8), at(7)], [9, 9, 9], 2, "in step 7"),  # the one furthest behind
        ([at(7, waiting=True), at(7)], [7, 5], None, ""),  # slower than the other, within its time
        ([at(7), at(7)], [700, 700], None, ""),  # all are in the same long step
        ([at(7, waiting=True), at(7, waiting=True)], [9, 9], None, ""),  # a slow link
        ([at(9, Activity.LEFT), at(9, Activity.OUTSIDE)], [99, 99], None, ""),  # rank 0 has finished
        ([at(9, waiting=True), at(9, Activity.LEFT)], [99, 99], None, ""),
    ],
)
def test_who_is_named(reports: list[Report], stood_s: list[float], named: int | None, words: str) -> None:
    stuck = stuck_rank(dict(enumerate(reports)), dict(enumerate(stood_s)), LIMIT_S, PATIENCE_S)
    assert (stuck and stuck.rank) == named
    if stuck:
        assert stuck.over and words in stuck.text


@pytest.mark.parametrize("activity", [it for it in Activity if it.patient and it is not Activity.LEFT])
def test_a_long_activity_has_a_time_of_its_own(activity: Activity) -> None:
    reports = {0: at(7, waiting=True), 1: at(7, activity, path="/run/checkpoints")}
    for stood_s, over in ((7.0, False), (59.0, False), (61.0, True)):
        stuck = stuck_rank(reports, {0: stood_s, 1: stood_s}, LIMIT_S, PATIENCE_S)
        assert stuck is not None and (stuck.rank, stuck.over) == (1, over)
        assert ("/run/checkpoints" in stuck.text) == (activity is Activity.WRITING)
    assert stuck_rank(reports, {0: 5.0, 1: 5.0}, LIMIT_S, PATIENCE_S) is None
    assert (long_s(1), long_s(600)) == (60, 6000)


def test_a_rank_that_is_over_its_limit_comes_before_one_that_is_behind() -> None:
    reports = {0: at(9, waiting=True), 1: at(8), 2: at(7, Activity.EVALUATION)}
    stuck = stuck_rank(reports, dict.fromkeys(reports, 20.0), LIMIT_S, PATIENCE_S)
    assert stuck is not None and stuck.rank == 1


def test_time_in_which_this_process_did_not_run_counts_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a debugger, Ctrl-Z or a suspended machine, the others are not dead."""
    now = [1000.0]
    monkeypatch.setattr("ddp_agent.distributed.standstill.time.monotonic", lambda: now[0])
    clock, unchanged = AwakeClock(), Unchanged[int]()
    unchanged.look({1: "same"}, clock.tick())
    now[0] += 3600
    assert unchanged.look({1: "same"}, clock.tick())[1] <= standstill.MAX_TICK_S
    for _ in range(20):
        now[0] += 0.5
        stood = unchanged.look({1: "same"}, clock.tick())[1]
    assert 10 <= stood <= 10 + standstill.MAX_TICK_S
    assert unchanged.look({1: "new"}, clock.tick()) == {1: 0.0}


def test_a_main_thread_leaves_notes_of_where_it_is() -> None:
    progress = Progress()
    assert progress.report().activity is Activity.OUTSIDE
    progress.measure("compute")
    progress.begin(5)
    assert progress.report().activity is Activity.FIRST_STEP, "of this process: it compiles and allocates"
    progress.begin(6)
    for phase, activity in (("data", DATA), ("compute", COMPUTE), ("eval", "eval"), ("checkpoint", "checkpoint")):
        progress.measure(phase)
        assert progress.report().activity == activity
    with progress.writing("/a"), Ledger(progress=progress).blocked():
        report = progress.report()
        assert (report.activity, report.path, report.waiting, report.step) == (Activity.WRITING, "/a", True, 6)
    after = progress.report()
    assert (after.activity, after.waiting, after.path) == ("checkpoint", False, "")
    assert after.moves > report.moves
    progress.leave()
    assert progress.report().activity is Activity.LEFT


def test_a_thread_that_waits_for_another_stands_where_that_one_is() -> None:
    """The writer beside training: its rank is slow at the disk, the others' writers wait for it."""
    main, writer = Progress(), Progress()
    with main.following(writer), writer.writing("/disk"):
        assert (main.report().activity, main.report().path) == (Activity.WRITING, "/disk")
        writer.wait()
        assert main.report().waiting


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("2.5", 2.5), ("", 30.0), ("soon", 30.0), ("-1", 30.0), ("inf", 30.0)]
)
def test_the_grace_period_is_the_launchers(text: str, seconds: float) -> None:
    assert grace_s({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": text}) == seconds
    assert grace_s({}) == 30.0


def _without(*hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_server

    def create_server(address: tuple[str, int], **options: object) -> socket.socket:
        if address[0] in hosts:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(address, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", create_server)


def test_where_127_0_0_1_is_missing_the_store_is_at_the_other_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    _without("127.0.0.1", monkeypatch=monkeypatch)
    try:
        host, store = loopback.open_store()
    except UnreachableError:
        pytest.skip("this machine has no IPv6 loopback address")
    assert host == "::1"
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_without_any_loopback_address_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    _without("127.0.0.1", "::1", monkeypatch=monkeypatch)
    with pytest.raises(UnreachableError, match=r"no loopback address: 127\.0\.0\.1:0: no such.*ip link set lo up"):
        loopback.open_store()


def test_a_port_that_cannot_be_used_is_refused_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}: in use by another process; choose another port"):
            loopback.listen("127.0.0.1", port)
    with pytest.raises(UnreachableError, match="the name does not resolve"):
        loopback.listen("no-such-host.invalid", 0)
    with pytest.raises(UnreachableError, match="no such address on this machine"):
        loopback.listen("192.0.2.1", 0)
    with pytest.raises(UnreachableError, match="port"):
        loopback.listen("127.0.0.1", 70_000)


@pytest.mark.parametrize(
    ("text", "host", "port"), [("10.0.0.1:29600", "10.0.0.1", 29600), ("[::1]:5", "::1", 5), ("node:0", "node", 0)]
)
def test_addresses_are_split_and_joined(text: str, host: str, port: int) -> None:
    assert loopback.split(text) == (host, port)
    assert loopback.join(host, port) == text
    for wrong in ("29600", ":5", "host:", "host:five", "host:70000", f"host:{'9' * 5000}"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            loopback.split(wrong)
