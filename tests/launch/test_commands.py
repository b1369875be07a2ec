"""The commands that launch/ shows, and the manifest for Kubernetes."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from configs import settings

from ddp_agent.cli.sweep import _first_job

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
STARTS = re.compile(
    r"^[^\"]*(?:launch/(?:local|multinode|elastic|check)\.sh|launch/slurm\.sbatch|train\.py) (?P<typed>.*)"
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    read = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    assert os.access(script, os.X_OK)


# The commands of the manuals


def commands() -> Iterator[tuple[str, str]]:
    """Each command of launch/README.md and of the scripts' own manuals: its file, and what follows the program."""
    for file in (LAUNCH / "README.md", *SCRIPTS):
        for line in file.read_text().replace("\\\n", " ").splitlines():
            if (found := STARTS.search(line)) and not set("[$…") & set(line):
                yield file.name, found["typed"].partition("  # ")[0].strip().strip("`")


@pytest.mark.parametrize(("file", "typed"), sorted(set(commands())))
def test_a_command_that_is_shown_composes(file: str, typed: str) -> None:
    overrides = [word for word in shlex.split(typed, comments=True) if re.match(r"\+?[a-z][\w./]*=", word)]
    if any("submitit" in override for override in overrides):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install -e '.[slurm]'")
    assert overrides or "--help" in typed or "--check" in typed or not typed
    here = [override for override in overrides if not override.startswith("resume=")]  # a run that is elsewhere
    settings(*_first_job(here))


def test_commands_are_found() -> None:
    found = list(commands())
    own_manual = {script.name for script in SCRIPTS} - {"elastic.sh"}  # that one's is ddp_agent.elastic's --help
    assert {file for file, _ in found} == {"README.md", *own_manual}
    assert any("elastic" in typed or "--replicas" in typed for _, typed in found)
    assert len(found) >= 12


# Kubernetes


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


@pytest.mark.parametrize(
    ("number", "module", "name"),
    [
        (0, "trainer_v1alpha1_train_job", "TrainerV1alpha1TrainJob"),
        (1, "io_k8s_api_core_v1_persistent_volume_claim", "IoK8sApiCoreV1PersistentVolumeClaim"),
        (2, "io_k8s_api_core_v1_persistent_volume_claim", "IoK8sApiCoreV1PersistentVolumeClaim"),
    ],
)
def test_the_models_of_the_api_take_it_whole(
    number: int, module: str, name: str, documents: list[dict[str, Any]]
) -> None:
    """They drop what they do not know, so what they give back is compared."""
    pytest.importorskip("kubeflow_trainer_api", reason="needs pip install kubeflow-trainer-api")
    model = getattr(import_module(f"kubeflow_trainer_api.models.{module}"), name)
    assert model.from_dict(documents[number]).to_dict() == documents[number]
    assert documents[number]["kind"] == name.removeprefix("TrainerV1alpha1").removeprefix("IoK8sApiCoreV1")
    assert len(documents) == 3


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return pod


def test_the_pods_run_what_is_there_on_disks_that_are_claimed(documents: list[dict[str, Any]]) -> None:
    job, *claims = documents
    trainer, pod = job["spec"]["trainer"], pod_of(job)
    assert (ROOT / trainer["command"][0]).is_file()
    assert settings(*trainer["args"], world_size=trainer["numNodes"] * trainer["numProcPerNode"])
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    assert not any(word.startswith("device=") for word in trainer["args"]), "the script then asks for GPUs"
    (container,) = pod["containers"]
    claimed = [it["persistentVolumeClaim"]["claimName"] for it in pod["volumes"] if "persistentVolumeClaim" in it]
    assert claimed == [claim["metadata"]["name"] for claim in claims]
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims)
    assert all(claim["spec"]["storageClassName"] for claim in claims)
    mounted = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
    assert mounted.keys() == {it["name"] for it in pod["volumes"]}
    environment = {it["name"]: it["value"] for it in trainer["env"]}
    assert environment["RUN_DIR"].startswith(mounted["runs"] + "/")
    assert f"data_root={mounted['data']}" in trainer["args"]
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_the_manual_s_smoke_test_is_the_same_job_with_the_check(documents: list[dict[str, Any]]) -> None:
    (shown,) = re.findall(r"^(sed '.*' launch/kubernetes\.yaml) \|", (LAUNCH / "README.md").read_text(), re.M)
    made = subprocess.run(shlex.split(shown), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    job, *others = list(yaml.safe_load_all(made))
    assert job["metadata"]["name"] == "check"
    assert job["spec"]["trainer"].pop("command") == ["launch/check.sh"]
    expected = {key: value for key, value in documents[0]["spec"]["trainer"].items() if key != "command"}
    assert (job["spec"]["trainer"], others) == (expected, documents[1:])


# The image


def test_the_image_gets_what_it_runs_and_neither_runs_nor_history() -> None:
    ignored = [line for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in "#"]
    assert "COPY . .\n" in (LAUNCH / "Dockerfile").read_text()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    left_out = {top for top in ignored if "*" not in top}
    shipped = {file for file in tracked if file.partition("/")[0] not in left_out}
    if tracked:  # not in an archive of the sources
        assert {
            "train.py",
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "launch/multinode.sh",
            "launch/check.sh",
        } <= shipped
        assert "conf/config.yaml" in shipped and "ddp_agent/py.typed" in shipped
        assert shipped & {"tests/conftest.py", ".ci/run"} == set()
    assert {".git", "outputs", "multirun"} <= left_out
    assert {line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if line[0] == "/"} <= left_out
