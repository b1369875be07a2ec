"""No process of several trains alone: schedulers, MPI launchers, a part of torchrun's variables, malformed ones."""

import shlex
import sys
from pathlib import Path

import pytest
from launching import accept, type_in

from ddp_agent.cli import relaunch
from ddp_agent.cli.composition import Configs
from ddp_agent.distributed import topology
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.ledger import Ledger
from ddp_agent.distributed.process import REPLICA, TorchrunEnvironment
from ddp_agent.distributed.variables import VARIABLES
from ddp_agent.errors import ConfigError

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
JOB = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_NNODES": "2"}
STEP = {**JOB, "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
BATCH_SCRIPT = {**JOB, "ENVIRONMENT": "BATCH", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
ELASTIC = dict(zip(REPLICA, ("0", "2", "h:1"), strict=True))

SEVERAL: dict[str, dict[str, str]] = {
    "srun, task 0": STEP,
    "srun, task 1": {**STEP, "SLURM_PROCID": "1"},
    "srun in a batch script": {**BATCH_SCRIPT, **STEP},
    "srun, few variables": {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    "srun, task 0, few variables": {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
    "Open MPI, size only": {"OMPI_COMM_WORLD_SIZE": "4"},
    "MPI under one task of Slurm": {**STEP, "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0", "PMI_SIZE": "3"},
    "MPICH": {"PMI_RANK": "1", "PMI_SIZE": "2"},
    "MVAPICH2": {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"},
    "PALS": {"PALS_RANKID": "1"},
    "PALS with PMI": {"PALS_RANKID": "0", "PMI_SIZE": "2", "PMI_RANK": "0"},
    "jsrun": {"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "6"},
    "Flux": {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2", "FLUX_JOB_NNODES": "2"},
    "PMIx, number unknown": {"PMIX_RANK": "0"},
    "aprun": {"ALPS_APP_PE": "3"},
    "AWS Batch": {"AWS_BATCH_JOB_NODE_INDEX": "0", "AWS_BATCH_JOB_NUM_NODES": "2"},
    "the variables of multinode.sh": {"NNODES": "2", "NODE_RANK": "0"},
    "torchrun of one node in each task": {**STEP, **TORCHRUN, "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"},
    "a lone rank in each task": {**STEP, **TORCHRUN, "WORLD_SIZE": "1"},
}
ONE: dict[str, dict[str, str]] = {
    "nothing": {},
    "an salloc shell": JOB,
    "a batch script": BATCH_SCRIPT,
    "srun --ntasks=1": {**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    "srun --ntasks=1 in a batch script": {**BATCH_SCRIPT, **STEP, "SLURM_STEP_NUM_TASKS": "1"},
    "one task of Slurm and PMIx": {**STEP, "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},
    "mpirun -n 1": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    "an interactive step": {**STEP, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "one node": {"NNODES": "1", "NODE_RANK": "0"},
    "an address": {"MASTER_ADDR": "h", "MASTER_PORT": "29500"},
    "a world of one": {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29500"},
    "empty": dict.fromkeys((*TORCHRUN, *STEP, "OMPI_COMM_WORLD_SIZE", "NNODES"), ""),
    "a replica in each task": {**STEP, **ELASTIC},
}
JOINED: dict[str, dict[str, str]] = {
    "multinode.sh in each task": {**STEP, **TORCHRUN, "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"},
    "tasks that are ranks": {**STEP, **TORCHRUN},
    "the first of several nodes": {**STEP, **TORCHRUN, "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "night"},
}


@pytest.mark.parametrize("case", SEVERAL)
def test_one_of_several_tasks_is_refused_with_the_command_to_use(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "train.py", "run_name=a b"])
    with pytest.raises(ConfigError, match="each would train a model of its own") as refused:
        TorchrunEnvironment.read(SEVERAL[case])
    command = str(refused.value).splitlines()[1]
    words = shlex.split(command)
    assert words[-2:] == ["train.py", "run_name=a b"]
    assert "torchrun" in command


@pytest.mark.parametrize(
    "case", ["srun, task 0", "srun in a batch script", "Open MPI", "jsrun", "PMIx, number unknown"]
)
def test_a_refusal_says_how_several_models_are_trained_on_purpose(case: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TorchrunEnvironment.read(SEVERAL[case])
    hidden = str(refused.value).partition("env -u ")[2].removesuffix(" …)").split(" -u ")
    assert TorchrunEnvironment.read({k: v for k, v in SEVERAL[case].items() if k not in hidden}) is None


@pytest.mark.parametrize("case", ONE)
def test_a_lone_process_starts_its_ranks_itself(case: str) -> None:
    assert TorchrunEnvironment.read(ONE[case]) is None


@pytest.mark.parametrize("case", JOINED)
def test_tasks_that_torchrun_joined_are_ranks(case: str) -> None:
    read = TorchrunEnvironment.read(JOINED[case])
    assert read is not None
    assert read.world_size == 2


PARTS = [
    {name: value for name, value in TORCHRUN.items() if name not in left_out}
    for left_out in [("LOCAL_RANK",), ("RANK", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT"), ("WORLD_SIZE",)]
]


@pytest.mark.parametrize("part", [*PARTS, {"RANK": "1", "WORLD_SIZE": "1"}, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "4"}])
def test_a_part_of_torchrun_s_variables_is_refused_by_what_is_missing(part: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        TorchrunEnvironment.read(part)
    absent = [name for name in TORCHRUN if name not in part]
    assert str(refused.value).startswith(f"{', '.join(absent)}: missing beside ")
    assert "\n  torchrun --nnodes=" in str(refused.value)


def test_a_part_of_a_replica_s_variables_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"^{REPLICA[2]}: missing, expected all of"):
        TorchrunEnvironment.read({name: ELASTIC[name] for name in REPLICA[:2]})


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("wrong", ["a 'b", "-1 ", "\u0663", "'\n", "'" * 4999])
def test_nonsense_in_a_variable_is_one_line(name: str, wrong: str) -> None:
    if name == "DDP_AGENT_ON_NODES" and "'" not in wrong:
        wrong += "'"  # a command may be any words
    with pytest.raises(ConfigError, match=f"^{name}: found .* in the environment, expected ") as refused:
        TorchrunEnvironment.read({name: wrong})
    (line,) = refused.value.problems
    assert len(line) < 250
    assert "\n" not in line
    assert TorchrunEnvironment.read({name: ""}) is None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"RANK": "5"}, "RANK: found 5 beside WORLD_SIZE=2"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK: found 2 beside LOCAL_WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE: found 4, expected at most WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: found '0'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK: found '-1'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: found '99999'"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(given: dict[str, str], found: str) -> None:
    with pytest.raises(ConfigError, match=f"^{found}"):
        TorchrunEnvironment.read({**TORCHRUN, **given})


def test_a_loop_of_one_s_own_does_not_train_alone_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """`init_process_group(world_size=int(environ.get("WORLD_SIZE", 1)))` makes a group of one in each task of srun."""
    monkeypatch.setattr(topology, "world_comm", lambda: LocalComm(Ledger()))
    assert topology.Topology.create().world.size == 1
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="task 0 of 2 tasks"):
        topology.Topology.create()


# The command line


@pytest.mark.usefixtures("own_environment")
@pytest.mark.parametrize("typed", [[], ["-m", "seed=0,1"]])
@pytest.mark.parametrize("environment", [STEP, {"WORLD_SIZE": "two"}, PARTS[0]], ids=["srun", "nonsense", "a part"])
def test_train_and_sweep_start_nothing_as_one_of_several(
    environment: dict[str, str],
    typed: list[str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type_in(monkeypatch, project, *typed) == 2
    with pytest.raises(ConfigError) as refused:
        TorchrunEnvironment.read(environment)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{refused.value}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["project"]


@pytest.mark.usefixtures("own_environment")
def test_help_is_printed_in_any_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**STEP, "WORLD_SIZE": "two"}.items():
        monkeypatch.setenv(name, value)
    assert type_in(monkeypatch, project, "--help") == 0
    assert "torchrun" in capsys.readouterr().out


@pytest.mark.usefixtures("own_environment")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "PET_NODE_RANK, PET_MASTER_ADDR: missing beside PET_NNODES=2"),
        ({"PET_NODE_RANK": "0"}, "PET_MASTER_ADDR: missing beside PET_NNODES=2"),
        ({"PET_NODE_RANK": "2", "PET_MASTER_ADDR": "h"}, "PET_NODE_RANK: found 2 beside PET_NNODES=2"),
    ],
)
def test_one_of_several_nodes_does_not_train_alone(
    environment: dict[str, str], message: str, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PET_NNODES": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{message}"):
        relaunch.run(configs, accept, ["t.py"], [], [])


@pytest.mark.usefixtures("own_environment")
def test_a_sweep_is_not_driven_from_every_node(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "h"}.items():
        monkeypatch.setenv(name, value)
    assert type_in(monkeypatch, project, "-m", "seed=0,1") == 2
    assert "-m: found PET_NNODES=2, but a sweep is driven from one node" in capsys.readouterr().err


@pytest.mark.usefixtures("own_environment")
def test_torchrun_s_number_of_ranks_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, ranks in (("8", 8), ("auto", 2)):
        monkeypatch.setenv("PET_NPROC_PER_NODE", text)
        assert relaunch._nproc_per_node({"device": "cpu"}) == ranks
