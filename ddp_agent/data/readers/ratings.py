"""Files of ratings as GroupLens publishes them, and as spreadsheets and other programs write the same table."""

import csv
import io
import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ddp_agent.data.readers.files import lines, opened_text, read_text
from ddp_agent.errors import DataError

RELEASES = ("latest-small", "latest", "32m", "25m", "20m", "10m", "10M100K", "1m", "100k")
FOLDERS = ("", *(f"ml-{release}" for release in RELEASES), "movielens_latest_small_2016")
NAMES = ("ratings.csv", "ratings.csv.gz", "ratings.dat", "u.data")
COLUMNS = ["userId", "movieId", "rating", "timestamp"]
# Other names of the same columns, in lower case and without anything but letters.
SYNONYMS = {
    "userId": ("userid", "user", "uid"),
    "movieId": ("movieid", "movie", "itemid", "item", "filmid", "film", "mid", "iid"),
    "rating": ("rating", "stars", "score"),
    "timestamp": ("timestamp", "time", "ts", "unixtime", "unixtimestamp", "ratingtimestamp", "seconds"),
    "title": ("title", "movietitle", "name"),
}
SEPARATORS = ("::", "\t", ";", ",", "|")
LOWEST, HIGHEST = 0.5, 5.0
TITLES_BYTES = 1 << 28
EXPECTED = "a whole file of comma-separated values (or separated by tabs, ';' or '::')"
_TITLES = {"ratings.dat": "movies.dat", "u.data": "u.item"}  # GroupLens encoded the older ones in Latin-1


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


def find(data_root: Path) -> Path | None:
    """Return the file of ratings in `data_root` or in a release's folder below it, or None."""
    places = (data_root / folder / name for folder in FOLDERS for name in NAMES)
    return next((path for path in places if path.is_file()), None)


def read_ratings(path: Path) -> Ratings:
    """Return the ratings of a file. Raise DataError with the number of a line that is no rating.

    Memory takes 28 bytes per rating while the file is read, and twice as much while ids are numbered.
    """
    users, films, stars, seconds = array("q"), array("q"), array("f"), array("q")
    with opened_text(path, EXPECTED) as file:
        for line, row in _rows(path, lines(file), COLUMNS):
            try:
                user, film, rating, second = _whole(row[0]), _whole(row[1]), _decimal(row[2]), _whole(row[3])
                users.append(user)
                films.append(film)
                seconds.append(second)
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{path}: line {line}: found {','.join(row)[:80]}, expected four numbers below 2^63, of which the "
                    "rating alone may have a fraction"
                ) from error
            if not LOWEST <= rating <= HIGHEST:
                raise DataError(f"{path}: line {line}: found rating {rating:g}, expected {LOWEST:g} to {HIGHEST:g}")
            stars.append(rating)
    if not users:
        raise DataError(f"{path}: found no ratings below the first line")
    user_ids, user_numbers = _numbered(users)
    del users
    film_ids, film_numbers = _numbered(films)
    del films
    found = Ratings(user_numbers, film_numbers, torch.frombuffer(stars, dtype=torch.float32), _tensor(seconds),
                    user_ids, film_ids)  # fmt: skip
    _refuse_repetitions(path, found)
    return found


def _tensor(column: "array[int]") -> Tensor:
    return torch.frombuffer(column, dtype=torch.int64)


def _numbered(column: "array[int]") -> tuple[Tensor, Tensor]:
    """Return the sorted ids of a column, and the place of each of its values among them."""
    values = numpy.frombuffer(column, "i8")
    ids = numpy.unique(values)  # torch's takes four times the memory
    return torch.from_numpy(ids), torch.from_numpy(numpy.searchsorted(ids, values))


_NUMBER = re.compile(r"\s*([+-]?[0-9]{1,19})(?:\.0*)?\s*", re.ASCII)


