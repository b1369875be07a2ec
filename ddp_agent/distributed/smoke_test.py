"""Smoke test of the machines that are to train together: `launch/check.sh` starts it on every rank, under torchrun.

It needs no configuration and trains nothing. Rank 0 prints one line per finding, and a last line that counts.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Any, Literal

import torch

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group import start
from ddp_agent.distributed.topology import Topology
from ddp_agent.errors import RefusedError

# Names a file of each node for the exit code. Without it torchrun would print a traceback around each failed check.
RESULT = "DDP_AGENT_CHECK_RESULT"
TIMEOUT_S = 60.0
SEEN_WITHIN_S = 30.0  # a network disk may show a new file late: NFS keeps what it knows of a folder for 30 s
CLOCKS_S = 1.0
_TEXT_BYTES = 4096
_LARGE, _SMALL = 16_000_000, 1_000_000  # bytes; the larger tensor only where the smaller one took less than a second

Facts = Sequence[Mapping[str, Any]]  # one mapping per rank


@dataclass(frozen=True)
class Finding:
    """The result of one check. Only "FAILED" means that a run would not work."""

    name: str
    verdict: Literal["ok", "note", "FAILED"]
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<6}  {self.name}: {self.text}"


def main(arguments: Sequence[str]) -> int:
    """Check as one rank. Return 1 if a check failed and no file takes the result, 2 if the ranks could not start."""
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    folder = Path(os.environ["RUN_DIR"]).parent if os.environ.get("RUN_DIR") else Path("outputs")
    try:
        with start(given.get("device", "auto"), TIMEOUT_S, job="check") as ranks:
            comm = Topology.create().world
            facts = tell(comm, _facts(given.get("data_root")))
            findings = [
                seen(facts),
                versions(facts),
                gpus(facts, ranks.device.type, ranks.backend),
                clocks(_times(comm)),
                *disk(comm, folder),
                data(facts, given.get("data_root")),
                speed(comm, ranks.backend),
            ]
            code = int(any(finding.verdict == "FAILED" for finding in findings))
            if ranks.rank == 0:
                _print(findings)
    except RefusedError as refusal:
        print(f"rank {os.environ.get('RANK', 0)} on {socket.gethostname()}: {refusal}", file=sys.stderr, flush=True)
        code = 2
    if result := os.environ.get(RESULT):
        if code == 2 or os.environ.get("LOCAL_RANK") == "0":
            Path(result).write_text(str(code))
        code = 2 if code == 2 else 0
    return code


def _print(findings: Sequence[Finding]) -> None:
    failed = [finding.name for finding in findings if finding.verdict == "FAILED"]
    last = f"FAILED: {', '.join(failed)}. Mend this before a run." if failed else "All is well: a run can start."
    print("\n".join([*map(str, findings), last]), flush=True)


def tell(comm: Comm, value: Any) -> list[Any]:
    """Return every rank's value, which JSON must know. A collective."""
    text = json.dumps(value).encode()
    assert len(text) <= _TEXT_BYTES, "a fact of one rank is short"
    mine = torch.frombuffer(bytearray(text.ljust(_TEXT_BYTES)), dtype=torch.uint8).to(comm.device)
    return [json.loads(bytes(theirs.tolist())) for theirs in comm.all_gather(mine)]


def _facts(data_root: str | None) -> dict[str, Any]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": f"{socket.gethostname()}/{os.environ.get('GROUP_RANK', 0)}",  # two nodes may share a name
        "versions": f"Python {python_version()}, torch {torch.__version__}",
        "code": str(Path(__file__).parents[2]),
        "gpus": names[0] if len(set(names)) == 1 else ", ".join(sorted(set(names))),
        "count": len(names),
        "data": data_root is None or os.access(os.path.expanduser(data_root), os.R_OK),
    }


def _where(facts: Facts, ranks: Sequence[int]) -> str:
    """Name ranks with their nodes."""
    return ", ".join(f"rank {rank} on {facts[rank]['host'].rpartition('/')[0]}" for rank in ranks[:4])


