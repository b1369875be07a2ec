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
STARTS = re.compile(r"^[^\"]*(?:launch/(?:local|multinode|elastic)\.sh|launch/slurm\.sbatch|train\.py) (?P<typed>.*)")


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
    assert overrides or "--help" in typed
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
    assert len(documents) == 2


def test_the_pods_run_what_is_there_on_a_disk_that_is_claimed(documents: list[dict[str, Any]]) -> None:
    job, claim = documents
    trainer = job["spec"]["trainer"]
    assert (ROOT / trainer["command"][0]).is_file()
    assert settings(*trainer["args"], world_size=trainer["numNodes"] * trainer["numProcPerNode"])
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    claims = {it["name"]: it["persistentVolumeClaim"] for it in pod["volumes"] if "persistentVolumeClaim" in it}
    assert claims == {"runs": {"claimName": claim["metadata"]["name"]}}
    mounted = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
    assert mounted.keys() == {it["name"] for it in pod["volumes"]}
    environment = {it["name"]: it["value"] for it in trainer["env"]}
    assert environment["RUN_DIR"].startswith(mounted["runs"] + "/")
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
