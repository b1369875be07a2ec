"""Ratings of films: tiny files in MovieLens's format, what is drawn and tested, and the errors for bad files."""

import gzip
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import node
from rank_pool import RankPool
from resident import tensors
from run_states import same, states, training_state
from runs import mode, run
from torch import Tensor, nn

from ddp_agent.config.registry import build
from ddp_agent.data.datasets.movielens import bpr, hit, last_of_each, ndcg, squared_error
from ddp_agent.data.negative_sampling import NegativeSampler
from ddp_agent.data.readers.ratings import find, read_ratings, read_titles
from ddp_agent.data.recommendations import recommendations
from ddp_agent.data.task import Task
from ddp_agent.errors import DataError

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


def load(data_root: Path, **values: Any) -> Task:
    task: Task = build("dataset", node("dataset", "movielens", **values), data_root=data_root).load()
    return task


def pairs_of(given: Iterable[Row]) -> set[tuple[int, int]]:
    """Return pairs of user and film numbers, as the tasks have them."""
    given = list(given)
    users, films = (sorted({row[column] for row in given}) for column in (0, 1))
    return {(users.index(row[0]), films.index(row[1])) for row in given}


# Files.


@pytest.mark.parametrize("place", ["ratings.csv", "ml-latest-small/ratings.csv", "ml-latest-small/ratings.csv.gz"])
def test_ratings_are_numbered_from_zero(tmp_path: Path, place: str) -> None:
    given = [(7, 30, 4.5, 11), (7, 10, 0.5, 12), (2, 30, 5, 13)]
    write((tmp_path / place).parent, given, (tmp_path / place).name)
    found = read_ratings(find(tmp_path))
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
        ("ratings.csv", b"\xff\xfe\r\n", "found .*can't decode.* expected a whole file"),
        ("ratings.csv.gz", b"userId", "found Not a gzipped file"),
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
    with pytest.raises(DataError, match=r"found no ratings.csv\[.gz\], also not in ml-latest-small or .*https://files"):
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


# Ranking.


def test_the_last_is_the_last_in_time_and_then_in_the_file() -> None:
    user = torch.tensor([1, 0, 1, 0, 1, 2])
    second = torch.tensor([5, 9, 8, 3, 8, 0])
    assert last_of_each(user, second).tolist() == [1, 4, 5]


