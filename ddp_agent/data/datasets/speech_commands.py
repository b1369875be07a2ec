"""Recognition of single spoken words. The speakers of the test part are not in the training part."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddp_agent.config.fields import NonNegativeInt, PositiveFloat, PositiveInt
from ddp_agent.data.augment import shift_and_mask
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.readers import packed, word_folders
from ddp_agent.data.readers.download import Published, unpacked
from ddp_agent.data.readers.log_mel import LogMel, Rate
from ddp_agent.data.readers.waves import fitted
from ddp_agent.data.readers.word_folders import PartName, WavClip
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Samples, Task
from ddp_agent.errors import DataError

GOOGLE_FOLDER = "speech_commands_v0.02"
TORCHAUDIO_FOLDER = f"SpeechCommands/{GOOGLE_FOLDER}"
# 2.4 GB. torchaudio and TensorFlow Datasets compare with the same checksum.
GOOGLE = Published(
    f"{GOOGLE_FOLDER}.tar.gz",
    f"https://storage.googleapis.com/download.tensorflow.org/data/{GOOGLE_FOLDER}.tar.gz",
    "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
)
UNPACKED_BYTES = 6_000_000_000  # 3.4 GB
GOOGLE_SOURCE = Source(
    content="Google's 105,829 recordings of 35 words, or recordings of yours in the same layout",
    size="2.4 GB",
    licence="CC BY 4.0",
    url=GOOGLE.url,
    layout=f"<word>/<speaker>_*.wav with validation_list.txt and testing_list.txt, in data_root or {GOOGLE_FOLDER}/ "
    f"(or dataset.corpus=arabic16 for {packed.WORDS_NAME})",
)
ARABIC = Source(
    content=f"sixteen words of the Arabic Speech Commands, which somebody packed into {packed.WORDS_NAME}; nobody "
    "publishes that file",
    size="30 MB",
    licence="CC BY 4.0",
    url="the same words (git clone https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset)",
    layout=f"data_root=<the clone> dataset.corpus=folders dataset.words=[{packed.WORDS}]",
    downloads=False,
)

Clip = WavClip | packed.PackedClip


@dataclass(kw_only=True)
class SpeechCommands:
    """Spoken words as mel spectrograms: Google's Speech Commands, your wav files in its layout, or 16 Arabic words."""

    data_root: DataRoot
    corpus: Literal["folders", "arabic16"]
    """folders: one folder of wav files per word. arabic16: 16 Arabic words, packed into one file."""
    download: bool
    """Download Google's 105,829 recordings of 35 words, unless they are there. Without effect for arabic16."""
    words: tuple[str, ...]
    """The words to tell apart; empty: all."""
    tested: Literal["test", "validation"]
    rate: Rate
    """Samples per second. Recordings of another rate are resampled."""
    seconds: PositiveFloat
    """Duration of a sample. Longer recordings are cut, shorter ones are padded with silence."""
    mels: PositiveInt
    augment: bool
    """SpecAugment: in training, spectrograms are shifted in time, and parts of them are hidden."""
    workers: NonNegativeInt
    """0: recordings are read once and stay on the device. Otherwise: processes per rank that read files when needed."""
    loss: LossName

    @property
    def source(self) -> Source:
        """The origin of the recordings."""
        return ARABIC if self.corpus == "arabic16" else GOOGLE_SOURCE

    def __post_init__(self) -> None:
        check_dataset(self)
        if self.workers and self.corpus != "folders":
            raise ValueError(f"workers: found {self.workers}, expected 0: {self.corpus} is one file")

    def load(self) -> Task:
        """Return the task, whose groups are the speakers.

        Raises DataError for files that are missing, damaged or of another kind.
        """
        source, parts = self._parts()
        train, test = (self._chosen(f"{source}: {part}", parts[part]) for part in ("train", self.tested))
        names = tuple(sorted({clip.word for clip in train}))
        if unknown := sorted({clip.word for clip in test} - set(names)):
            raise DataError(f"{source}: {self.tested}: found {unknown[0]!r}, expected only words that are trained on")
        length = round(self.seconds * self.rate)
        transform = LogMel(rate=self.rate, mels=self.mels)
        sets = [_Waves(clips, names, self.rate, length) for clips in (train, test)]
        common: dict[str, Any] = {
            "transform": transform,
            "augment": shift_and_mask if self.augment else None,
            "groups": _numbers([clip.speaker for clip in train]),
        }
        if self.workers:
            data = Data(
                train=sets[0],
                test=sets[1],
                input_shape=tuple(transform(sets[0][0][0].unsqueeze(0)).shape[1:]),
                labels=sets[0].labels,
                workers=self.workers,
                sha256=_fingerprint(source, [*train, *test], f"{transform} {length}"),
                **common,
            )
        else:
            data = Data.resident(sets[0].all(), sets[1].all(), **common)
        shown = Presentation(class_names=names, look="spectrogram")
        return classification(data, outputs=len(names), loss=self.loss, presentation=shown)

    def _parts(self) -> tuple[Path, Mapping[PartName, Sequence[Clip]]]:
        """Return the folder or file of the recordings, and the recordings of each part."""
        if self.corpus == "arabic16":
            path = packed.find(self.data_root, packed.WORDS_FOLDER, packed.WORDS_NAME)
            if path is None:
                raise self.source.missing(self.data_root, f"{packed.WORDS_NAME}, also not in {packed.WORDS_FOLDER}")
            return path, packed.read_words(path)
        if self.download and self._folder() is None:
            unpacked(GOOGLE, self.data_root / GOOGLE_FOLDER, most_bytes=UNPACKED_BYTES)
        folder = self._folder()
        if folder is None:
            lists = "testing_list.txt or test.csv beside folders of words"
            raise self.source.missing(self.data_root, f"{lists}, also not in {GOOGLE_FOLDER} or {TORCHAUDIO_FOLDER}")
        return folder, word_folders.read(folder)

    def _folder(self) -> Path | None:
        folders = [self.data_root / name for name in ("", GOOGLE_FOLDER, TORCHAUDIO_FOLDER)]
        return next((folder for folder in folders if word_folders.are_in(folder)), None)

    def _chosen(self, part: str, clips: Sequence[Clip]) -> list[Clip]:
        if absent := sorted(set(self.words) - {clip.word for clip in clips}):
            known = ", ".join(sorted({clip.word for clip in clips}))
            raise DataError(f"{part}: found no {absent[0]!r} of dataset.words, expected some of {known}")
        chosen = [clip for clip in clips if not self.words or clip.word in self.words]
        if not chosen:
            raise DataError(f"{part}: found no recordings, expected <word>/*.wav")
        return chosen


