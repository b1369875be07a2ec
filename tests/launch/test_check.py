"""The smoke test launch/check.sh: what it finds, and that it finds it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rank_pool import RankPool
from slurm_cluster import free_ports
from stub_programs import program

from ddp_agent.distributed import smoke_test
from ddp_agent.distributed.smoke_test import Finding, clocks, data, disk, gpus, seen, speed, versions
from ddp_agent.distributed.topology import Topology

CHECK = Path(__file__).parents[2] / "launch" / "check.sh"


def fact(**differs: Any) -> dict[str, Any]:
    same = {"host": "n1/0", "versions": "Python 3.11.7, torch 2.15.0", "code": "/a", "gpus": "H200", "count": 8}
    return {**same, "data": True, **differs}


@pytest.mark.parametrize(
    ("finding", "verdict", "words"),
    [
        (seen([fact(), fact(host="n2/1")]), "ok", "2 on 2 nodes (n1 has 1, n2 has 1)"),
        (seen([fact(), fact(host="n1/1")]), "ok", "2 on 2 nodes"),
        (seen([fact(), fact(), fact(host="n2/1")]), "note", "different numbers"),
        (versions([fact(), fact()]), "ok", "torch 2.15.0 on all ranks"),
        (versions([fact(), fact(versions="Python 3.12.1, torch 2.11.0", host="n2/1")]), "FAILED", "rank 1 on n2"),
        (versions([fact(), fact(code="/b")]), "note", "/a, /b"),
        (gpus([fact(), fact()], "cuda", "nccl"), "ok", "8 × H200 per node; nccl"),
        (gpus([fact(), fact(count=4)], "cuda", "nccl"), "note", "4 × H200, 8 × H200"),
        (gpus([fact(), fact()], "cuda", "gloo"), "note", "one rank per GPU"),
        (gpus([fact(count=0)], "cpu", "gloo"), "note", "trains on CPU"),
        (clocks([10.0, 10.2]), "ok", "less than a second"),
        (clocks([10.0, 200_010.0]), "note", "200,000.0 s apart"),
        (data([fact(), fact(data=False, host="n2/1")], "/data"), "FAILED", "rank 1 on n2"),
        (data([fact(), fact()], "/data"), "ok", "/data"),
        (data([fact()], None), "note", "not checked"),
    ],
)
def test_a_finding_says_what_was_found(finding: Finding, verdict: str, words: str) -> None:
    assert (finding.verdict, words in finding.text) == (verdict, True), finding


def disk_findings(folders: Sequence[str], rank_1: str) -> list[tuple[str, str, str]]:
    """On rank 1 a lock gives the answer `rank_1`, if it is not empty."""
    comm = Topology.create().world
    smoke_test.SEEN_WITHIN_S = 0.5
    real = smoke_test._lock
    if rank_1 and (comm.rank == 1 or rank_1 not in ("taken", "refused")):
        smoke_test._lock = lambda descriptor: rank_1
    try:
        found = disk(comm, Path(folders[comm.rank]))
    finally:
        smoke_test._lock = real
    return [(it.name, it.verdict, it.text) for it in found]


@pytest.mark.parametrize(
    ("rank_1", "verdict", "words"),
    [
        ("", "ok", "is locked for all"),
        ("taken", "FAILED", "two runs could write into one directory"),
        ("refused", "FAILED", "stays after its end"),
        ("Function not implemented", "note", "a second run in a run directory is not refused"),
    ],
)
def test_locks_that_do_not_hold_are_found(
    rank_1: str, verdict: str, words: str, ranks2: RankPool, tmp_path: Path
) -> None:
    (one, other) = ranks2.run(disk_findings, [str(tmp_path / "outputs")] * 2, rank_1)
    assert one == other
    assert [each[:2] for each in one] == [("disk", "ok"), ("locks", verdict)]
    assert words in one[1][2]
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_disk_that_each_node_has_for_itself_is_found(ranks2: RankPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folders, words in (
        (["a", "b"], "not a disk that all nodes see"),
        (["a", "file/below"], "cannot be written (rank 1 on "),
    ):
        for found in ranks2.run(disk_findings, [str(tmp_path / name) for name in folders], ""):
            ((name, verdict, text),) = found
            assert (name, verdict) == ("disk", "FAILED")
            assert words in text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def measured() -> str:
    return speed(Topology.create().world, "gloo").text


def test_all_ranks_measure_one_speed(ranks2: RankPool) -> None:
    one, other = ranks2.run(measured)
    assert one == other
    assert "Mbit/s per rank" in one


@pytest.mark.faults
def test_two_nodes_check_each_other(tmp_path: Path) -> None:
    """Two nodes on one machine, the second of which lacks the data."""
    (port,) = free_ports(1)
    shown = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NPROC_PER_NODE": "1"}
    shown |= {"PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "lo", "CHECK_TIMEOUT": "100", "OMP_NUM_THREADS": "1"}
    shown |= {"RUN_DIR": str(tmp_path / "runs" / "a")}
    nodes = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (tmp_path / "0" / "data").mkdir(exist_ok=True)
        env = {"PATH": os.environ["PATH"], **shown, "NODE_RANK": str(number)}
        command = [str(CHECK), "device=cpu", "data_root=data", "sync=diloco"]
        nodes.append(subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=-1, stderr=-1))
    said = [node.communicate(timeout=120) for node in nodes]
    first = said[0][0]
    assert [node.returncode for node in nodes] == [1, 1], said
    assert "ok      ranks: 2 on 2 nodes" in first
    assert f"ok      disk: all ranks see {tmp_path / 'runs'}" in first
    assert "FAILED  data: data_root=data cannot be read by rank 1" in first
    assert first.endswith("FAILED: data. Mend this before a run.\n")
    assert said[1][0] == "node 1 of 2 waits for the others\n"
    assert not any("Traceback" in text for pair in said for text in pair)


def test_on_a_machine_without_gpu_the_remedy_is_told(tmp_path: Path) -> None:
    python = program(tmp_path, "python", "#!/bin/sh\necho 0\n")  # the number of GPUs that torch sees
    path = os.environ["PATH"]
    done = subprocess.run(
        [str(CHECK)], env={"PATH": path, "PYTHON": str(python)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("device: found no GPU on ") and "device=cpu" in done.stderr
    inside = subprocess.run(
        [str(CHECK)], env={"PATH": path, "SLURM_NNODES": "2"}, capture_output=True, text=True, check=False
    )
    expected = "found a Slurm job of 2 nodes, expected: sbatch launch/slurm.sbatch --check\n"
    assert (inside.returncode, inside.stderr) == (2, expected)


@pytest.mark.parametrize(
    ("ends", "words", "code"),
    [
        ("sleep 9", "FAILED: no result within 1 s. A node did not come, or cannot be reached.", 1),
        ("exit 1", "FAILED: the ranks could not start together (exit code 1).", 1),
        ('echo 1 >"$DDP_AGENT_CHECK_RESULT"; exit 1', "", 1),
        ('echo 0 >"$DDP_AGENT_CHECK_RESULT"; exit 1', "", 0),
    ],
)
def test_ranks_that_never_come_to_a_result_are_explained(ends: str, words: str, code: int, tmp_path: Path) -> None:
    python = program(tmp_path, "python", f"#!/bin/sh\n{ends}\n")
    nodes = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1", "NPROC_PER_NODE": "1", "CHECK_TIMEOUT": "1"}
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python), **nodes}
    done = subprocess.run([str(CHECK), "device=cpu"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[:1]) == (code, [words][: bool(words)])
    assert not words or "GLOO_SOCKET_IFNAME" in done.stderr
