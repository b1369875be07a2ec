"""Everything that reads a folder, with something else in a file's place: it does not hang, follow or get forged."""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import fuzzing
import pytest
from fuzzed_checkpoints import STATES
from fuzzed_datasets import DATASETS
from fuzzed_readers import Reader
from fuzzed_runs import RUNS

from ddp_agent.cli.sweep_job import JobFailedError
from ddp_agent.errors import RefusedError
from ddp_agent.report.runs.run import ReportError

FILES = {name: reader for name, reader in DATASETS.items() if name != "wav"}  # which is given bytes
READERS = FILES | STATES | RUNS
REFUSALS = (RefusedError, ReportError, JobFailedError)
GENEROUS_S = 120
LONG_AGO_NS = 10**18
FORGED = "\x1b[31m\r\nforged: all is well\u202e"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a reader as it should be, written once."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("good")
            READERS[name].write(made[name])
        return made[name]

    return folder_of


@contextmanager
def bounded() -> Iterator[None]:
    """Fail instead of hanging, and instead of taking the machine's memory."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at work after {GENEROUS_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(GENEROUS_S)
    try:
        with fuzzing.little_memory():
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def words(reader: Reader, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return all that a reader says: its output, its log, its refusal."""
    output = io.StringIO()
    caplog.clear()
    with bounded(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            said: Any = reader.read(folder)
        except REFUSALS as refusal:
            said = str(refusal)
            assert said.strip()
    return "\n".join([output.getvalue(), *caplog.messages, said if isinstance(said, str) else ""])


def bound_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def terabyte(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": bound_socket,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a terabyte of holes": terabyte,
    "a deep list": content(b"[" * 20_000),
    "a deep dict": content(b'{"a":' * 20_000),
    "a line without an end": content(b"a" * 5_000_000),
    "NUL": content(bytes(5000)),
    "no text": content(b"\xff\xfe\x00\xd8"),
}


@pytest.mark.parametrize("name", READERS)
def test_something_else_in_the_place_of_a_file_is_refused_or_passed_over(
    name: str, good: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = READERS[name]
    for number, make in enumerate(KINDS.values()):
        folder = tmp_path / str(number)
        shutil.copytree(good(name), folder)
        (folder / reader.victim).unlink(missing_ok=True)
        make(folder / reader.victim)
        words(reader, folder, caplog)


def links(folder: Path, victim: str, outside: Path) -> Iterator[Path]:
    """Make the file, then each folder that it is in, a link to the same one outside. Yield the file that is meant."""
    for place in [Path(victim), *list(Path(victim).parents)[:-1]]:
        target = outside / place.name
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (folder / place).rename(target)
        (folder / place).symlink_to(target)
        read = target / Path(victim).relative_to(place)
        os.utime(read, ns=(LONG_AGO_NS, read.stat().st_mtime_ns))
        yield read
        (folder / place).unlink()
        shutil.move(target, folder / place)


@pytest.mark.parametrize("name", STATES | RUNS)
def test_no_link_out_of_the_folder_is_followed(
    name: str, good: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that was read has another access time, if it was read for the first time since it was written."""
    probe = tmp_path / "probe"
    probe.write_text("x")
    os.utime(probe, ns=(LONG_AGO_NS, probe.stat().st_mtime_ns))
    probe.read_text()
    if probe.stat().st_atime_ns == LONG_AGO_NS:
        pytest.skip("this file system does not record when files are read")
    reader = READERS[name]
    shutil.copytree(good(name), tmp_path / "folder")
    if not (tmp_path / "folder" / reader.victim).exists():
        return
    for target in links(tmp_path / "folder", reader.victim, tmp_path / "outside"):
        words(reader, tmp_path / "folder", caplog)
        assert target.exists() and target.stat().st_atime_ns == LONG_AGO_NS, target


def forged(tree: Any) -> Iterator[Any]:
    """Yield copies of a tree of JSON in each of which one text, or one key, is made to forge a line."""
    if isinstance(tree, str):
        yield tree + FORGED
        yield FORGED + tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield {(old + FORGED if old == key else old): each for old, each in tree.items()}
            yield from ({**tree, key: changed} for changed in forged(value))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from ([*tree[:index], changed, *tree[index + 1 :]] for changed in forged(value))
    else:
        yield FORGED


TEXTS = [name for name, reader in (STATES | RUNS).items() if reader.damage is fuzzing.damaged_json]


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_forges_a_line_on_the_terminal(
    name: str, good: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader = READERS[name]
    folder = tmp_path / "folder"
    tree = json.loads((good(name) / reader.victim).read_bytes())
    for changed in [*forged(tree)][: 40 if name.startswith(("report", "plan")) else 200]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good(name), folder)
        (folder / reader.victim).write_text(json.dumps(changed))
        reader.before_reading(folder)
        said = words(reader, folder, caplog)
        assert "\x1b" not in said and "\u202e" not in said, said
        assert not [line for line in said.splitlines() if line.startswith("forged")], said