def test_everybodys_last_film_is_ranked_among_films_never_seen(tmp_path: Path) -> None:
    write(tmp_path, rows())
    torch.manual_seed(1)
    task = load(tmp_path, predict="ranking")
    torch.manual_seed(2)
    assert load(tmp_path, predict="ranking").data.sha256 == task.data.sha256
    train, _, test, _ = tensors(task)
    seen = pairs_of(rows())
    assert train.shape == (228, 2) and test.shape == (12, 1 + 100)
    assert test[:, 0].tolist() == list(range(12))
    lasts = {(int(user), int(film)) for user, film in test[:, :2]}
    assert lasts | {(int(user), int(film)) for user, film in train} == seen
    films = sorted({row[1] for row in rows()})
    newest = {row[0]: row for row in sorted(rows(), key=lambda row: row[3])}  # the sort is stable, the last one stays
    assert lasts == {((row[0] - 2) // 3, films.index(row[1])) for row in newest.values()}
    for user, _, *strangers in test.tolist():
        assert len(set(strangers)) == 99 and not {(user, film) for film in strangers} & seen
    assert task.data.groups is not None and torch.equal(task.data.groups, train[:, 0])


def test_unseen_items_are_all_that_are_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack([torch.randint(n, (60,), generator=generator) for n in (9, 11)], 1)
    pairs = pairs[pairs[:, 0] != 4]  # who has seen nothing
    unseen = NegativeSampler(9, 11, pairs)
    drawn = unseen.draw(torch.arange(9), 400)
    for user in range(9):
        expected = sorted(set(range(11)) - {int(item) for who, item in pairs if who == user})
        ranks = torch.arange(len(expected)).unsqueeze(0)
        assert unseen.numbered(torch.tensor([user]), ranks).tolist() == [expected]
        assert sorted(unseen.sample(user, 99, generator).tolist()) == expected
        assert drawn[user].unique().tolist() == expected


def test_training_rows_get_films_not_seen_in_training(tmp_path: Path) -> None:
    task = load(write(tmp_path, rows()), predict="ranking", negatives=7)
    train = tensors(task)[0]
    seen = {(int(user), int(film)) for user, film in train}
    assert task.data.augment is not None
    torch.manual_seed(3)
    found = task.data.augment(train)
    assert torch.equal(found[:, :2], train) and found.shape == (228, 2 + 7)
    assert not {(int(row[0]), int(film)) for row in found for film in row[2:]} & seen
    torch.manual_seed(3)
    assert torch.equal(task.data.augment(train), found) and not torch.equal(task.data.augment(train), found)


def test_losses_and_scores_of_a_ranking() -> None:
    output = torch.tensor([[2.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    expected = [math.log1p(math.exp(difference)) for difference in (-1, 1, 0, 0)]
    assert bpr(output, torch.zeros(2)).item() == pytest.approx(sum(expected) / 4)
    ranked = torch.zeros(5, 100)
    ranked[0, 0] = 1  # the best
    ranked[1, 1:4] = 1  # behind three
    ranked[1, 0] = 0.5
    ranked[2, 1:10], ranked[2, 0] = 1, 0.5  # the tenth
    ranked[3, 1:11], ranked[3, 0] = 1, 0.5  # the eleventh
    target = torch.zeros(5, dtype=torch.int64)  # the last: all alike, which is no knowledge
    assert hit(ranked, target).tolist() == [1, 1, 1, 0, 0]
    assert ndcg(ranked, target).tolist() == pytest.approx([1, 1 / math.log2(5), 1 / math.log2(11), 0, 0])
    assert hit(torch.full((1, 100), math.nan), target[:1]).tolist() == [0]


@pytest.mark.parametrize(
    ("given", "values", "message"),
    [
        ([*rows(), (1, 10, 3.0, 5)], {"predict": "ranking"}, "found no rating of user 1 that is not tested, .*1 users"),
        (rows()[:40], {"predict": "ranking"}, "found only .* films that user 2 has not seen, expected the 99"),
        ([(user, 7, 3.0, 5) for user in range(9)], {}, "found no rating of user .* that is not tested"),
    ],
)
def test_too_few_ratings_are_refused(tmp_path: Path, given: list[Row], values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, given), **values)
    assert str(caught.value).startswith(str(tmp_path / "ratings.csv"))


# Whole runs.


def ranking_run(data_root: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    typed = ("dataset=movielens", "model=neumf", "optimizer=adamw", "dataset.predict=ranking", *overrides)
    return mode("local_sgd", *typed, f"data_root={data_root}")


def test_a_ranking_resumes_bit_for_bit(ranks2: RankPool, tmp_path: Path) -> None:
    write(tmp_path / "data", rows())
    data, whole, part = (tmp_path / name for name in ("data", "whole", "part"))
    summary = ranks2.run(run, *ranking_run(data), str(whole))[0]
    assert isinstance(summary, dict), summary
    assert summary["metric_name"] == "hr10" and summary["dataset"] == "movielens"
    ranks2.run(run, *ranking_run(data, "max_steps=3"), str(part))
    ranks2.run(run, *ranking_run(data, f"resume={part}"), str(tmp_path / "resumed"))
    expected, found = (list(map(training_state, states(folder, 8))) for folder in (whole, tmp_path / "resumed"))
    assert len(expected) == 2 and same(expected, found)
    line = (whole / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"test_ndcg10"' in line and '"test_hr10"' in line
    assert "user 2 gave\n" in (whole / "sample.txt").read_text()


class ByFilm(nn.Module):
    """Likes a film better the higher its number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, 1:] * self.scale


def test_recommended_are_the_best_that_were_not_seen(tmp_path: Path) -> None:
    given = [(7, 30, 4.0, 1), (7, 10, 5.0, 2), (9, 20, 3.0, 3), (9, 40, 3.0, 3), (9, 50, 3.0, 3)]
    ratings = read_ratings(find(write(tmp_path, given)))
    text = recommendations(ByFilm(), ratings=ratings, titles=("ten", "twenty", "thirty", "forty", "fifty"))
    assert text.split() == [
        *("user", "7", "gave", "5.00", "ten", "4.00", "thirty"),
        *("and", "should", "see", "4.00", "fifty", "3.00", "forty", "1.00", "twenty"),
        *("user", "9", "gave", "3.00", "twenty", "3.00", "forty", "3.00", "fifty"),
        *("and", "should", "see", "2.00", "thirty", "0.00", "ten"),
    ]


# The real files.


@pytest.mark.data
def test_the_published_files(data_root: Path) -> None:
    path = find(data_root)
    ratings = read_ratings(path)
    assert len(ratings) > 100_000 and ratings.stars.unique().tolist() == [0.5 * step for step in range(1, 11)]
    titles = read_titles(path, ratings.film_ids)
    assert any(title.startswith("Toy Story") for title in titles) and len(titles) == len(ratings.film_ids)
    task = load(data_root, predict="ranking")
    assert len(task.data.test) == len(ratings.user_ids)  # type: ignore[arg-type]
