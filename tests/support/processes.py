"""Processes that a test starts, and the ones that it must not leave behind."""

import signal
from contextlib import suppress
from pathlib import Path


def with_variable(name: str, value: object) -> list[int]:
    """Ids of the running processes that inherited this environment variable.

    It finds ranks, too: torchrun puts them into sessions of their own, so neither parent nor process group tells whose
    they are.
    """
    mark, members = f"{name}={value}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not ended and mark in (folder / "environ").read_bytes().split(b"\0"):
                members.append(int(folder.name))
    return members


def listen_to_ctrl_c() -> None:
    """Restore SIGINT, which is ignored in commands that a shell starts in the background. For `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
