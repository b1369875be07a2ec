"""`manifest.json`, which makes a folder a checkpoint: it names every file with its size and hash.

It also has a hash of itself, so that a damaged manifest is distinguished from one of another run.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from ddp_agent.config.redaction import redacted
from ddp_agent.config.untrusted import open_regular, plain, read_json_object
from ddp_agent.errors import CheckpointError
from ddp_agent.outputs.files import write_atomically

FORMAT = 1
NAME = "manifest.json"
UNLIMITED = 1 << 62  # bytes: a file is as large as its manifest says
_LIMIT_BYTES = 16 << 20  # 100,000 ranks
_REMEDY = (
    "A resumed run keeps its model, data, mode, optimizer and batch; length, evaluations and checkpoints may change. "
    "Type the settings of that run to continue it, or leave resume out to start another one"
)
_LISTED = 20  # differences that are named
_FILE = re.compile(r"rank-\d{4,}\.pt")


@dataclass(frozen=True)
class File:
    """The size and hash of a file."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "File":
        """Read the file at `path`, which is no link."""
        with open_regular(path, UNLIMITED, below=path.parent) as file:
            return cls._read(file)

    @classmethod
    def _read(cls, file: BufferedReader) -> "File":
        return cls(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def check(self, path: Path, *, below: Path | None = None) -> None:
        """Raise CheckpointError unless the file at `path`, which is read whole, has this size and hash."""
        with self.opened(path, below=below):
            pass

    @contextmanager
    def opened(self, path: Path, *, below: Path | None = None) -> Iterator[BufferedReader]:
        """Yield the file at `path` after it was checked. No link below the folder `below` (its own) is followed."""
        with open_regular(path, UNLIMITED, below=below or path.parent) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes != self.size_bytes:
                raise CheckpointError(f"{path}: found {size_bytes} bytes, expected {self.size_bytes}")
            actual = self._read(file)
            if actual != self:
                expected = plain(self.sha256, 64)
                raise CheckpointError(f"{path}: damaged, found sha256 {actual.sha256}, expected {expected}")
            file.seek(0)
            yield file


class Fingerprint(dict[str, Any]):
    """The settings that distinguish a run, with the `defaults` of those that another version may not have recorded."""

    def __init__(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.defaults = defaults


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
        files = {name: vars(file) for name, file in self.files.items()}
        content = json.loads(json.dumps(vars(self) | {"files": files, "format": FORMAT}, allow_nan=False))
        content["sha256"] = _sha256(content)
        write_atomically(directory / NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read `manifest.json`. Raises CheckpointError with the path and the problem."""
        path = directory / NAME
        try:
            return cls._parse(path, read_json_object(path, _LIMIT_BYTES, below=directory.parent))
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not the manifest of a checkpoint") from error

    @classmethod
    def _parse(cls, path: Path, content: dict[str, Any]) -> "Manifest":
        if content["format"] != FORMAT:
            found = plain(repr(content["format"]), 80)
            raise CheckpointError(f"{path}: found format {found}, expected {FORMAT}")
        if content.pop("sha256") != _sha256(content):
            raise CheckpointError(f"{path}: damaged, its content does not have the sha256 that it names")
        del content["format"]
        _check_types(content, {"step": int, "world_size": int, "fingerprint": dict, "details": dict, "files": dict})
        for name, entry in content["files"].items():
            _check_types(entry, {"size_bytes": int, "sha256": str})
            if not _FILE.fullmatch(name):
                found = plain(repr(name), 80)
                raise CheckpointError(f"{path}: names the file {found}, expected rank-0000.pt and so on")
        content["files"] = {name: File(**entry) for name, entry in content["files"].items()}
        return cls(**content)

    def check_run(self, path: Path, fingerprint: Mapping[str, Any], world_size: int | None) -> None:
        """Raise CheckpointError with every difference if the checkpoint at `path` belongs to another run.

        `world_size` None admits any number of ranks. A setting that one of the two does not have counts as its default.
        """
        defaults = dict(_flatten(fingerprint.defaults)) if isinstance(fingerprint, Fingerprint) else {}
        # What counts as a secret may differ between the version that saved and this one, so both are redacted here.
        saved = defaults | dict(_flatten({**redacted(self.fingerprint), "world_size": self.world_size}))
        ours = defaults | dict(_flatten({**redacted(fingerprint), "world_size": world_size or self.world_size}))
        differing = {
            key: f"{plain(key, 80)}: the checkpoint has {plain(saved.get(key, 'nothing'), 200)}, "
            f"this run {plain(ours.get(key, 'nothing'), 200)}"
            for key in sorted(saved.keys() | ours.keys())
            if saved.get(key) != ours.get(key)
        }
        if differing.keys() == {"world_size"}:
            differing["world_size"] += "; resume_other_ranks=true admits that where all ranks were identical"
        if differing:
            listed = list(differing.values())
            more = [f"and {len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
            remedy = [] if differing.keys() == {"world_size"} else [_REMEDY]
            raise CheckpointError("\n  ".join([f"{path} belongs to another run", *listed[:_LISTED], *more, *remedy]))


def _check_types(content: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    """Raise TypeError for a missing or further key, a value of another type, or a number that no size has."""
    types = {key: type(value) for key, value in content.items()}
    if types != expected or any(isinstance(value, int) and not 0 <= value < 2**63 for value in content.values()):
        raise TypeError(f"found {types}, expected {expected}")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
