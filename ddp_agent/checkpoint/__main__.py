"""python -m ddp_agent.checkpoint list | verify | prune RUN_DIR: a run's checkpoints, without starting the run."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ddp_agent.checkpoint.folder import (
    best,
    delete,
    manifest_of,
    metric_of,
    named_as_checkpoints,
    remove,
    surplus,
    unfinished,
)
from ddp_agent.config.untrusted import plain
from ddp_agent.errors import CheckpointError, RefusedError
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.streams import run_command


def main(typed: Sequence[str]) -> int:
    """Return 0 for sound checkpoints, 2 for a wrong command or a run in progress, 3 if they are damaged or missing."""
    arguments = _parser().parse_args(typed)
    folder = RunFiles(arguments.run_dir).checkpoints
    try:
        if not named_as_checkpoints(folder) and not unfinished(folder):
            raise CheckpointError(f"{folder}: holds no checkpoint")
        code: int = arguments.command(folder, arguments)
    except RefusedError as refusal:
        print(*map(plain, str(refusal).split("\n")), sep="\n", file=sys.stderr)
        return refusal.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ddp_agent.checkpoint", description="A run's checkpoints.")
    commands = parser.add_subparsers(required=True)
    for command, about in (
        (_list, "steps, test metrics and sizes; reads only the manifests"),
        (_verify, "compares every file with the size and sha256 that its manifest names"),
        (_prune, "deletes all but the newest complete ones, and the unfinished ones of dead attempts"),
    ):
        sub = commands.add_parser(command.__name__[1:], help=about, description=about)
        sub.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder with checkpoints/, as outputs/<time>")
        sub.set_defaults(command=command)
        if command is _prune:
            sub.add_argument("--keep", type=_at_least_1, required=True, metavar="N", help="how many of the newest stay")
            sub.add_argument("--keep-best", action="store_true", help="the one with the best test metric stays, too")
    return parser


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer >= 1")
    return int(text)


def _list(folder: Path, _: argparse.Namespace) -> int:
    sound, damaged = _examine(folder, read_files=False)
    best_path = best(sound)
    for path in sound:
        manifest = manifest_of(path)
        size = sum(file.size_bytes for file in manifest.files.values())
        metric = metric_of(manifest)
        scored = "" if metric is None else f"{plain(manifest.details.get('metric_name'), 40)} {metric:.4f}"
        mark = " (best)" if path == best_path else ""
        print(f"{path.name}  {manifest.world_size} ranks  {size / 1e6:.1f} MB  {scored}{mark}".rstrip())
    return _report(folder, damaged)


def _verify(folder: Path, _: argparse.Namespace) -> int:
    sound, damaged = _examine(folder)
    for path in sound:
        print(f"{path.name}: complete, {len(manifest_of(path).files)} files as the manifest says")
    return _report(folder, damaged)


def _prune(folder: Path, arguments: argparse.Namespace) -> int:
    with RunDirectory(folder.parent, restart=True):  # refused while a run trains there
        sound, damaged = _examine(folder)
        if not sound:
            raise CheckpointError("\n  ".join([f"{folder}: no checkpoint is complete, nothing is deleted", *damaged]))
        superfluous = surplus(sound, keep=arguments.keep, keep_best=arguments.keep_best)
        deleted = [_deleted(path, delete) for path in superfluous]
        for path in unfinished(folder):
            _deleted(path, remove)
        return _report(folder, damaged) if all(deleted) else CheckpointError.exit_code


def _deleted(path: Path, how: Callable[[Path], None]) -> bool:
    """Delete `path` and say so. Return False if the system refuses that, which is said as well."""
    try:
        how(path)
    except OSError as error:
        print(f"{path.name}: could not be deleted ({error.strerror})", file=sys.stderr)
        return False
    print(f"{path.name}: deleted")
    return True


def _examine(folder: Path, *, read_files: bool = True) -> tuple[list[Path], list[str]]:
    """Return the sound checkpoints, newest first, and a message for each of the others."""
    sound: dict[int, Path] = {}
    damaged = []
    for path in named_as_checkpoints(folder):
        try:
            manifest = manifest_of(path)
            for name, file in manifest.files.items() if read_files else ():
                file.check(path / name, below=folder)
            sound[manifest.step] = path
        except CheckpointError as error:
            damaged.append(str(error))
        except OSError as error:
            damaged.append(f"{error.filename}: {error.strerror}")
    return [sound[step] for step in sorted(sound, reverse=True)], damaged


def _report(folder: Path, damaged: list[str]) -> int:
    """Print damaged and unfinished checkpoints. Return the exit code."""
    for line in damaged:
        print(plain(line), file=sys.stderr)
    for path in unfinished(folder):
        print(f"{path.name}: unfinished; a resumed run or `prune` deletes it")
    return CheckpointError.exit_code if damaged else 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
