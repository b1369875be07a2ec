"""The exit code of a process is its own, whatever its standard streams, its terminal and its locale do."""

import errno
import fcntl
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 60
CODE = 7
WORDS = "\\u00e9 \\u00b7 \\u2026 \\udcff \\u6f22"  # escapes: the locale decodes `python -c`, too

TRAINS = f"""
import logging, sys, warnings
from ddp_agent.distributed.process import leave
from ddp_agent.outputs import streams
streams.PATIENCE_S = 0.1
streams.protect()
logging.basicConfig(stream=sys.stderr)
logging.captureWarnings(True)
for number in range(1200):
    print(number, "{WORDS}", "x" * 1000)
    print("\\r", number, end="", file=sys.stderr, flush=number % 100 == 0)
    logging.warning("{WORDS}")
sys.stdout.buffer.write(b"bytes")
warnings.warn("a warning")
sys.stdout.close()
print("after")
if sys.argv[1] == "leave":
    leave({CODE})
sys.exit({CODE})
"""

SHOWS = f"""
import sys
from ddp_agent.outputs.streams import run_command
def command():
    for number in range(3000):
        print(number, "{WORDS}")
    return {CODE}
sys.exit(run_command(command))
"""


@contextmanager
def reader_gone() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def unread() -> Iterator[int]:
    reader, writer = os.pipe()
    yield writer
    os.close(reader)
    os.close(writer)


@contextmanager
def unread_and_non_blocking() -> Iterator[int]:
    with unread() as writer:
        fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
        yield writer


@contextmanager
def terminal_gone() -> Iterator[int]:
    ours, theirs = pty.openpty()
    os.close(ours)
    yield theirs
    os.close(theirs)


@contextmanager
def held_terminal() -> Iterator[int]:
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


@contextmanager
def full() -> Iterator[int]:
    with open("/dev/full", "wb") as file:
        yield file.fileno()


@contextmanager
def read_only() -> Iterator[int]:
    with open(os.devnull, "rb") as file:
        yield file.fileno()


OUTPUTS: list[Callable[[], Any]] = [
    reader_gone, unread, unread_and_non_blocking, terminal_gone, held_terminal, full, read_only,
]  # fmt: skip


def run(
    program: str, *arguments: str, stdout: int, stderr: int, **more: str | Callable[[], None]
) -> "subprocess.CompletedProcess[bytes]":
    prepare = more.pop("prepare", None)
    environment = {**os.environ, **{name: value for name, value in more.items() if isinstance(value, str)}}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=stdout,
        stderr=stderr,
        env=environment,
        timeout=LIMIT_S,
        preexec_fn=prepare if callable(prepare) else None,
    )


@pytest.mark.parametrize("end", ["leave", "exit"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_no_output_decides_about_a_run(output: Callable[[], Any], end: str) -> None:
    with output() as out, output() as err:
        assert run(TRAINS, end, stdout=out, stderr=err).returncode == CODE


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_files_of_the_run(closed: tuple[int, ...], tmp_path: Path) -> None:
    """The next file that is opened would get the number, and all that C++ code prints there."""

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    opens = TRAINS.replace("for number", f"file = open({str(tmp_path / 'file')!r}, 'wb')\nfor number", 1)
    again = opens.replace("if sys.argv", "import os; os.write(1, b'C++'); os.write(2, b'C++')\nif sys.argv", 1)
    nowhere = subprocess.DEVNULL
    assert run(again, "leave", stdout=nowhere, stderr=nowhere, prepare=close).returncode == CODE
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252:strict"}, {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "xx_YY.nothing"},
        {"TERM": "dumb", "COLUMNS": "0"}, {"COLUMNS": "wide", "PYTHONUNBUFFERED": "1"},
    ],
)  # fmt: skip
def test_no_locale_decides_about_a_run(locale: dict[str, str], tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        assert run(TRAINS, "exit", stdout=out.fileno(), stderr=out.fileno(), **locale).returncode == CODE
    assert b"1199" in (tmp_path / "out").read_bytes().replace(b"\0", b"")


def test_lines_stay_whole_and_in_order(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        run(TRAINS, "leave", stdout=out.fileno(), stderr=subprocess.DEVNULL)
    lines = (tmp_path / "out").read_text().splitlines()
    assert [line.split()[0] for line in lines[:1200]] == [str(number) for number in range(1200)]
    assert lines[1200:] == ["bytesafter"]


def test_a_reader_that_leaves_ends_a_commands_output_quietly() -> None:
    with reader_gone() as out:
        program = [sys.executable, "-c", SHOWS]
        done = subprocess.run(program, stdout=out, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (CODE, b"")


@pytest.mark.parametrize(("output", "error"), [(full, errno.ENOSPC), (terminal_gone, errno.EIO)])
def test_output_that_a_command_could_not_write_is_an_error(output: Callable[[], Any], error: int) -> None:
    with output() as out:
        program = [sys.executable, "-c", SHOWS]
        done = subprocess.run(program, stdout=out, stderr=subprocess.PIPE, timeout=LIMIT_S, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == f"standard output: {os.strerror(error)}; the output is not complete\n"


def test_a_slow_reader_of_a_command_gets_all() -> None:
    program = [sys.executable, "-c", SHOWS]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("0 ")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert len(process.stdout.readlines()) == 2999


def test_a_child_of_a_fork_prints_as_well(tmp_path: Path) -> None:
    program = """
import os
from ddp_agent.outputs import streams
streams.protect()
print("parent", flush=True)
if os.fork() == 0:
    print("child", flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout == "parent\nchild\n"


@pytest.mark.faults
def test_a_run_without_a_console_finishes_and_says_so(tmp_path: Path) -> None:
    """The parent, torchrun and the ranks write to a pipe without a reader, to a full device, and in ASCII."""
    root = Path(__file__).parents[2]
    typed = ["max_steps=40", "log_every=1", "model.hidden=[8]", "device=cpu", f"hydra.run.dir='{tmp_path / 'run'}'"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "TERM": "dumb", "COLUMNS": "0"}
    with reader_gone() as out, full() as err:
        command = [sys.executable, str(root / "train.py"), *typed]
        done = subprocess.run(command, stdout=out, stderr=err, env=environment, timeout=120, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "step 40/40" in log and "test accuracy" in log


def test_a_signal_handler_that_prints_does_not_block() -> None:
    program = f"""
import os, signal, sys
from ddp_agent.outputs import streams
streams.protect()
signal.signal(signal.SIGALRM, lambda *_: print("handler", flush=True))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
for number in range(20000):
    print(number)
signal.setitimer(signal.ITIMER_REAL, 0)
os._exit({CODE})
"""
    done = run(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.returncode == CODE
