"""Intent classification of sentences: CLINC150 (Larson et al. 2019) and BANKING77 (Casanueva et al. 2020)."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch

from ddp_agent.config.fields import PositiveInt, Range
from ddp_agent.config.untrusted import json_value
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.multi_task_labels import Labels, check_tasks, multi_task
from ddp_agent.data.readers.clinc150 import DOMAIN_OF, DOMAINS
from ddp_agent.data.readers.download import Published, located
from ddp_agent.data.readers.files import lines, opened_text, read_text
from ddp_agent.data.readers.tokens import Features, encode, words
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Task
from ddp_agent.errors import ConfigError, DataError

MOST_BYTES = 1 << 30
CorpusName = Literal["clinc150", "banking77"]
TaskName = Literal["intent", "domain"]
Sentence = tuple[str, str]
"""A text and the name of its intent."""
Parts = dict[str, list[Sentence]]
"""The training and the test part, by the names that error messages give them."""


@dataclass(kw_only=True)
class Intents:
    """Intents of sentences: CLINC150 (150 intents, in scope) or BANKING77, as padded token numbers."""

    data_root: DataRoot
    download: bool
    corpus: CorpusName
    features: Features
    """words: in their order. ngrams: also pairs and pieces of words, for a model that ignores order."""
    buckets: Annotated[int, Range(2)]
    """Tokens are hashed to 1 … buckets - 1. 0 is padding."""
    length: PositiveInt
    """Tokens per sentence. Longer sentences are cut off."""
    loss: LossName
    tasks: tuple[TaskName, ...]
    """The labels to predict: the intent, its domain (one of CLINC150's ten), or both."""

    @property
    def source(self) -> Source:
        """The origin of the corpus."""
        return CORPORA[self.corpus if self.corpus in CORPORA else "clinc150"].source

    def __post_init__(self) -> None:
        check_dataset(self)
        check_tasks(self.tasks, get_args(TaskName))
        if "domain" in self.tasks and self.corpus != "clinc150":
            raise ValueError(f"tasks: found domain, which {self.corpus} does not have; expected [intent]")

    def load(self) -> Task:
        """Return the task. Raises DataError for files that are missing, damaged or of another kind."""
        corpus = CORPORA[self.corpus]
        parts = corpus.read(
            located(self.data_root, self.corpus, corpus.files, download=self.download, missing=self.source.missing)
        )
        intents = _check(parts)
        labels: dict[str, Labels] = {task: _labels(task, parts, intents) for task in self.tasks}
        train, test = (self._tokens(sentences) for sentences in parts.values())
        *_, tested = parts.values()
        first = labels[self.tasks[0]]
        task = classification(
            Data.resident((train, first.train), (test, first.test)),
            outputs=len(first.names),
            loss=self.loss,
            presentation=Presentation(class_names=first.names, test_texts=[text for text, _ in tested]),
            model_arguments={"vocabulary": self.buckets},
        )
        return multi_task(task, labels, self.loss)

    def _tokens(self, sentences: list[Sentence]) -> torch.Tensor:
        try:
            return encode([text for text, _ in sentences], self.features, self.buckets, self.length)
        except ValueError as error:
            raise ConfigError(f"dataset.length: {error}") from error


def _labels(task: TaskName, parts: Parts, intents: tuple[str, ...]) -> Labels:
    if task == "domain" and (unknown := [intent for intent in intents if intent not in DOMAIN_OF]):
        raise DataError(f"{next(iter(parts))}: found {', '.join(unknown[:3])}, which is in no domain of CLINC150")
    class_of = {intent: intent if task == "intent" else DOMAIN_OF[intent] for intent in intents}
    names = intents if task == "intent" else tuple(DOMAINS)
    train, test = (
        torch.tensor([names.index(class_of[intent]) for _, intent in sentences]) for sentences in parts.values()
    )
    return Labels(train=train, test=test, names=names)


@dataclass(frozen=True)
class _Corpus:
    source: Source
    files: tuple[Published, ...]
    read: Callable[[Path], Parts]


def _read_clinc150(folder: Path) -> Parts:
    """Return the sentences in scope. Those out of scope are in other parts of the file."""
    path = folder / "data_full.json"
    expected = 'JSON like {"train": [["what time is it", "time"], …], "test": […]}'
    try:
        content = json_value(read_text(path, expected, MOST_BYTES))
        return {f"{path}: {part}": [_pair(entry) for entry in content[part]] for part in ("train", "test")}
    except (ValueError, TypeError, KeyError) as error:
        problem = f"no part {error}" if isinstance(error, KeyError) else str(error).removeprefix("found ")
        raise DataError(f"{path}: found {problem}, expected {expected}") from error


def _pair(entry: object) -> Sentence:
    """Return an entry as a pair. A check of the type is needed: a string of two letters could be unpacked, too."""
    if not isinstance(entry, list) or len(entry) != 2:
        raise ValueError(f"{str(entry)[:80]!r} among the sentences")
    text, intent = entry
    return text, intent


def _read_banking77(folder: Path) -> Parts:
    return {str(path): _read_csv(path) for path in (folder / "train.csv", folder / "test.csv")}


def _read_csv(path: Path) -> list[Sentence]:
    expected = "lines of text,category under those two words"
    with opened_text(path, expected, MOST_BYTES) as file:
        try:
            header, *rows = csv.reader(lines(file), strict=True)
            if header != ["text", "category"]:
                raise ValueError(f"the first line {','.join(header)[:80]}")
            return [(text, category) for text, category in filter(None, rows)]
        except ValueError as error:
            raise DataError(f"{path}: found {error}, expected {expected}") from error


def _check(parts: Parts) -> tuple[str, ...]:
    """Return the names of the intents, sorted. Raise DataError for sentences that cannot be trained on or tested."""
    for part, sentences in parts.items():
        if not sentences:
            raise DataError(f"{part}: found no sentences")
        for number, (text, intent) in enumerate(sentences, start=1):
            if not isinstance(text, str) or not isinstance(intent, str) or not intent:
                raise DataError(f"{part}: found {text!r}, {intent!r} at {number}, expected a sentence and its intent")
            if next(words(text), None) is None:
                raise DataError(f"{part}: found no word in sentence {number}, {text!r}; take it out, with its intent")
    known, tested = ({intent for _, intent in sentences} for sentences in parts.values())
    if len(known) < 2:
        raise DataError(f"{next(iter(parts))}: found one intent, {', '.join(known)}, expected two or more")
    if unknown := sorted(tested - known):
        raise DataError(f"{part}: found {', '.join(unknown[:3])}, expected only intents that are trained on")
    return tuple(sorted(known))


_CLINC = "https://raw.githubusercontent.com/clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de/data"
_BANKING = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b"
    "/banking_data"
)
CORPORA: dict[CorpusName, _Corpus] = {
    "clinc150": _Corpus(
        source=Source(
            content="CLINC150, 23,700 questions of 150 intents",
            size="2.5 MB",
            licence="CC BY 3.0",
            url=f"{_CLINC}/data_full.json",
            layout="clinc150/data_full.json below data_root",
        ),
        files=(
            Published(
                "data_full.json",
                f"{_CLINC}/data_full.json",
                "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
            ),
        ),
        read=_read_clinc150,
    ),
    "banking77": _Corpus(
        source=Source(
            content="BANKING77, 13,083 questions of bank customers with 77 intents",
            size="1.1 MB",
            licence="CC BY 4.0",
            url=f"{_BANKING}/train.csv and {_BANKING}/test.csv",
            layout="banking77/ below data_root",
        ),
        files=(
            Published(
                "train.csv",
                f"{_BANKING}/train.csv",
                "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
            ),
            Published(
                "test.csv",
                f"{_BANKING}/test.csv",
                "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
            ),
        ),
        read=_read_banking77,
    ),
}
