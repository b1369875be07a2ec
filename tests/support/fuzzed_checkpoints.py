"""Readers of checkpoints and exported models, with a good file each."""

import contextlib
import io
import json
from pathlib import Path

import checkpoint_cases
import fuzzing
from fuzzed_readers import Reader
from torch import nn

from ddp_agent.checkpoint import export, folder
from ddp_agent.checkpoint.__main__ import main as checkpoint_command
from ddp_agent.checkpoint.manifest import File, Manifest
from ddp_agent.errors import CheckpointError


def write_checkpoint(path: Path) -> None:
    checkpoint_cases.save(path / "checkpoints", 10)


def seal(path: Path) -> None:
    """Sizes and hashes of what is there."""
    checkpoint = path / "checkpoints" / "step-00000010"
    manifest = vars(Manifest.read(checkpoint)) | {"files": {"rank-0000.pt": File.of(checkpoint / "rank-0000.pt")}}
    Manifest(**manifest).write(checkpoint)


def seal_manifest(path: Path) -> None:
    """The manifest's own hash, where it still has one."""
    from ddp_agent.checkpoint.manifest import _sha256

    file = path / "checkpoints" / "step-00000010" / "manifest.json"
    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
        tree = json.loads(file.read_bytes())
        tree.pop("sha256", None)
        file.write_text(json.dumps(tree | {"sha256": _sha256(tree)}))


def load_checkpoint(path: Path) -> tuple[int, checkpoint_cases.State] | None:
    return checkpoint_cases.load(path / "checkpoints")


def whole_or_refused(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded is None or checkpoint_cases.is_state_of(loaded, 10)


def look_at_checkpoints(path: Path) -> None:
    newest = folder.newest(path / "checkpoints")
    folder.best(newest)
    folder.surplus(newest, keep=1, keep_best=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for command in (["list"], ["verify"], ["prune", "--keep", "1", "--keep-best"]):
            assert checkpoint_command([command[0], str(path), *command[1:]]) in (0, 3)


MODEL = {"hidden": [5, 6], "input_shape": [4], "outputs": 3}
RANK, MANIFEST = "checkpoints/step-00000010/rank-0000.pt", "checkpoints/step-00000010/manifest.json"


def write_model(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    export.save(path, model, description={"name": "MLP", "arguments": MODEL})


def seal_model(path: Path) -> None:
    about = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(about | {"weights": vars(File.of(path / "model.safetensors"))}))


STATES = {
    "rank file": Reader(RANK, write_checkpoint, whole_or_refused, (CheckpointError,)),
    "rank file, sealed": Reader(RANK, write_checkpoint, load_checkpoint, (CheckpointError,), before_reading=seal),
    "manifest": Reader(MANIFEST, write_checkpoint, whole_or_refused, (CheckpointError,), fuzzing.damaged_json),
    "manifest, sealed": Reader(
        MANIFEST, write_checkpoint, load_checkpoint, (CheckpointError,), fuzzing.damaged_json, seal_manifest
    ),
    "manifest, looked at": Reader(
        MANIFEST, write_checkpoint, look_at_checkpoints, (), fuzzing.damaged_json, seal_manifest
    ),
    "safetensors": Reader("model.safetensors", write_model, export.load, (CheckpointError,), before_reading=seal_model),
    "model.json": Reader("model.json", write_model, export.load, (CheckpointError,), fuzzing.damaged_json),
}
