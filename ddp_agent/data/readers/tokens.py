"""Sentences as rows of token numbers, by hashing: no vocabulary has to be built, shared or exported with a model."""

import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ddp_agent.config.memory import require

Features = Literal["words", "ngrams"]
PADDING = 0

_WORD = re.compile(r"\w+|[^\w\s]")
_CHARACTERS = (3, 4, 5)  # in a piece of a word with its two end marks, as in fastText


def words(text: str) -> Iterator[str]:
    """Return words and punctuation marks in their order, in lower case."""
    return (match.group() for match in _WORD.finditer(text.lower()))


def ngrams(text: str) -> Iterator[str]:
    """Return words, pairs of neighbouring words, and pieces of 3 to 5 characters of each word, without repetitions."""
    single = list(words(text))
    pairs = (f"{one} {other}" for one, other in itertools.pairwise(single))
    return iter(dict.fromkeys([*single, *pairs, *_pieces(single)]))


def _pieces(single: Iterable[str]) -> Iterator[str]:
    for word in single:
        ends = f"<{word}>"
        for length in _CHARACTERS:
            yield from (ends[i : i + length] for i in range(len(ends) - length + 1))


FEATURES: dict[Features, Callable[[str], Iterator[str]]] = {"words": words, "ngrams": ngrams}


def number(feature: str, buckets: int) -> int:
    """Return a number from 1 to `buckets` - 1, the same on every machine. Different features may share a number."""
    return 1 + zlib.crc32(feature.encode()) % (buckets - 1)


def encode(texts: Sequence[str], features: Features, buckets: int, length: int) -> Tensor:
    """Return int64 [texts, length]: the numbers of the first `length` features of each text, then padding.

    Raises ValueError if that is more than memory can hold.
    """
    require(8 * len(texts) * length, f"{len(texts):,} texts of length {length:,}")
    rows = torch.full((len(texts), length), PADDING)
    for row, text in zip(rows, texts, strict=True):
        numbers = [number(feature, buckets) for feature in FEATURES[features](text)][:length]
        row[: len(numbers)] = torch.tensor(numbers)
    return rows
