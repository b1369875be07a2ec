"""A real Slurm of two nodes on this machine, as a context manager: its own daemons, keys, ports and folder.

It installs nothing and leaves an existing Slurm alone. Daemons and jobs live in a process namespace of their own, whose
first process dies with this one. Then the kernel ends the others, whatever ended the test session.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from processes import with_variable

from ddp_agent.distributed.process import die_with_parent

SBIN = "/usr/sbin:/sbin"
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun", "salloc")
PATIENCE_S = 60.0
NODES = ("n1", "n2")
# A requeued job waits until the credentials of its last attempt have expired. The default is two minutes.
REQUEUED_S = 10

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeued_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes={names} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={names} PriorityTier=10 PreemptMode=OFF
"""


DAEMONS = """
munged --force --foreground --num-threads=1 --key-file={folder}/munge.key --socket={folder}/munge.socket \
    --pid-file={folder}/munge.pid --log-file={folder}/munge.log --seed-file={folder}/munge.seed &
until [ -e {folder}/munge.socket ]; do sleep 0.05; done
slurmctld -D &
for name in {names}; do slurmd -D -N $name & done
wait
"""


def why_not() -> str | None:
    """Return the reason why no cluster can run here, or None."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]:
        return f"needs {missing[0]} (packages slurm-wlm and munge)"
    alone = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    return None if os.geteuid() == 0 and alone.returncode == 0 else "needs root and namespaces of processes"


def search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SBIN}"


class SlurmCluster:
    """A cluster whose nodes have a GPU by Slurm's account, so that scripts which ask for one get their nodes.

    Commands need `conf` as SLURM_CONF. Its path is short: socket names have at most 107 characters.
    """

    def __init__(self, cpus: int = 4) -> None:
        self._cpus = cpus

    def __enter__(self) -> "SlurmCluster":
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.conf = self.folder / "slurm.conf"
        self._write()
        script = DAEMONS.format(folder=self.folder, names=" ".join(NODES))
        with open(self.folder / "daemons.log", "w") as log:
            command = [*NAMESPACE, "sh", "-c", script]
            self._daemons = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, preexec_fn=die_with_parent, process_group=0
            )
        try:
            self._until(lambda: (self.folder / "munge.socket").exists(), "munged listens")
            self._until(self._idle, "two idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the daemons. Their state is not needed."""
        self._daemons.kill()
        self._daemons.wait()
        self._until(lambda: not self.left(), "all processes have ended")
        shutil.rmtree(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.conf), "PATH": search_path()}

    def call(self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
        """Return the output of a Slurm command."""
        env = self.environment | dict(environment or {})
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
        """Submit a job and return its number."""
        return self.call("sbatch", "--parsable", *arguments, cwd=cwd, environment=environment).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return Slurm's record of a job: JobState, ExitCode, Restarts, …"""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, *states: str, limit_s: float = 150.0) -> dict[str, str]:
        """Return the job once it is in one of these states."""
        self._until(lambda: self.job(number)["JobState"] in states, f"job {number} is {states}", limit_s)
        return self.job(number)

    def left(self) -> list[int]:
        """Return the ids of the processes that have this cluster's SLURM_CONF, including jobs and their ranks."""
        return with_variable("SLURM_CONF", self.conf)

    def _write(self) -> None:
        (self.folder / "state").mkdir()
        for name in NODES:
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports, host = free_ports(1 + len(NODES)), socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} Gres=gpu:1"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        given: dict[str, Any] = {"host": host, "ports": ports, "folder": self.folder, "user": "root"}
        given |= {"requeued_s": REQUEUED_S}
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")  # any device file will do
        self.conf.write_text(CONF.format(**given, nodes="\n".join(nodes), names=",".join(NODES)))

    def _idle(self) -> bool:
        """Return whether both nodes are idle. False while slurmctld does not answer yet."""
        ask = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        return subprocess.run(ask, env=self.environment, capture_output=True, check=False).stdout.strip() == b"2"

    def _until(self, reached: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + limit_s
        while not reached():
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}\n{self._logs()}"
            time.sleep(0.1)

    def _logs(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in sorted(self.folder.glob("*.log")))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
