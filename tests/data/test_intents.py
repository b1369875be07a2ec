"""Sentences by intent: tiny files in the formats of CLINC150 and BANKING77, and the errors for bad ones."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import node
from resident import tensors

from ddp_agent.config.registry import build
from ddp_agent.data.datasets import intents
from ddp_agent.data.datasets.intents import Intents
from ddp_agent.data.readers.clinc150 import DOMAIN_OF, DOMAINS
from ddp_agent.data.readers.download import Published
from ddp_agent.data.readers.tokens import encode, ngrams, number, words
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError, DataError

TRAIN = [["what time is it", "time"], ["book a flight", "book_flight"], ["tell me the time", "time"]]
TEST = [["the time please", "time"], ["a flight to rome", "book_flight"]]
CLINC = {"train": TRAIN, "test": TEST, "val": TEST, "oos_train": [["who won", "oos"]], "oos_test": [["why", "oos"]]}


def write_clinc150(folder: Path, **instead: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {part: rows for part, rows in {**CLINC, **instead}.items() if rows is not None}
    (folder / "data_full.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_banking77(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", TRAIN), ("test", TEST)):
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text", "category"], *rows])
    return folder


def dataset(data_root: Path, **values: Any) -> Intents:
    settings = {"features": "words", "length": 6, "download": False, **values}
    built: Intents = build("dataset", node("dataset", "intents", **settings), data_root=data_root)
    return built


def load(data_root: Path, **values: Any) -> Task:
    return dataset(data_root, **values).load()


# Tokens.


def test_words_are_in_lower_case_and_keep_their_order_and_punctuation() -> None:
    assert list(words("Isn't it  5 o'clock?")) == ["isn", "'", "t", "it", "5", "o", "'", "clock", "?"]
    assert list(words(" \n")) == []


def test_ngrams_are_words_pairs_and_pieces_once_each() -> None:
    found = list(ngrams("to be to be"))
    assert found == ["to", "be", "to be", "be to", "<to", "to>", "<to>", "<be", "be>", "<be>"]
    assert {"<fli", "ligh", "ight>", "fligh"} <= set(ngrams("flight"))


def test_numbers_are_crc32_and_leave_the_padding_free() -> None:
    assert number("123456789", 2**32 + 1) == 1 + 0xCBF43926  # the check value of that polynomial's definition
    found = {number(str(i), 5) for i in range(100)}
    assert found == {1, 2, 3, 4}


def test_sentences_are_cut_and_padded() -> None:
    rows = encode(["one two three", "two"], "words", 1000, 2)
    assert rows.tolist() == [[number("one", 1000), number("two", 1000)], [number("two", 1000), 0]]
    assert rows.dtype == torch.int64


# The two corpora.


@pytest.mark.parametrize("folder", ["", "clinc150"])
def test_clinc150_is_read_without_what_is_out_of_scope(tmp_path: Path, folder: str) -> None:
    write_clinc150(tmp_path / folder)
    task = load(tmp_path)
    tokens, labels, test_tokens, test_labels = tensors(task)
    assert task.presentation.class_names == ("book_flight", "time") and task.objective.outputs == 2
    assert (task.data.input_shape, task.model_arguments) == ((6,), {"vocabulary": 16384})
    assert labels.tolist() == [1, 0, 1] and test_labels.tolist() == [1, 0]
    assert torch.equal(tokens, encode([text for text, _ in TRAIN], "words", 16384, 6))
    assert torch.equal(test_tokens, encode([text for text, _ in TEST], "words", 16384, 6))
    assert task.data.labels is not None and torch.equal(task.data.labels, labels)


def test_banking77_is_read_with_quotes_and_lines(tmp_path: Path) -> None:
    write_banking77(tmp_path / "banking77")
    here = load(tmp_path, corpus="banking77")
    assert here.data.sha256 == load(write_clinc150(tmp_path)).data.sha256  # the same sentences
    (tmp_path / "banking77" / "train.csv").write_text(
        'text,category\r\n"a ""card"", lost\nor stolen",lost\r\nthe time,time\r\na flight,book_flight\r\n',
        encoding="utf-8",
    )
    task = load(tmp_path, corpus="banking77", length=20)
    assert task.presentation.class_names == ("book_flight", "lost", "time")
    expected = encode(['a "card", lost or stolen'], "words", 16384, 20)[0]
    assert torch.equal(tensors(task)[0][0], expected)


def test_the_fingerprint_sees_how_sentences_are_made_numbers(tmp_path: Path) -> None:
    write_clinc150(tmp_path)
    changes: tuple[dict[str, Any], ...] = ({}, {"features": "ngrams"}, {"buckets": 99}, {"length": 7})
    assert len({load(tmp_path, **change).data.sha256 for change in changes}) == 4


def test_every_intent_of_clinc150_is_in_one_of_ten_domains() -> None:
    assert len(DOMAINS) == 10 and all(len(intents) == 15 for intents in DOMAINS.values())
    assert len(DOMAIN_OF) == 150
    assert all(intent in DOMAINS[domain] for intent, domain in DOMAIN_OF.items())


# Errors for bad files.


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"train": None}, r"data_full.json: found no part 'train', expected JSON"),
        ({"test": []}, r"data_full.json: test: found no sentences"),
        ({"test": [["book it"]]}, r"data_full.json: found \"\['book it'\]\" among the sentences, expected JSON"),
        (
            {"train": [{"text": "what time", "label": 3}]},
            r"data_full.json: found .*'label'.* among the sentences, expected",
        ),
        ({"train": ["is", "it"]}, r"data_full.json: found 'is' among the sentences, expected JSON"),
        (
            {"train": TRAIN[:1], "test": TEST[:1]},
            r"data_full.json: train: found one intent, time, expected two or more",
        ),
        ({"train": 7}, r"data_full.json: found 'int' object .*expected JSON"),
        ({"train": [["what time", 3]]}, r"train: found 'what time', 3 at 1, expected a sentence and its intent"),
        ({"train": [["what time", ""]]}, r"train: found 'what time', '' at 1, expected a sentence and its intent"),
        ({"train": [*TRAIN, [" \n", "time"]]}, r"train: found no word in sentence 4, ' \\n'"),
        ({"test": [["fly", "flight"]]}, r"test: found flight, expected only intents that are trained on"),
    ],
)
def test_clinc150_names_what_is_wrong(tmp_path: Path, instead: dict[str, Any], message: str) -> None:
    write_clinc150(tmp_path, **instead)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "data_full.json"))


@pytest.mark.parametrize("content", [b"", b'{"train": [["what ti', b"\xff\xfe", b"[1, 2]", b"text,category\r\n"])
def test_clinc150_that_is_cut_off_or_foreign_is_refused(tmp_path: Path, content: bytes) -> None:
    write_clinc150(tmp_path)
    (tmp_path / "data_full.json").write_bytes(content)
    with pytest.raises(DataError, match=r"data_full\.json: found .*expected JSON like"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected lines of text,category"),
        (b"text,category\r\n", "found no sentences"),
        (b"id,text\r\n1,why\r\n", "found the first line id,text, expected"),
        (b'text,category\r\nwhat time,time\r\n"book a fl', "found unexpected end of data"),
        (b"text,category\r\nwhat time\r\n", "found not enough values"),
        (b"text,category\r\nwhat,time,is\r\n", "found too many values"),
        (b"text,category\r\n\xff,time\r\n", "found .*can't decode"),
        (b"text,category\r\n,time\r\n", "found no word in sentence 1, ''"),
    ],
)
def test_banking77_names_the_bad_file(tmp_path: Path, content: bytes, message: str) -> None:
    write_banking77(tmp_path)
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, corpus="banking77")
    assert str(caught.value).startswith(str(tmp_path / "train.csv"))


def test_missing_files_are_named_with_where_they_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no data_full.json, and no folder clinc150.*download=true.*https://"):
        load(tmp_path)
    (write_banking77(tmp_path / "banking77") / "test.csv").rename(tmp_path / "banking77" / "tests.csv")
    with pytest.raises(
        DataError, match=r"banking77: found no test.csv \(only tests.csv, train.csv\)\. .*https://.*/test.csv"
    ):
        load(tmp_path, corpus="banking77")


# Downloads, from files.


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = write_clinc150(tmp_path / "source") / "data_full.json"
    file = Published(source.name, source.as_uri(), hashlib.sha256(source.read_bytes()).hexdigest())
    corpus = replace(intents.CORPORA["clinc150"], files=(file,))
    monkeypatch.setitem(intents.CORPORA, "clinc150", corpus)
    return source


def test_a_download_is_kept_and_made_once(published: Path, tmp_path: Path) -> None:
    found = load(tmp_path / "new", download=True)
    published.unlink()
    assert load(tmp_path / "new", download=True).data.sha256 == load(tmp_path / "new").data.sha256 == found.data.sha256
    left = {path.name for path in (tmp_path / "new" / "clinc150").iterdir()}
    assert left == {"data_full.json", ".download.lock"}


def test_a_download_of_something_else_is_refused_and_not_kept(published: Path, tmp_path: Path) -> None:
    write_clinc150(published.parent, val=[])
    with pytest.raises(DataError, match=r"downloading clinc150 failed: .*found content with sha256 .*, expected"):
        load(tmp_path / "new", download=True)
    assert [path.name for path in (tmp_path / "new" / "clinc150").iterdir()] == [".download.lock"]
    published.unlink()
    with pytest.raises(DataError, match=r"downloading clinc150 failed: .*No such file"):
        load(tmp_path / "new", download=True)


# The real files.


@pytest.mark.data
@pytest.mark.parametrize(
    ("corpus", "classes", "train", "test"), [("clinc150", 150, 15_000, 4_500), ("banking77", 77, 10_003, 3_080)]
)
def test_the_published_files(data_root: Path, corpus: str, classes: int, train: int, test: int) -> None:
    task = load(data_root, corpus=corpus)
    assert (task.objective.outputs, len(task.data.train), len(task.data.test)) == (classes, train, test)  # type: ignore[arg-type]
    if corpus == "clinc150":
        assert set(task.presentation.class_names) == DOMAIN_OF.keys()


# Two tasks.


def test_a_sentence_has_a_domain_beside_its_intent(tmp_path: Path) -> None:
    task = load(write_clinc150(tmp_path), tasks=["domain", "intent"])
    _, labels, _, test_labels = tensors(task)
    names = [each.class_names for each in task.subtasks]
    assert [each.name for each in task.subtasks] == ["domain", "intent"]
    assert names == [tuple(DOMAINS), ("book_flight", "time")] and task.objective.outputs == 12
    found = [(names[0][domain], names[1][intent]) for domain, intent in [*labels.tolist(), *test_labels.tolist()]]
    assert found == [(DOMAIN_OF[intent], intent) for _, intent in [*TRAIN, *TEST]]
    alone = load(tmp_path, tasks=["domain"])
    assert alone.presentation.class_names == tuple(DOMAINS) and torch.equal(tensors(alone)[1], labels[:, 0])


def test_tasks_that_a_corpus_does_not_have(tmp_path: Path) -> None:
    odd = [*TRAIN, ["who won", "sports"]]
    with pytest.raises(DataError, match=r"data_full.json: train: found sports, which is in no domain of CLINC150"):
        load(write_clinc150(tmp_path, train=odd), tasks=["domain"])
    for tasks, message in (
        (["topic"], r"dataset.tasks: found \['topic'\], expected a list, each one of intent, domain"),
        ([], r"dataset: tasks: found \[\], expected one or more of intent, domain, each once"),
        (["intent", "intent"], r"found \[intent, intent\], expected one or more of intent, domain, each once"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataset(tmp_path, tasks=tasks)
    with pytest.raises(ConfigError, match=r"tasks: found domain, which banking77 does not have; expected \[intent\]"):
        dataset(tmp_path, corpus="banking77", tasks=["domain"])
