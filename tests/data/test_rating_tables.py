"""Files of ratings as other programs write them, and the memory that they take."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from ratings_files import Row

from ddp_agent.data.readers.ratings import Ratings, find, read_ratings, read_titles
from ddp_agent.errors import DataError

GIVEN: list[Row] = [(7, 30, 4.5, 11), (7, 10, 0.5, 12), (2, 30, 5, 13)]
HEADER = "userId,movieId,rating,timestamp"


def table(separator: str = ",", header: str | None = HEADER, end: str = "\n") -> str:
    lines = ([header.replace(",", separator)] if header else []) + [separator.join(map(str, row)) for row in GIVEN]
    return end.join([*lines, ""])


def written(folder: Path, data: bytes, name: str = "ratings.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def same(found: Ratings) -> bool:
    assert found.user.tolist() == [1, 1, 0] and found.user_ids.tolist() == [2, 7]
    assert found.film.tolist() == [1, 0, 1] and found.film_ids.tolist() == [10, 30]
    assert found.stars.tolist() == [4.5, 0.5, 5.0] and found.second.tolist() == [11, 12, 13]
    return True


ENCODINGS: list[Callable[[str], bytes]] = [
    lambda text: text.encode("utf-8-sig"),
    lambda text: text.encode("utf-16"),
    lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    lambda text: text.encode("utf-32"),
    lambda text: gzip.compress(text.encode("utf-8-sig")),
]


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_ratings_are_the_same_in_every_encoding(tmp_path: Path, encode: Callable[[str], bytes], end: str) -> None:
    assert same(read_ratings(written(tmp_path, encode(table(end=end)))))


@pytest.mark.parametrize("separator", [",", ";", "\t", "::", "|"])
@pytest.mark.parametrize("header", [HEADER, None])
def test_ratings_are_the_same_with_every_separator(tmp_path: Path, separator: str, header: str | None) -> None:
    assert same(read_ratings(written(tmp_path, table(separator, header).encode())))


@pytest.mark.parametrize(
    "header",
    [
        "user_id,item_id,rating,timestamp",
        "User,Movie,Stars,Time",
        "UserID,MovieID,Rating,Timestamp",
        "uid,iid,score,ts",
    ],
)
def test_columns_have_other_names_elsewhere(tmp_path: Path, header: str) -> None:
    assert same(read_ratings(written(tmp_path, table(header=header).encode())))


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    rows = "".join(f"x,{second},{rating},{film},{user}\n" for user, film, rating, second in GIVEN)
    assert same(read_ratings(written(tmp_path, f"tag,timestamp,rating,movieId,userId\n{rows}\n\n".encode())))


def test_spreadsheets_write_commas_and_whole_numbers_with_a_point(tmp_path: Path) -> None:
    text = "userId;movieId;rating;timestamp\r\n7;30;4,5;11.0\r\n7.0;10;0,5;12\r\n2;30.0;5,0;13\r\n;;;\r\n"
    with pytest.raises(DataError, match="line 5: found ,,,, expected four numbers"):
        read_ratings(written(tmp_path, text.encode()))
    assert same(read_ratings(written(tmp_path, text.removesuffix(";;;\r\n").encode())))


@pytest.mark.parametrize(
    ("place", "titles"),
    [
        ("ml-1m/ratings.dat", "10::Café (1985)::Drama\n30::Heat::Crime\n"),
        ("ml-100k/u.data", '10|Café (1985)|x||"\n30|Heat|y||\n'),
    ],
)
def test_older_releases_are_found_with_their_titles(tmp_path: Path, place: str, titles: str) -> None:
    separator = "::" if place.endswith("dat") else "\t"
    path = written((tmp_path / place).parent, table(separator, None).encode(), Path(place).name)
    written(path.parent, titles.encode("latin-1"), "movies.dat" if path.suffix == ".dat" else "u.item")
    assert find(tmp_path) == path
    found = read_ratings(path)
    assert same(found) and read_titles(path, found.film_ids)[1] == "Heat"
    assert read_titles(path, found.film_ids)[0] == "Café (1985)"


@pytest.mark.parametrize(
    "text", ["1_0,2,3.0,4\n", "1e3,2,3.0,4\n", "1.5,2,3.0,4\n", "١,2,3.0,4\n", "9999999999999999999,2,3.0,4\n"]
)
def test_ids_are_plain_whole_numbers(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"line 2: found .*, expected four numbers below 2.63"):
        read_ratings(written(tmp_path, f"{HEADER}\n{text}".encode()))


def test_a_line_without_an_end_is_not_kept_in_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(HEADER.encode() + b"\n" + b"1" * 50_000_000)
    with pytest.raises(DataError, match=r"a line of more than 1,048,576 characters"):
        read_ratings(written(tmp_path, bomb))


def test_a_rating_takes_the_memory_of_four_numbers(tmp_path: Path) -> None:
    import tracemalloc

    rows = 40_000
    lines = (f"{1 + row // 40},{row % 4000},3.5,{1_500_000_000 + row}\n" for row in range(rows))
    path = written(tmp_path, "".join([HEADER + "\n", *lines]).encode())
    tracemalloc.start()
    try:
        read_ratings(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / rows < 70  # 28 bytes, the room by which arrays grow, and sorted copies; it was 230 as lists
