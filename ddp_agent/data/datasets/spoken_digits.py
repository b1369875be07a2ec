"""The Free Spoken Digit Dataset (Jackson et al., doi:10.5281/zenodo.1342401)."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ddp_agent.config.fields import PositiveFloat, PositiveInt
from ddp_agent.data.augment import shift_and_mask
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.multi_task_labels import Labels, check_tasks, multi_task
from ddp_agent.data.readers.download import Published, located
from ddp_agent.data.readers.log_mel import LogMel, Rate
from ddp_agent.data.readers.wav import read_wav
from ddp_agent.data.readers.waves import fitted
from ddp_agent.data.readers.zip_members import content_sha256, members
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Task
from ddp_agent.errors import DataError

TaskName = Literal["digit", "speaker"]
CLASSES = 10

TESTED = 5  # the official split: the first recordings of each digit and speaker are the test part
FOLDER = "recordings"
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
RECORDINGS = Published(
    "fsdd_recordings.zip",
    f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/{COMMIT}",
    "8fed8b0b058a7efa7544bbb3e8e98607ecdcbd47a2f0ea31139cab18a6b679c9",
    functools.partial(content_sha256, folder=FOLDER),
)
_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[^_]+)_(?P<index>[0-9]+)\.wav")


@dataclass(frozen=True)
class _Spoken:
    """Recordings of digits: waves int16 [n, samples], digits and speakers int64 [n]."""

    waves: Tensor
    digits: Tensor
    speakers: Tensor
    """Indices into the names of all speakers."""


@dataclass(kw_only=True)
class SpokenDigits:
    """3,000 spoken digits of 6 speakers (FSDD) as mel spectrograms, from a zip file of wav files."""

    data_root: DataRoot
    download: bool
    rate: Rate
    """Samples per second. Recordings of another rate are resampled."""
    seconds: PositiveFloat
    """Duration of a sample. Longer recordings are cut, shorter ones are padded with silence."""
    mels: PositiveInt
    augment: bool
    """SpecAugment: in training, spectrograms are shifted in time, and parts of them are hidden."""
    loss: LossName
    tasks: tuple[TaskName, ...]
    """The labels to predict. With two, the model has one head for each on one trunk."""

    source: ClassVar = Source(
        content="3,000 spoken digits of 6 speakers (Free Spoken Digit Dataset)",
        size="16 MB",
        licence="CC BY-SA 4.0",
        url=RECORDINGS.url,
        layout=f"fsdd/{RECORDINGS.name} below data_root",
    )

    def __post_init__(self) -> None:
        check_dataset(self)
        check_tasks(self.tasks, get_args(TaskName))

    def load(self) -> Task:
        """Return the task, whose groups are the speakers.

        Raises DataError for a file that is missing, damaged or of another kind.
        """
        train, test, speakers = self.read()
        labels: dict[str, Labels] = {
            "digit": Labels(train=train.digits, test=test.digits, names=tuple("0123456789")),
            "speaker": Labels(train=train.speakers, test=test.speakers, names=speakers),
        }
        first = labels[self.tasks[0]]
        data = Data.resident(
            (train.waves, first.train),
            (test.waves, first.test),
            transform=LogMel(rate=self.rate, mels=self.mels),
            augment=shift_and_mask if self.augment else None,
            groups=train.speakers,
        )
        shown = Presentation(class_names=first.names, look="spectrogram")
        task = classification(data, outputs=len(first.names), loss=self.loss, presentation=shown)
        return multi_task(task, {name: labels[name] for name in self.tasks}, self.loss)

    def read(self) -> tuple[_Spoken, _Spoken, tuple[str, ...]]:
        """Return the training part, the test part, and the names of the speakers."""
        folder = located(self.data_root, "fsdd", [RECORDINGS], download=self.download, missing=self.source.missing)
        path = folder / RECORDINGS.name
        recordings = {name: data for name, data in members(path, FOLDER) if name.endswith(".wav")}
        named = [_named(path, name) for name in recordings]
        length = round(self.seconds * self.rate)
        waves = [fitted(read_wav(data, f"{path}: {name}"), self.rate, length) for name, data in recordings.items()]
        speakers = tuple(sorted({match["speaker"] for match in named}))
        digit = torch.tensor([int(match["digit"]) for match in named], dtype=torch.int64)
        tested = torch.tensor([int(match["index"]) < TESTED for match in named], dtype=torch.bool)
        _check(path, digit, tested)
        everything = _Spoken(
            torch.stack(waves), digit, torch.tensor([speakers.index(match["speaker"]) for match in named])
        )
        return _part(everything, ~tested), _part(everything, tested), speakers


def _named(path: Path, name: str) -> "re.Match[str]":
    match = _NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{path}: found {FOLDER}/{name}, expected names like 7_jackson_32.wav: digit, speaker, number")
    return match


def _check(path: Path, digit: Tensor, tested: Tensor) -> None:
    for part, chosen, which in (("train on", ~tested, f"{TESTED} or more"), ("test", tested, f"0 to {TESTED - 1}")):
        present = digit[chosen].bincount(minlength=CLASSES) > 0
        if not present.all():
            absent = ", ".join(map(str, (~present).nonzero().flatten().tolist()))
            raise DataError(
                f"{path}: found no {FOLDER}/*.wav of {absent} to {part}, expected recordings of 0 to {CLASSES - 1} "
                f"with numbers {which}"
            )


def _part(everything: _Spoken, chosen: Tensor) -> _Spoken:
    return _Spoken(everything.waves[chosen], everything.digits[chosen], everything.speakers[chosen])