def seen(facts: Facts) -> Finding:
    """Count the ranks of each node."""
    nodes = Counter(each["host"] for each in facts)
    text = ", ".join(f"{name.rpartition('/')[0]} has {count}" for name, count in sorted(nodes.items()))
    uneven = len(set(nodes.values())) > 1
    text = f"{len(facts)} on {len(nodes)} node{'s' * (len(nodes) > 1)} ({text})"
    return Finding("ranks", "note" if uneven else "ok", text + "; nodes have different numbers" * uneven)


def versions(facts: Facts) -> Finding:
    """Compare Python, torch and the folder of the code. `train.py` compares the code itself."""
    others = [rank for rank, each in enumerate(facts) if each["versions"] != facts[0]["versions"]]
    if others:
        text = f"{facts[others[0]]['versions']} ({_where(facts, others)}), but {facts[0]['versions']} on rank 0"
        return Finding("versions", "FAILED", text + "; start the same interpreter on all nodes (PYTHON=…)")
    folders = sorted({each["code"] for each in facts})
    if len(folders) > 1:
        return Finding("versions", "note", f"the code is in different folders: {', '.join(folders)}")
    return Finding("versions", "ok", f"{facts[0]['versions']} on all ranks")


def gpus(facts: Facts, device: str, backend: str) -> Finding:
    """Name the GPUs that ranks see, and the backend."""
    kinds = sorted({f"{each['count']} × {each['gpus']}" if each["count"] else "none" for each in facts})
    text = f"{', '.join(kinds)} per node; {backend} between ranks"
    if device == "cpu":
        return Finding("GPUs", "note", f"{text}; the run trains on CPU")
    if backend == "gloo":
        return Finding("GPUs", "note", f"{text}: ranks share GPUs, or some have none; use one rank per GPU")
    return Finding("GPUs", "ok" if len(kinds) == 1 else "note", text)


def _times(comm: Comm) -> list[float]:
    comm.barrier()  # all ranks leave it at nearly the same moment
    return [float(value) for value in tell(comm, time.time())]


def clocks(times: Sequence[float]) -> Finding:
    """Compare the times of day that ranks read at one moment."""
    apart_s = max(times) - min(times)
    if apart_s > CLOCKS_S:
        return Finding("clocks", "note", f"{apart_s:,.1f} s apart; records of attempts on other nodes may seem older")
    return Finding("clocks", "ok", "less than a second apart")


def data(facts: Facts, data_root: str | None) -> Finding:
    """Check that every rank can read the folder of the data."""
    if data_root is None:
        return Finding("data", "note", "not checked; data_root=<folder> checks that every node has it")
    if missing := [rank for rank, each in enumerate(facts) if not each["data"]]:
        return Finding("data", "FAILED", f"data_root={data_root} cannot be read by {_where(facts, missing)}")
    return Finding("data", "ok", f"every rank can read {data_root}")


def disk(comm: Comm, folder: Path) -> list[Finding]:
    """Check that a folder is one disk for all ranks, and that file locks hold between them. A collective."""
    names = [f"rank {rank} on {host}" for rank, host in enumerate(tell(comm, socket.gethostname()))]
    token = tell(comm, os.urandom(8).hex())[0]
    place = folder / f".check-{token}"
    try:
        problem = _write(place, comm)
        if failed := [f"{names[rank]}: {text}" for rank, text in enumerate(tell(comm, problem)) if text]:
            return [Finding("disk", "FAILED", f"{folder} cannot be written ({'; '.join(failed[:3])})")]
        waited_s = tell(comm, _wait_for(place, comm.size))
        if blind := [names[rank] for rank, seconds in enumerate(waited_s) if seconds is None]:
            text = f"{folder}: {', '.join(blind[:4])} cannot see what others wrote: not a disk that all nodes see. "
            return [Finding("disk", "FAILED", f"{text}Choose one with RUN_DIR=<shared folder>/<name of the run>")]
        free = shutil.disk_usage(folder).free / 1e9
        late = f", after up to {max(waited_s):.0f} s" if max(waited_s) > 1 else ""
        found = Finding("disk", "ok", f"all ranks see {folder}{late}; {free:,.0f} GB free")
        return [found, _locks(comm, place / "lock", names)]
    finally:
        comm.barrier()
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # only if this test made it: others' is not empty


