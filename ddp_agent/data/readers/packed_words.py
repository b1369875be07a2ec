"""Sixteen words of the Arabic Speech Commands (Ghandoura et al. 2021) in one file, as 8-bit mu-law at 8 kHz."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ddp_agent.data.readers.npz import read_npz, require_labels, require_rows
from ddp_agent.data.readers.wav import Recording
from ddp_agent.data.readers.word_folders import PartName
from ddp_agent.errors import DataError

FOLDER, NAME = "arabic_speech_commands_16x8k", "asc16_mulaw8k.npz"
RATE = 8000
WORDS = "zero,one,two,three,four,five,six,seven,eight,nine,yes,no,up,down,left,right"
PARTS: tuple[PartName, ...] = ("train", "validation", "test")  # as `split` numbers them
MU = 255


@dataclass(frozen=True)
class PackedClip:
    """A word out of a file of many."""

    samples: Tensor
    word: str
    speaker: str

    def recording(self) -> Recording:
        return Recording(self.samples, RATE)


def find(data_root: Path) -> Path:
    """Raises DataError with how the same words can be had."""
    for folder in (data_root / FOLDER, data_root):
        if (folder / NAME).is_file():
            return folder / NAME
    raise DataError(
        f"{data_root}: found no {NAME}, also not in {FOLDER}; somebody has packed that file, and nobody publishes it. "
        "For the same words: git clone https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset, then "
        f"data_root=<the clone> dataset.corpus=folders dataset.words=[{WORDS}]"
    )


def read(path: Path) -> dict[PartName, list[PackedClip]]:
    """Raises DataError for a file that is damaged or of another kind."""
    integers = (numpy.integer, 1)
    found = read_npz(
        path,
        {
            "audio": (numpy.uint8, 2),
            "label": integers,
            "split": integers,
            "speaker": integers,
            "classes": (numpy.str_, 1),
        },
    )
    require_rows(path, found, "audio", "label", "split", "speaker")
    require_labels(path, "label", found["label"], len(found["classes"]))
    require_labels(path, "split", found["split"], len(PARTS))
    waves = expanded(found["audio"])
    words, speakers = found["classes"][found["label"]].tolist(), found["speaker"].tolist()
    parts: dict[PartName, list[PackedClip]] = {part: [] for part in PARTS}
    for row, part in enumerate(found["split"].tolist()):
        parts[PARTS[part]].append(PackedClip(waves[row], words[row], str(speakers[row])))
    return parts


def expanded(codes: "numpy.ndarray[Any, Any]") -> Tensor:
    """Continuous mu-law: sign(v) ((1 + 255)^|v| - 1) / 255, 0 … 255 being v = -1 … 1; as int16 of the same shape."""
    v = numpy.arange(256) / 255 * 2 - 1
    table = numpy.sign(v) * numpy.expm1(numpy.abs(v) * numpy.log1p(MU)) / MU
    return torch.from_numpy(numpy.round(table * 32767).astype("i2")[codes])
