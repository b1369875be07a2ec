"""launch/netlab.py: nodes on one machine, the links between them, and that nothing of the network stays."""

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from netlab_runs import NETLAB, call, needs_namespaces, start

ROOT = Path(__file__).parents[2]
CAP_SYS_ADMIN, PR_CAPBSET_DROP = 21, 24  # linux/capability.h, linux/prctl.h


# Takes the place of train.py: does on every node what its second argument says, with its first as folder for results.
SCRIPT = """
import json, os, shlex, socket, subprocess, sys, time
from pathlib import Path

folder, what = Path(sys.argv[1]), sys.argv[2]
ask = lambda command: json.loads(subprocess.run(command.split(), capture_output=True, check=True).stdout)
if on_nodes := os.environ.pop("DDP_AGENT_ON_NODES", None):
    (folder / "switch.json").write_text(json.dumps(ask("tc -j qdisc show dev node1")))
    command = [*shlex.split(on_nodes), sys.executable, *sys.argv]
    os.execvp(command[0], command)

node, nodes = int(os.environ["PET_NODE_RANK"]), int(os.environ["PET_NNODES"])
if what == "fail":
    print("out", node)
    sys.exit([1, 5, 1][node])
with socket.create_server(("", 5000)) as server:
    (folder / f"listens{node}").touch()
    while len(list(folder.glob("listens*"))) < nodes:
        time.sleep(0.01)
    peer = socket.create_connection((f"node{(node + 1) % nodes}", 5000))
    connection, (address, _) = server.accept()
report = {"host": socket.gethostname(), "from": socket.gethostbyaddr(address)[0], "environment": dict(os.environ),
          "hosts": Path("/etc/hosts").read_text(), "qdisc": ask("tc -j qdisc show dev eth0")}
(folder / f"report{node}.tmp").write_text(json.dumps(report))
(folder / f"report{node}.tmp").rename(folder / f"report{node}.json")
if what == "wait":
    peer.recv(1)  # until the other end is gone
    sys.exit(1)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def processes(mark: object) -> dict[int, list[str]]:
    """Command lines, by pid, of those that have `mark` in it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().split("\0")[:-1]
        except OSError:
            continue
        if int(folder.name) != os.getpid() and any(str(mark) in argument for argument in command):
            found[int(folder.name)] = command
    return found


def networks() -> set[str]:
    """Return the networks of all processes."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(link))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def without_admin() -> None:
    """Take root's privileges from the new process, so that netlab needs a user namespace."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN)


# What is built


@needs_namespaces
@pytest.mark.parametrize("become", [None, without_admin], ids=["as we are", "without privileges"])
def test_nodes_have_names_and_slow_links_and_reach_each_other(
    become: Callable[[], None] | None, script: Path, tmp_path: Path
) -> None:
    ran = call(
        "--nodes", 3, "--rate", "1.5gbit", "--nproc-per-node", 4, "--", script, tmp_path, "look", preexec_fn=become
    )
    assert ran.returncode == 0, ran.stderr
    reports = [json.loads((tmp_path / f"report{node}.json").read_text()) for node in range(3)]
    assert [report["host"] for report in reports] == ["node0", "node1", "node2"]
    assert [report["from"] for report in reports] == ["node2", "node0", "node1"]
    for qdisc in [*(report["qdisc"] for report in reports), json.loads((tmp_path / "switch.json").read_text())]:
        assert [(each["kind"], each["options"]["rate"] * 8) for each in qdisc] == [("tbf", 1_500_000_000)]
    for report in reports:
        assert {key: report["environment"][key] for key in ("DDP_AGENT_LINK", "DDP_AGENT_LINK_RATE")} == {
            "DDP_AGENT_LINK": "eth0",
            "DDP_AGENT_LINK_RATE": "1500000000",
        }
        assert report["environment"]["DDP_AGENT_NPROC_PER_NODE"] == "4"
        assert report["hosts"] != Path("/etc/hosts").read_text()
    assert (tmp_path / "report0.json").stat().st_uid == os.getuid()


@needs_namespaces
def test_the_exit_code_is_that_of_the_node_that_knew_why(script: Path, tmp_path: Path) -> None:
    """Also: the first node's output is as it is, the others' tells whose it is."""
    ran = call("--nodes", 3, "--rate", "1gbit", "--", script, tmp_path, "fail")
    assert ran.returncode == 5
    assert ran.stdout == "out 0\n"
    assert sorted(ran.stderr.splitlines()) == ["[node1] out 1", "[node2] out 2"]


@needs_namespaces
@pytest.mark.exhaustive
def test_a_sweep_counts_what_the_link_carried(tmp_path: Path) -> None:
    """Headers and acknowledgements come on top of what is counted: up to 8 %."""
    run = ["-m", "max_steps=60", "log_every=30", "sync=compressed", "eval_every=30", "device=cpu"]
    ran = call("--nodes", 2, "--rate", "1gbit", "--", ROOT / "train.py", *run, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    summary, status = (
        json.loads((tmp_path / "sweep" / "0" / f"{name}.json").read_text()) for name in ("summary", "status")
    )
    assert status["status"] == "finished"
    assert (summary["nodes"], summary["world_size"], summary["link_rate_bits_per_s"]) == (2, 2, 10**9)
    assert 1.0 <= summary["link_bytes"] / summary["wire_bytes"] < 1.08


# That nothing stays


WHO: dict[str, Callable[[int, list[str]], bool]] = {
    "netlab": lambda pid, command: parent(pid) == os.getpid(),
    "process 1": lambda pid, command: str(NETLAB) in command and parent(parent(pid)) == os.getpid(),
    "job": lambda pid, command: "--on-nodes" in command,
    "node 1": lambda pid, command: str(NETLAB) not in command and "PET_NODE_RANK=1" in environ(pid),
}


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


@pytest.fixture
def waiting(script: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A lab of two nodes that wait for each other."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = start("--nodes", 2, "--rate", "1gbit", "--", script, tmp_path, "wait", **quiet)
    try:
        assert wait_until(lambda: len(list(tmp_path.glob("report*.json"))) == 2), process.poll()
        yield process
    finally:
        for pid in processes(tmp_path):
            with suppress(ProcessLookupError):  # went with another
                os.kill(pid, signal.SIGKILL)
        process.wait()


@needs_namespaces
@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [
        ("netlab", signal.SIGINT, 130),
        ("netlab", signal.SIGTERM, 143),
        ("netlab", signal.SIGKILL, -9),
        ("process 1", signal.SIGKILL, 137),
        ("job", signal.SIGKILL, 137),
        ("node 1", signal.SIGKILL, 137),
    ],
)
def test_nothing_stays_however_it_ends(
    victim: str, number: int, code: int, waiting: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    commands = processes(tmp_path)
    theirs = {os.readlink(f"/proc/{pid}/ns/net") for pid in commands} - {os.readlink("/proc/self/ns/net")}
    assert len(commands) == 5 and len(theirs) == 3  # netlab, process 1, the job, two nodes; the switch and the nodes
    (pid,) = [pid for pid, command in commands.items() if WHO[victim](pid, command)]
    os.kill(pid, number)
    waiting.wait(60)
    assert waiting.returncode == code
    assert wait_until(lambda: not processes(tmp_path)), processes(tmp_path)
    assert not theirs & networks()