def _write(place: Path, comm: Comm) -> str:
    """Write this rank's file, in a folder of its own node's making where the disk is not shared."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / str(comm.rank)).write_text("here")
        (place / "lock").touch()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _wait_for(place: Path, ranks: int) -> float | None:
    """Return the seconds until the files of all ranks are there, or None if they do not come."""
    begin = time.monotonic()
    while time.monotonic() - begin < SEEN_WITHIN_S:
        with suppress(OSError):
            if {str(rank) for rank in range(ranks)} <= set(os.listdir(place)):
                return time.monotonic() - begin
        time.sleep(0.1)
    return None


def _locks(comm: Comm, path: Path, names: Sequence[str]) -> Finding:
    """Check that a lock of rank 0 holds against the other ranks, and that its end is seen."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        tell(comm, f"cannot be opened: {error.strerror}"), tell(comm, None), tell(comm, None)
        return Finding("locks", "note", "not checked")
    try:
        taken = tell(comm, _lock(descriptor) if comm.rank == 0 else "")[0]
        refused = tell(comm, _lock(descriptor) if comm.rank else "refused")
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        comm.barrier()
        again = tell(comm, _lock(descriptor) if comm.rank == comm.size - 1 else "taken")[-1]
    finally:
        os.close(descriptor)
    if taken not in ("taken", "refused"):
        return Finding("locks", "note", f"none on this disk ({taken}): a second run in a run directory is not refused")
    if others := [names[rank] for rank, answer in enumerate(refused) if answer != "refused"]:
        text = f"a file that {names[0]} had locked was locked by {', '.join(others[:3])} as well"
        return Finding("locks", "FAILED", f"{text}: two runs could write into one directory. Mount the disk with locks")
    if again != "taken":
        return Finding("locks", "FAILED", f"a lock stays after its end ({names[-1]}: {again})")
    return Finding("locks", "ok", "a file locked by one rank is locked for all")


def _lock(descriptor: int) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "refused"
    except OSError as error:
        return error.strerror or str(error)
    return "taken"


def speed(comm: Comm, backend: str) -> Finding:
    """Measure an all-reduce of many bytes and one of four. A collective."""
    if comm.size == 1:
        return Finding("speed", "note", "one rank alone: nothing to measure")
    small_s = _all_reduce_s(comm, _SMALL, 3)
    size = _LARGE if small_s < 1 else _SMALL
    large_s, latency_s = _all_reduce_s(comm, size, 3) if size == _LARGE else small_s, _all_reduce_s(comm, 4, 20)
    bits_per_s = 8 * size * 2 * (comm.size - 1) / comm.size / large_s
    return Finding(
        "speed",
        "ok",
        f"{backend} averages {size / 1e6:.0f} MB in {1e3 * large_s:,.0f} ms ({bits_per_s / 1e6:,.0f} Mbit/s per rank), "
        f"and 4 bytes in {1e3 * latency_s:,.2f} ms",
    )


def _all_reduce_s(comm: Comm, size: int, times: int) -> float:
    """Return the median seconds of an all-reduce of `size` bytes, the same on every rank."""
    tensor = torch.zeros(size // 4, device=comm.device)
    seconds = []
    for _ in range(times + 1):  # the first one opens connections
        comm.barrier()
        begin = time.perf_counter()
        comm.all_reduce_(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)
        seconds.append(time.perf_counter() - begin)
    return float(max(tell(comm, median(seconds[1:]))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
