"""The Free Spoken Digit Dataset (Jackson et al., doi:10.5281/zenodo.1342401)."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ddp_agent.config.fields import PositiveFloat, PositiveInt, check_fields
from ddp_agent.data.augment import shift_and_mask
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.multi_task_labels import Labels, check_tasks, multi_task
from ddp_agent.data.readers.download import Published, located
from ddp_agent.data.readers.log_mel import LogMel, Rate
from ddp_agent.data.readers.wav import read_wav
from ddp_agent.data.readers.waves import fitted
from ddp_agent.data.readers.zip_members import content_sha256, members
from ddp_agent.data.task import Data, DataRoot, Presentation, Task
from ddp_agent.errors import DataError

TaskName = Literal["digit", "speaker"]
CLASSES = 10

TESTED = 5  # of each speaker's recordings of a digit, the first ones: the official split
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
    """Recordings of digits: waves int16 [n, samples], and who says which digit, int64 [n]."""

    waves: Tensor
    digits: Tensor
    speakers: Tensor
    """Places in the names of all speakers."""


@dataclass(kw_only=True)
class SpokenDigits:
    """3,000 spoken digits of 6 speakers (FSDD) as mel spectrograms, from a zip file of wav files."""

    data_root: DataRoot
    download: bool
    rate: Rate
    """Samples a second; recordings of another rate are resampled."""
    seconds: PositiveFloat
    """Longer recordings are cut, shorter ones followed by silence."""
    mels: PositiveInt
    augment: bool
    """What is trained on is shifted in time, and parts of it are hidden."""
    loss: LossName
    tasks: tuple[TaskName, ...]
    """What is asked about a recording: several are a head each on one trunk."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_tasks(self.tasks, get_args(TaskName))

    def load(self) -> Task:
        """The groups are the speakers. Raises DataError for a file that is missing, damaged or of another kind."""
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
        """What is trained on, what is tested, and the names of the speakers."""
        path = located(self.data_root, "fsdd", [RECORDINGS], download=self.download) / RECORDINGS.name
        recordings = {name: data for name, data in members(path, FOLDER) if name.endswith(".wav")}
        named = [_named(path, name) for name in recordings]
        length = round(self.seconds * self.rate)
        waves = [fitted(read_wav(data, f"{path}: {name}"), self.rate, length) for name, data in recordings.items()]
        speakers = tuple(sorted({found["speaker"] for found in named}))
        digit = torch.tensor([int(found["digit"]) for found in named], dtype=torch.int64)
        tested = torch.tensor([int(found["index"]) < TESTED for found in named], dtype=torch.bool)
        _check(path, digit, tested)
        everything = _Spoken(
            torch.stack(waves), digit, torch.tensor([speakers.index(found["speaker"]) for found in named])
        )
        return _part(everything, ~tested), _part(everything, tested), speakers


def _named(path: Path, name: str) -> "re.Match[str]":
    found = _NAME.fullmatch(name)
    if found is None:
        raise DataError(f"{path}: found {FOLDER}/{name}, expected names like 7_jackson_32.wav: digit, speaker, number")
    return found


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
