"""MovieLens: the ranking of films, and whole runs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from ratings_files import Row, found_in, load, pairs_of, rows, write
from resident import tensors
from run_states import same, states, training_state
from runs import mode, run
from torch import Tensor, nn

from ddp_agent.data.datasets.movielens import bpr, hit, last_of_each, ndcg
from ddp_agent.data.negative_sampling import NegativeSampler
from ddp_agent.data.readers.ratings import read_ratings
from ddp_agent.data.recommendations import recommendations
from ddp_agent.errors import DataError

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
    ratings = read_ratings(found_in(write(tmp_path, given)))
    text = recommendations(ByFilm(), ratings=ratings, titles=("ten", "twenty", "thirty", "forty", "fifty"))
    assert text.split() == [
        *("user", "7", "gave", "5.00", "ten", "4.00", "thirty"),
        *("and", "should", "see", "4.00", "fifty", "3.00", "forty", "1.00", "twenty"),
        *("user", "9", "gave", "3.00", "twenty", "3.00", "forty", "3.00", "fifty"),
        *("and", "should", "see", "2.00", "thirty", "0.00", "ten"),
    ]
