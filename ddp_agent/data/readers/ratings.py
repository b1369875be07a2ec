"""Files of ratings as GroupLens publishes them: ratings.csv and movies.csv, gzipped or not."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from ddp_agent.errors import DataError

FOLDERS = ("", "ml-latest-small", "movielens_latest_small_2016")
COLUMNS = ["userId", "movieId", "rating", "timestamp"]
LOWEST, HIGHEST = 0.5, 5.0


@dataclass(frozen=True)
class Ratings:
    """Ratings as columns [ratings]: user, film, stars and time. Users and films are numbered from 0, by their ids."""

    user: Tensor
    film: Tensor
    stars: Tensor
    second: Tensor
    user_ids: Tensor
    film_ids: Tensor

    def __len__(self) -> int:
        return len(self.user)


def find(data_root: Path) -> Path:
    """Return the file of ratings. Raise DataError, which names the source, if there is none."""
    for folder in FOLDERS:
        for name in ("ratings.csv", "ratings.csv.gz"):
            if (data_root / folder / name).is_file():
                return data_root / folder / name
    raise DataError(
        f"{data_root}: found no ratings.csv[.gz], also not in {' or '.join(FOLDERS[1:])}; unpack "
        "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip there (its content changes from time to "
        "time, and figures with it) or any other MovieLens release with that file"
    )


def read_ratings(path: Path) -> Ratings:
    """Return the ratings of a file. Raise DataError with the number of a line that is no rating."""
    users, films, stars, seconds = [], [], [], []
    for line, row in _rows(path, COLUMNS):
        try:
            user, film, rating, second = _whole(row[0]), _whole(row[1]), float(row[2]), _whole(row[3])
        except ValueError as error:
            raise DataError(
                f"{path}: line {line}: found {','.join(row)[:80]}, expected four numbers below 2^63, of which the "
                "rating alone may have a fraction"
            ) from error
        if not LOWEST <= rating <= HIGHEST:
            raise DataError(f"{path}: line {line}: found rating {rating:g}, expected {LOWEST:g} to {HIGHEST:g}")
        users.append(user)
        films.append(film)
        stars.append(rating)
        seconds.append(second)
    if not users:
        raise DataError(f"{path}: found no ratings below the first line")
    user_ids, user_numbers = torch.tensor(users).unique(return_inverse=True)
    film_ids, film_numbers = torch.tensor(films).unique(return_inverse=True)
    found = Ratings(user_numbers, film_numbers, torch.tensor(stars), torch.tensor(seconds), user_ids, film_ids)
    _refuse_repetitions(path, found)
    return found


def _whole(text: str) -> int:
    number = int(text)
    if number.bit_length() > 63:
        raise ValueError("more than a tensor holds")
    return number


def read_titles(ratings_path: Path, film_ids: Tensor) -> tuple[str, ...]:
    """Return the titles of the rated films from the file beside the ratings. An absent title is replaced by the id."""
    path = ratings_path.with_name(ratings_path.name.replace("ratings", "movies"))
    titles = {}
    if path.is_file():
        for line, row in _rows(path, ["movieId", "title"]):
            if not row[0].isdecimal():
                raise DataError(f"{path}: line {line}: found movieId {row[0]!r}, expected a number")
            titles[int(row[0])] = row[1]
    return tuple(titles.get(film, f"film {film}") for film in film_ids.tolist())


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the numbers and cells of the lines below a first line that begins with `columns`."""
    with _reading(path) as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if header[: len(columns)] != list(columns):
            raise DataError(f"{path}: found a first line of {','.join(header)[:80]!r}, expected {','.join(columns)}")
        for row in reader:
            if len(row) != len(header):
                raise DataError(f"{path}: line {reader.line_num}: found {len(row)} columns, expected {len(header)}")
            yield reader.line_num, row


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                yield file
        else:
            with path.open(encoding="utf-8", newline="") as file:
                yield file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: found {error}, expected a whole file of comma-separated values") from error


def _refuse_repetitions(path: Path, ratings: Ratings) -> None:
    key = ratings.user * len(ratings.film_ids) + ratings.film
    keys, counts = key.unique(return_counts=True)
    if len(keys) == len(key):
        return
    user, film = divmod(int(keys[counts > 1][0]), len(ratings.film_ids))
    raise DataError(
        f"{path}: found more than one rating of film {ratings.film_ids[film]} by user {ratings.user_ids[user]}, "
        "expected one"
    )
