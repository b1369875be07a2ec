"""Which classes a model takes for which."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

FEW = 20  # classes that can be told one by one
WORST, BEST = 10, 5  # of more, these are


@dataclass(frozen=True)
class Confusion:
    """`counts`: test samples by their class and by the model's guess, int64 [classes, classes].

    `given_names` may be empty: a class then goes by its number.
    """

    counts: Tensor
    given_names: Sequence[str]

    @property
    def names(self) -> list[str]:
        return list(self.given_names) or [str(label) for label in range(len(self.counts))]

    @property
    def accuracies(self) -> list[float | None]:
        """None for a class of which nothing is tested."""
        pairs = zip(self.counts.diagonal().tolist(), self.counts.sum(1).tolist(), strict=True)
        return [right / samples if samples else None for right, samples in pairs]

    def values(self) -> dict[str, float | None]:
        """Flat, for metrics and summary; nothing where it would be too much to read."""
        if len(self.counts) > FEW:
            return {}
        return {f"class_accuracy/{name}": value for name, value in zip(self.names, self.accuracies, strict=True)}

    def words(self) -> str:
        """A line a class, the worst first; of many, the worst and the best."""
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
    """Nothing for data without classes."""
    return {} if counts is None else Confusion(counts, names).values()
