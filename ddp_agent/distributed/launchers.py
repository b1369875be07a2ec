"""Recognition of schedulers and MPI launchers, whose tasks know of each other only through torchrun. Needs no torch.

`srun -n 4 python train.py` and `mpirun -n 4 python train.py` start one command four times. Without torchrun's variables
each of the four would train a model of its own and exit with 0. The same holds for a torchrun of one node that is
started in each of several tasks.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A program that starts tasks, and the variables by which a task recognises it.

    `sizes`: the number of tasks; the first variable that is set counts. `nodes` and `local`: the number of nodes, and
    of tasks per node, one of which a launcher tells. `one_per_node`: its command for one task on each of {nodes} nodes.
    """

    name: str
    rank: str
    sizes: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    one_per_node: str = ""

    def task(self, environment: Mapping[str, str]) -> "Task | None":
        """Return the task that this process is, or None if the launcher did not start it."""
        rank, size = _first(environment, (self.rank,)), _first(environment, self.sizes)
        if rank is None and size is None:
            return None
        nodes, local = _first(environment, self.nodes), _first(environment, self.local)
        if nodes is None and size and local:
            nodes = max(1, size // local)
        return Task(self, rank, size, nodes)


@dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """Slurm sets the number of a job's tasks in an salloc shell and in a batch script, too, which are one process."""

    def task(self, environment: Mapping[str, str]) -> "Task | None":
        is_step = any(environment.get(name) for name in ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"))
        is_batch_script = not is_step and environment.get("ENVIRONMENT") == "BATCH"
        if not environment.get(self.rank) or is_batch_script:
            return None
        return super().task(environment)


@dataclass(frozen=True)
class Task:
    """One of the processes that a launcher started. None: the launcher does not tell."""

    launcher: Launcher
    rank: int | None
    size: int | None
    nodes: int | None

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that make a process a task."""
        launcher = self.launcher
        return (launcher.rank,) if isinstance(launcher, Slurm) else (launcher.rank, *launcher.sizes)


LAUNCHERS = (
    Slurm(
        name="srun",
        rank="SLURM_PROCID",
        sizes=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
        nodes=("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
        one_per_node="srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={ranks}",
    ),
    Launcher(
        name="mpirun (Open MPI)",
        rank="OMPI_COMM_WORLD_RANK",
        sizes=("OMPI_COMM_WORLD_SIZE",),
        local=("OMPI_COMM_WORLD_LOCAL_SIZE",),
        one_per_node="mpirun -n {nodes} --map-by ppr:1:node --bind-to none",
    ),
    Launcher(
        name="mpirun (MVAPICH2)",
        rank="MV2_COMM_WORLD_RANK",
        sizes=("MV2_COMM_WORLD_SIZE",),
        local=("MV2_COMM_WORLD_LOCAL_SIZE",),
        one_per_node="mpirun -n {nodes} -ppn 1",
    ),
    Launcher(
        name="jsrun",
        rank="JSM_NAMESPACE_RANK",
        sizes=("JSM_NAMESPACE_SIZE",),
        local=("JSM_NAMESPACE_LOCAL_SIZE",),
        one_per_node="jsrun --nrs {nodes} --rs_per_host 1 --tasks_per_rs 1 --cpu_per_rs {ranks} --bind none",
    ),
    Launcher(
        name="flux run",
        rank="FLUX_TASK_RANK",
        sizes=("FLUX_JOB_SIZE",),
        nodes=("FLUX_JOB_NNODES",),
        one_per_node="flux run --nodes={nodes} --ntasks={nodes} --exclusive",
    ),
    Launcher(
        name="mpiexec (PALS)",
        rank="PALS_RANKID",
        sizes=("PALS_SIZE", "PMI_SIZE"),
        local=("PALS_LOCAL_SIZE",),
        one_per_node="mpiexec -n {nodes} --ppn 1 --cpu-bind none",
    ),
    Launcher(
        name="mpiexec (PMI)",
        rank="PMI_RANK",
        sizes=("PMI_SIZE",),
        local=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        one_per_node="mpiexec -n {nodes} -ppn 1",
    ),
    Launcher(name="prun (PMIx)", rank="PMIX_RANK", one_per_node="prun -n {nodes} --map-by ppr:1:node"),
    Launcher(name="aprun", rank="ALPS_APP_PE", one_per_node="aprun -n {nodes} -N 1"),
    Launcher(
        name="AWS Batch",
        rank="AWS_BATCH_JOB_NODE_INDEX",
        sizes=("AWS_BATCH_JOB_NUM_NODES",),
        nodes=("AWS_BATCH_JOB_NUM_NODES",),
    ),
    Launcher(name="a launcher of nodes", rank="NODE_RANK", sizes=("NNODES",), nodes=("NNODES",)),
)


def several_tasks(environment: Mapping[str, str]) -> Task | None:
    """Return this process's task if the launcher started several, or does not tell how many. None for a lone process.

    A launcher that does not tell is believed to have started one if another launcher says so.
    """
    tasks = [task for launcher in LAUNCHERS if (task := launcher.task(environment))]
    if several := [task for task in tasks if (task.size or 0) > 1 or (task.rank or 0) > 0]:
        return several[0]
    return None if any(task.size is not None for task in tasks) else next(iter(tasks), None)


def refusal(task: Task) -> str:
    """Return why a process that is one of several tasks must not train alone, and the command to use instead."""
    launcher, size = task.launcher, task.size
    number = "" if task.rank is None else f"task {task.rank} of "
    found = f"{number}{size} tasks" if size else f"task {task.rank} of an unknown number"
    set_apart = " ".join(f"-u {name}" for name in task.variables)
    return "\n".join(
        [
            f"{task.variables[0]}: found {found}, started by {launcher.name} without a torchrun that joins them, so "
            "each would train a model of its own; expected one task per node, which starts the ranks of its node:",
            f"  {_joined(task)}",
            f"(To train several models on purpose, hide the tasks from each: env {set_apart} …)",
        ]
    )


def missing(environment: Mapping[str, str], absent: Sequence[str], present: Sequence[str]) -> str:
    """Return why a part of torchrun's variables does not do, which ones are missing, and the commands to use."""
    found = ", ".join(f"{name}={environment[name][:80]}" for name in present)
    lines = [
        f"{', '.join(absent)}: missing beside {found}. Without {'it' if len(absent) == 1 else 'them'} this process "
        "would train alone; expected all of torchrun's variables, or none. On every node use"
    ]
    address = "$MASTER_ADDR" if environment.get("MASTER_ADDR") else "ADDRESS_OF_NODE_0"
    port = "$MASTER_PORT" if environment.get("MASTER_PORT") else "29500"
    nodes = "$WORLD_SIZE" if environment.get("WORLD_SIZE") else "NODES"
    node = "$RANK" if environment.get("RANK") else "NODE"
    lines.append(f"  {_torchrun(nodes, node, '1', address, port)} {_typed()}")
    if list(absent) == ["LOCAL_RANK"]:
        lines.append("or set LOCAL_RANK to the number of the process on its node, which is 0 if a node has one process")
    return "\n".join([*lines, f"(To train on this machine alone: env {' '.join(f'-u {name}' for name in present)} …)"])


def _joined(task: Task) -> str:
    nodes = task.nodes or 1
    ranks = max(1, (task.size or nodes) // nodes)
    started = task.launcher.one_per_node.format(nodes=nodes, ranks=ranks)
    if nodes == 1 and (task.size or 0) != 1:
        lone = f"torchrun --standalone --nproc_per_node={ranks} {_typed()}"
        return f"{started} {lone}" if isinstance(task.launcher, Slurm) else lone
    address = "ADDRESS_OF_NODE_0"
    if isinstance(task.launcher, Slurm):
        address = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    torchrun = _torchrun(str(nodes), f"${task.launcher.rank}", str(ranks), address, "29500")
    # bash runs on each node and expands the variables there. The words behind it pass through unchanged.
    return f"{started} bash -c 'exec {torchrun} \"$@\"' node {_typed()}".lstrip()


def _torchrun(nodes: str, node: str, ranks: str, address: str, port: str) -> str:
    return (
        f"torchrun --nnodes={nodes} --node-rank={node} --nproc-per-node={ranks} --master-addr={address} "
        f"--master-port={port}"
    )


def _typed() -> str:
    """Return what followed the interpreter, as torchrun takes it: a script, or -m and a module, and the arguments."""
    words = sys.orig_argv[1:]
    while words and words[0].startswith("-") and words[0] != "-m":
        words = words[2 if words[0] in ("-X", "-W") else 1 :]
    return shlex.join(words or ["train.py"])


def _first(environment: Mapping[str, str], names: Sequence[str]) -> int | None:
    """Return the first of these variables that holds a number. Launchers' own texts (`MIN:MAX`) are no numbers."""
    texts = (environment.get(name, "") for name in names)
    return next((int(text) for text in texts if text.isascii() and text.isdecimal() and len(text) < 10), None)
