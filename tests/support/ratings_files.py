"""Files of ratings as MovieLens has them."""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from configs import node

from ddp_agent.config.registry import build
from ddp_agent.data.readers.ratings import find
from ddp_agent.data.task import Task

HEADER = "userId,movieId,rating,timestamp"
USERS, FILMS, EACH = 12, 200, 20
Row = tuple[Any, ...]


def rows() -> list[Row]:
    """Users 2, 5, 8, … and films 0, 10, 20, …: ids have gaps in the real files, too."""
    generator = torch.Generator().manual_seed(0)
    found: list[Row] = []
    for user in range(USERS):
        films = torch.randperm(FILMS, generator=generator)[:EACH].tolist()
        found += [(3 * user + 2, 10 * film, 0.5 + film % 10 / 2, 1000 - 7 * i % 50) for i, film in enumerate(films)]
    return found


def write(folder: Path, given: Iterable[Row], name: str = "ratings.csv", header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = "\r\n".join([header, *(",".join(map(str, row)) for row in given), ""]).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def found_in(data_root: Path) -> Path:
    path = find(data_root)
    assert path is not None
    return path


def load(data_root: Path, **values: Any) -> Task:
    task: Task = build("dataset", node("dataset", "movielens", **values), data_root=data_root).load()
    return task


def pairs_of(given: Iterable[Row]) -> set[tuple[int, int]]:
    """Return pairs of user and film numbers, as the tasks have them."""
    given = list(given)
    users, films = (sorted({row[column] for row in given}) for column in (0, 1))
    return {(users.index(row[0]), films.index(row[1])) for row in given}
