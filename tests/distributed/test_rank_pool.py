import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_pool import PRELOAD, RankError, RankPool, RankProcesses


def sum_over_ranks(value: float) -> torch.Tensor:
    total = torch.tensor(value + dist.get_rank())
    dist.all_reduce(total)
    return total


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError(f"planted on {rank}")
    dist.barrier()  # never comes back: the failing rank is not there


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def leave(code: int) -> None:
    sys.exit(code)


def wait_forever() -> None:
    while True:
        time.sleep(0.1)


def miss_a_collective() -> None:
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))


def return_what_cannot_be_pickled() -> Callable[[], None]:
    return lambda: None


def draw_and_disturb() -> tuple[torch.dtype, float, float]:
    drawn = torch.get_default_dtype(), float(torch.rand(())), random.random()
    torch.set_default_dtype(torch.float64)
    return drawn


def lead_a_session(pids: Path) -> None:
    processes = RankProcesses(preload=())  # its server starts anew, and these ranks need no optimizer
    RankPool(2, processes).run(os.getpid)
    pids.write_text(" ".join(map(str, processes.pids)))
    RankPool(2, processes).run(kill_and_stay_busy, os.getpid())


def kill_and_stay_busy(pid: int) -> None:
    if dist.get_rank() == 0:
        os.kill(pid, signal.SIGKILL)
    time.sleep(3600)


def make_subgroup() -> int:
    dist.new_group([0])
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("ranks", ["ranks1", "ranks2", "ranks3", "ranks4"])
def test_one_result_per_rank_from_one_group(ranks: str, request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue(ranks)
    assert pool.run(sum_over_ranks, 1.5) == [1.5 * pool.size + sum(range(pool.size))] * pool.size


def test_processes_are_kept_between_calls(ranks2: RankPool) -> None:
    assert ranks2.run(os.getpid) == ranks2.run(os.getpid)


def test_the_smaller_pool_uses_the_same_processes(ranks2: RankPool, ranks4: RankPool) -> None:
    assert ranks4.run(os.getpid)[:2] == ranks2.run(os.getpid)


def test_state_is_reset_before_each_call(ranks2: RankPool) -> None:
    first, second = ranks2.run(draw_and_disturb), ranks2.run(draw_and_disturb)
    assert first == second
    assert first[0][0] is torch.float32


def test_groups_made_by_a_test_do_not_pile_up(ranks2: RankPool) -> None:
    ranks2.run(make_subgroup)  # the first call opens what stays open
    counts = [ranks2.run(make_subgroup)[0] for _ in range(4)]
    assert counts == counts[:1] * 4


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (fail_on, (1,), r"rank 1: Traceback[\s\S]*ValueError: planted on 1"),
        (die_on, (0,), r"rank 0: died, exit code -9"),
        (leave, (3,), r"rank 0: [\s\S]*SystemExit: 3"),
        (wait_forever, (), r"rank 1: no answer \(limit 1 s\)"),
        (miss_a_collective, (), r"rank [01]: "),
        (return_what_cannot_be_pickled, (), r"rank 1: [\s\S]*pickle"),
    ],
)
def test_a_failure_is_reported_and_poisons_nothing(
    ranks2: RankPool, function: Callable[..., object], args: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RankError, match=message):
        ranks2.run(function, *args, timeout_s=1)
    assert ranks2.run(sum_over_ranks, 0.0) == [1.0, 1.0]


def test_functions_must_be_importable(ranks2: RankPool) -> None:
    with pytest.raises(Exception, match=r"local object|lambda"):
        ranks2.run(lambda: None)
    assert ranks2.run(sum_over_ranks, 0.0) == [1.0, 1.0]


def test_close_leaves_no_process() -> None:
    processes = RankProcesses()
    RankPool(2, processes).run(os.getpid)
    pids = processes.pids
    processes.close()
    assert len(pids) == 2
    assert not [pid for pid in pids if is_alive(pid)]


def test_ranks_end_with_a_killed_session(ranks1: RankPool, tmp_path: Path) -> None:
    with pytest.raises(RankError, match="exit code -9"):
        ranks1.run(lead_a_session, tmp_path / "pids")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    limit = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def not_imported() -> list[str]:
    return [name for name in PRELOAD if name not in sys.modules]


def test_ranks_are_forks_of_a_process_that_has_imported_what_they_need(ranks1: RankPool) -> None:
    assert ranks1.run(not_imported) == [[]]