def _whole(text: str) -> int:
    """Return a whole number, which programs also write as 7.0. Raise ValueError for any other text."""
    if len(text) < 19 and text.isascii() and text.isdecimal():  # almost every number, and three times as fast
        return int(text)
    if (match := _NUMBER.fullmatch(text)) is None:
        raise ValueError("no whole number")
    return int(match[1])


def _decimal(text: str) -> float:
    return float(text.replace(",", "."))  # with ';' between columns, spreadsheets write 3,5


def read_titles(ratings_path: Path, film_ids: Tensor) -> tuple[str, ...]:
    """Return the titles of the rated films from the file beside the ratings. An absent title is replaced by the id."""
    name = ratings_path.name
    path = ratings_path.with_name(_TITLES.get(name) or name.replace("ratings", "movies"))
    titles = {}
    if path.is_file():
        text = read_text(path, EXPECTED, TITLES_BYTES, otherwise="latin-1")
        for line, row in _rows(path, io.StringIO(text, newline=""), ["movieId", "title"]):
            try:
                titles[_whole(row[0])] = row[1]
            except ValueError as error:
                raise DataError(f"{path}: line {line}: found movieId {row[0]!r}, expected a number") from error
    return tuple(titles.get(film, f"film {film}") for film in film_ids.tolist())


def _rows(path: Path, source: Iterable[str], columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the numbers of lines and their cells of the `columns`.

    The first line shows the separator. It names the columns, unless it begins with a number: then it is a row
    already, whose cells stand in the order of `columns`.
    """
    rest = iter(source)
    first = next(rest, "")
    separator = max(SEPARATORS, key=first.count)
    reader = _split(itertools.chain([first], rest), separator)
    try:
        _, header = next(reader, (1, []))
        places = _places(header, columns)
        if places is None:
            found, expected = f"a first line of {separator.join(header)[:80]!r}", ",".join(columns)
            raise DataError(f"{path}: found {found}, expected {expected} or names like these")
        for line, row in itertools.chain([(1, header)] * _is_row(header), reader):
            if len(row) != len(header):
                raise DataError(f"{path}: line {line}: found {len(row)} columns, expected {len(header)}")
            yield line, [row[place] for place in places]
    except csv.Error as error:
        raise DataError(f"{path}: found {error}, expected {EXPECTED}") from error


def _split(source: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the numbers of lines and their cells. Lines without any are left out after the first."""
    if len(separator) > 1:
        for number, line in enumerate(source, start=1):
            if number == 1 or line.strip():
                yield number, line.rstrip("\r\n").split(separator)
        return
    as_it_is = separator in "\t|"  # GroupLens's files with these have quotation marks in titles
    reader = csv.reader(
        source, delimiter=separator, quoting=csv.QUOTE_NONE if as_it_is else csv.QUOTE_MINIMAL, strict=True
    )
    for row in reader:
        if row or reader.line_num == 1:
            yield reader.line_num, row


def _is_row(cells: Sequence[str]) -> bool:
    return len(cells) > 1 and _NUMBER.fullmatch(cells[0]) is not None


def _places(first: Sequence[str], columns: Sequence[str]) -> list[int] | None:
    """Return the places of the `columns` by the cells of a first line, or None if these are other columns."""
    if _is_row(first):
        return list(range(len(columns))) if len(first) >= len(columns) else None
    names = [re.sub("[^a-z]", "", cell.lower()) for cell in first]
    places = [next((names.index(name) for name in SYNONYMS[column] if name in names), None) for column in columns]
    return None if None in places else [place for place in places if place is not None]


def _refuse_repetitions(path: Path, ratings: Ratings) -> None:
    key = (ratings.user * len(ratings.film_ids)).add_(ratings.film).numpy()
    key.sort()
    again = key[1:][key[1:] == key[:-1]]
    if not len(again):
        return
    user, film = divmod(int(again[0]), len(ratings.film_ids))
    raise DataError(
        f"{path}: found more than one rating of film {ratings.film_ids[film]} by user {ratings.user_ids[user]}, "
        "expected one"
    )
