"""Sentences as rows of numbers, by hashing: no vocabulary has to be built, shared or kept beside a model."""

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
_CHARACTERS = (3, 4, 5)  # of a word and its two ends, as in fastText


def words(text: str) -> Iterator[str]:
    """Words and punctuation marks in their order, in lower case."""
    return (match.group() for match in _WORD.finditer(text.lower()))


def ngrams(text: str) -> Iterator[str]:
    """Words, pairs of neighbouring words, and pieces of 3 to 5 characters of each, without repetitions."""
    found = list(words(text))
    pairs = (f"{one} {other}" for one, other in itertools.pairwise(found))
    return iter(dict.fromkeys([*found, *pairs, *_pieces(found)]))


def _pieces(found: Iterable[str]) -> Iterator[str]:
    for word in found:
        ends = f"<{word}>"
        for length in _CHARACTERS:
            yield from (ends[i : i + length] for i in range(len(ends) - length + 1))


FEATURES: dict[Features, Callable[[str], Iterator[str]]] = {"words": words, "ngrams": ngrams}


def number(feature: str, buckets: int) -> int:
    """1 to `buckets` - 1, the same on every machine; different features may share one."""
    return 1 + zlib.crc32(feature.encode()) % (buckets - 1)


def encode(texts: Sequence[str], features: Features, buckets: int, length: int) -> Tensor:
    """int64 [texts, length]: the first `length` features of each text by number, then padding.

    Raises ValueError when that is more than memory can hold.
    """
    require(8 * len(texts) * length, f"{len(texts):,} texts of length {length:,}")
    rows = torch.full((len(texts), length), PADDING)
    for row, text in zip(rows, texts, strict=True):
        numbers = [number(feature, buckets) for feature in FEATURES[features](text)][:length]
        row[: len(numbers)] = torch.tensor(numbers)
    return rows
