"""Downloads that several ranks may ask for at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddp_agent.errors import DataError


@contextmanager
def in_turn(folder: Path, dataset: str) -> Iterator[None]:
    """Holds a lock on `folder`: the first rank downloads, the next ones find the files there.

    Raises DataError for whatever keeps the body from downloading.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".download.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except (OSError, RuntimeError) as error:  # no network, no space, read-only; torchvision's checksum
        raise DataError(f"{folder}: downloading {dataset} failed: {error}") from error
