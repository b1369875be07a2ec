"""`manifest.json`, which makes a folder a checkpoint: it names every file with its size and hash.

It also has a hash of itself, so that a damaged manifest is distinguished from one of another run.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddp_agent.errors import CheckpointError
from ddp_agent.outputs.files import write_atomically

FORMAT = 1
NAME = "manifest.json"
_FILE = re.compile(r"rank-\d{4,}\.pt")


@dataclass(frozen=True)
class File:
    """The size and hash of a file."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "File":
        """Read the file at `path`."""
        with open(path, "rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def check(self, path: Path) -> None:
        """Raise CheckpointError unless the file at `path`, which is read whole, has this size and hash."""
        size_bytes = path.stat().st_size
        if size_bytes != self.size_bytes:
            raise CheckpointError(f"{path}: found {size_bytes} bytes, expected {self.size_bytes}")
        actual = File.of(path)
        if actual != self:
            raise CheckpointError(f"{path}: damaged, found sha256 {actual.sha256}, expected {self.sha256}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a checkpoint.

    `fingerprint` distinguishes runs. `details` are for people and tools. Both must be expressible in JSON.
    """

    step: int
    world_size: int
    fingerprint: Mapping[str, Any]
    details: Mapping[str, Any]
    files: Mapping[str, File]

    def write(self, directory: Path) -> None:
        """Write `manifest.json` atomically."""
        content = json.loads(json.dumps(asdict(self) | {"format": FORMAT}, allow_nan=False))
        content["sha256"] = _sha256(content)
        write_atomically(directory / NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read `manifest.json`. Raises CheckpointError with the path and the problem."""
        path = directory / NAME
        try:
            return cls._parse(path, path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: not the manifest of a checkpoint") from error

    @classmethod
    def _parse(cls, path: Path, text: bytes) -> "Manifest":
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: found format {content['format']!r}, expected {FORMAT}")
        if content.pop("sha256") != _sha256(content):
            raise CheckpointError(f"{path}: damaged, its content does not have the sha256 that it names")
        del content["format"]
        _check_types(content, {"step": int, "world_size": int, "fingerprint": dict, "details": dict, "files": dict})
        for name, entry in content["files"].items():
            _check_types(entry, {"size_bytes": int, "sha256": str})
            if not _FILE.fullmatch(name):
                raise CheckpointError(f"{path}: names the file {name!r}, expected rank-0000.pt and so on")
        content["files"] = {name: File(**entry) for name, entry in content["files"].items()}
        return cls(**content)

    def check_run(self, path: Path, fingerprint: Mapping[str, Any], world_size: int | None) -> None:
        """Raise CheckpointError with every difference if the checkpoint at `path` belongs to another run.

        `world_size` None admits any number of ranks.
        """
        try:
            saved = dict(_flatten({**self.fingerprint, "world_size": self.world_size}))
        except RecursionError as error:
            raise CheckpointError(f"{path}: found a fingerprint that is nested too deeply") from error
        ours = dict(_flatten({**fingerprint, "world_size": world_size or self.world_size}))
        differing = {
            key: f"{key}: the checkpoint has {saved.get(key, 'nothing')}, this run {ours.get(key, 'nothing')}"
            for key in sorted(saved.keys() | ours.keys())
            if saved.get(key) != ours.get(key)
        }
        if differing.keys() == {"world_size"}:
            differing["world_size"] += "; resume_other_ranks=true admits that where all ranks were identical"
        if differing:
            raise CheckpointError("\n  ".join([f"{path} belongs to another run", *differing.values()]))


def _check_types(content: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    """Raise TypeError for a missing or further key, a value of another type, or a negative number."""
    types = {key: type(value) for key, value in content.items()}
    if types != expected or any(isinstance(value, int) and value < 0 for value in content.values()):
        raise TypeError(f"found {types}, expected {expected}")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
