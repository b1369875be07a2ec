"""The classes that a model confuses."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

FEW = 20  # classes that are all listed
WORST, BEST = 10, 5  # classes that are listed if there are more


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: `counts` are test samples by class and by the model's guess, int64 [classes, classes].

    Where `given_names` is empty, a class goes by its number.
    """

    counts: Tensor
    given_names: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The name of each class."""
        return list(self.given_names) or [str(label) for label in range(len(self.counts))]

    @property
    def accuracies(self) -> list[float | None]:
        """The share of each class that is guessed right. None for a class without test samples."""
        pairs = zip(self.counts.diagonal().tolist(), self.counts.sum(1).tolist(), strict=True)
        return [right / samples if samples else None for right, samples in pairs]

    def text(self) -> str:
        """Return one line per class, the worst first. Of many classes, only the worst and the best are listed."""
        accuracies = self.accuracies
        tested = [(value, label) for label, value in enumerate(accuracies) if value is not None]
        lines = [self._line(label, value) for value, label in sorted(tested)]
        if len(lines) > FEW:
            lines = [*lines[:WORST], f"… {len(lines) - WORST - BEST} more …", *lines[-BEST:]]
        return "\n".join(["accuracy  samples  class", *lines])

    def _line(self, label: int, accuracy: float) -> str:
        row = self.counts[label].clone()
        samples, row[label] = int(row.sum()), 0
        other = int(row.argmax())
        mistaken = f", most often taken for {self.names[other]} ({int(row[other])})" if row[other] else ""
        return f"{accuracy:8.3f}  {samples:7,}  {self.names[label]}{mistaken}"


def values(counts: Tensor | None, names: Sequence[str]) -> dict[str, float | None]:
    """Return the accuracy per class under flat keys, for metrics and summary. Empty without classes or above 20."""
    if counts is None or len(counts) > FEW:
        return {}
    confusion = Confusion(counts, names)
    return {f"class_accuracy/{name}": share for name, share in zip(confusion.names, confusion.accuracies, strict=True)}