class _Waves(Dataset[tuple[Tensor, int]]):
    """Waves int16 [length], and the indices of their words in `names`."""

    def __init__(self, clips: Sequence[Clip], names: Sequence[str], rate: int, length: int) -> None:
        number = {name: index for index, name in enumerate(names)}
        self.clips, self.rate, self.length = clips, rate, length
        self.labels = torch.tensor([number[clip.word] for clip in clips])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return fitted(self.clips[index].recording(), self.rate, self.length), int(self.labels[index])

    def all(self) -> Samples:
        """Return all waves and labels: 3.2 GB on every rank's device for 100,000 recordings of 1 s at 16 kHz."""
        waves = torch.empty(len(self), self.length, dtype=torch.int16)
        for index, clip in enumerate(self.clips):
            waves[index] = fitted(clip.recording(), self.rate, self.length)
        return waves, self.labels


def _numbers(names: Sequence[str]) -> Tensor:
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([number[name] for name in names])


def _fingerprint(root: Path, clips: Sequence[Any], also: str) -> str:
    """Return the hash of names and sizes: streaming must not read every file at start."""
    digest = hashlib.sha256(also.encode())
    for clip in clips:
        digest.update(os.fsencode(clip.path.relative_to(root)) + f" {clip.path.stat().st_size}\n".encode())
    return digest.hexdigest()
