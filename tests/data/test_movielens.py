"""MovieLens: its files, and the prediction of stars."""

import gzip
import math
from pathlib import Path

import pytest
import torch
from ratings_files import Row, found_in, load, pairs_of, rows, write
from resident import tensors

from ddp_agent.data.datasets.movielens import squared_error
from ddp_agent.data.readers.ratings import read_ratings, read_titles
from ddp_agent.errors import DataError

# Files.


@pytest.mark.parametrize("place", ["ratings.csv", "ml-latest-small/ratings.csv", "ml-latest-small/ratings.csv.gz"])
def test_ratings_are_numbered_from_zero(tmp_path: Path, place: str) -> None:
    given = [(7, 30, 4.5, 11), (7, 10, 0.5, 12), (2, 30, 5, 13)]
    write((tmp_path / place).parent, given, (tmp_path / place).name)
    found = read_ratings(found_in(tmp_path))
    assert found.user.tolist() == [1, 1, 0] and found.user_ids.tolist() == [2, 7]
    assert found.film.tolist() == [1, 0, 1] and found.film_ids.tolist() == [10, 30]
    assert found.stars.tolist() == [4.5, 0.5, 5.0] and found.second.tolist() == [11, 12, 13]
    assert len(found) == 3


def test_titles_are_those_of_the_rated_films(tmp_path: Path) -> None:
    ratings = tmp_path / "ratings.csv.gz"
    ids = torch.tensor([10, 30, 40])
    assert read_titles(ratings, ids) == ("film 10", "film 30", "film 40")
    write(tmp_path, [(30, '"Heat, the"', 1995), (20, "Speed", 1994), (10, "Brazil", 1985)], "movies.csv.gz",
          "movieId,title,year")  # fmt: skip
    assert read_titles(ratings, ids) == ("Brazil", "Heat, the", "film 40")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(1, 2, 5.5, 3)], "line 2: found rating 5.5, expected 0.5 to 5"),
        ([(1, 2, 3.0, 3), (1, 3, 0, 3)], "line 3: found rating 0, expected 0.5 to 5"),
        ([(1, 2, "nan", 3)], "line 2: found rating nan, expected 0.5 to 5"),
        ([(1, "", 3.0, 3)], "line 2: found 1,,3.0,3, expected four numbers"),
        ([("Ann", 2, 3.0, 3)], "line 2: found Ann,2,3.0,3, expected four numbers"),
        ([(1, 2**63, 3.0, 3)], "line 2: found 1,9223372036854775808,3.0,3, expected four numbers"),
        ([(1, 2, 3.0, 1.5)], "line 2: found 1,2,3.0,1.5, expected four numbers below 2.63, of which the rating"),
        ([(1, 2, 3.0)], "line 2: found 3 columns, expected 4"),
        ([], "found no ratings below the first line"),
        ([(9, 2, 3.0, 3), (1, 2, 3.0, 3), (9, 2, 4.0, 4)], "found more than one rating of film 2 by user 9"),
    ],
)
def test_the_bad_line_is_named(tmp_path: Path, given: list[Row], message: str) -> None:
    write(tmp_path, given)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "ratings.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings.csv", b"", "found a first line of '', expected userId,movieId,rating,timestamp"),
        ("ratings.csv", b"movieId,title\r\n1,Heat\r\n", "found a first line of 'movieId,title', expected userId"),
        ("ratings.csv", b"\xff\xfd\r\n", "found .*can't decode.* expected a whole file"),
        ("ratings.csv.gz", b"userId", "found a first line of 'userId', expected userId,movieId,rating"),
        (
            "ratings.csv.gz",
            gzip.compress(b"userId,movieId,rating,timestamp\n" * 99, mtime=0)[:-20],
            "expected a whole file",
        ),
    ],
)
def test_a_file_that_is_cut_off_or_foreign_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_missing_file_is_named_with_where_it_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no ratings.csv, .*, also not in .*\(an empty folder\).*https://files"):
        load(tmp_path)


# Stars.


def test_a_tenth_of_the_ratings_is_tested_and_the_rest_trained_on(tmp_path: Path) -> None:
    write(tmp_path, rows())
    torch.manual_seed(1)
    task = load(tmp_path)
    torch.manual_seed(2)
    assert load(tmp_path).data.sha256 == task.data.sha256
    train, stars, test, test_stars = tensors(task)
    assert (len(train), len(test)) == (216, 24)
    found = [(int(user), int(film)) for user, film in torch.cat([train, test])]
    assert len(found) == len(set(found)) and set(found) == pairs_of(rows())
    by_pair = dict(zip(found, torch.cat([stars, test_stars]).tolist(), strict=True))
    number = {film: place for place, film in enumerate(sorted({row[1] for row in rows()}))}
    assert all(by_pair[(row[0] - 2) // 3, number[row[1]]] == row[2] for row in rows())
    assert task.data.groups is not None and torch.equal(task.data.groups, train[:, 0])
    assert task.model_arguments == {"users": 12, "items": len(number), "mean": pytest.approx(stars.mean().item())}


def test_the_error_is_a_root_and_predictions_stay_on_the_scale(tmp_path: Path) -> None:
    task = load(write(tmp_path, rows()))
    output, stars = torch.tensor([[4.0], [9.0], [-2.0]]), torch.tensor([3.0, 5.0, 1.0])
    errors = task.objective.metric(output, stars)
    assert errors.tolist() == [1.0, 0.0, 0.25]
    assert task.objective.finish is not None and task.objective.finish(errors.mean().item()) == pytest.approx(
        math.sqrt(1.25 / 3)
    )
    assert not task.objective.higher_is_better and task.objective.metric_name == "rmse"
    assert squared_error(output, stars).item() == pytest.approx((1 + 16 + 9) / 3)  # training sees the excess


# The real files.


@pytest.mark.data
def test_the_published_files(data_root: Path) -> None:
    path = found_in(data_root)
    ratings = read_ratings(path)
    assert len(ratings) > 100_000 and ratings.stars.unique().tolist() == [0.5 * step for step in range(1, 11)]
    titles = read_titles(path, ratings.film_ids)
    assert any(title.startswith("Toy Story") for title in titles) and len(titles) == len(ratings.film_ids)
    task = load(data_root, predict="ranking")
    assert len(task.data.test) == len(ratings.user_ids)  # type: ignore[arg-type]
