import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, here or in a process that a test starts: threads of several ranks on two cores
# only get in each other's way, and a sum that is split over threads differs from machine to machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ranks import test modules by name, and tests of one folder use the laws of another.
sys.path[:0] = [str(folder) for folder in sorted(Path(__file__).parent.iterdir()) if folder.is_dir()]

import pytest  # noqa: E402
from launching import configs, own_environment, project  # noqa: E402, F401
from rank_pool import RankPool, RankProcesses  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests that start launchers first: they take a minute each, and other tests run beside them."""
    items.sort(key=lambda item: item.path.name not in ("test_slurm.py", "test_faults_torchrun.py"))


def pytest_collection_finish() -> None:
    """Thousands of tests and torch: what stays anyway need not be looked through at every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def rank_processes() -> Iterator[RankProcesses]:
    processes = RankProcesses()
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from whole_runs import Wholes  # most sessions need none of it

    return Wholes(tmp_path_factory.mktemp("wholes"))


@pytest.fixture
def ranks1(rank_processes: RankProcesses) -> RankPool:
    return RankPool(1, rank_processes)


@pytest.fixture
def ranks2(rank_processes: RankProcesses) -> RankPool:
    return RankPool(2, rank_processes)


@pytest.fixture
def ranks3(rank_processes: RankProcesses) -> RankPool:
    return RankPool(3, rank_processes)


@pytest.fixture
def ranks4(rank_processes: RankProcesses) -> RankPool:
    return RankPool(4, rank_processes)


@pytest.fixture
def data_root() -> Path:
    """The folder of the real data files, for tests marked `data`."""
    root = os.environ.get("DDP_AGENT_DATA", "")
    if not Path(root).is_dir() or not root:
        pytest.skip(f"DDP_AGENT_DATA is {root!r}, no folder with data files")
    return Path(root)
