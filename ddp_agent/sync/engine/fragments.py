"""Fragments: parts of a model's parameters that are synchronised at different times."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.reducers.base import Finish, Reducer


@dataclass(frozen=True)
class Fragment:
    """Spans [start, stop) of a flat tensor of parameters. `shapes`: the parameters, or blocks of their rows, inside."""

    spans: tuple[tuple[int, int], ...]
    shapes: tuple[torch.Size, ...]

    def of(self, flat: Tensor) -> list[Tensor]:
        """Return the spans of `flat`, as views."""
        return [flat[start:stop] for start, stop in self.spans]


class Stream:
    """Averaging of one fragment's changes over ranks, at most one at a time, and the fragment's outer state."""

    def __init__(self, fragment: Fragment, reducer: Reducer, anchor: Tensor, momentum: Tensor) -> None:
        """Take the spans of `anchor` and `momentum`, which are those of all parameters. They are changed in place."""
        self.fragment = fragment
        self.anchors, self.momenta = fragment.of(anchor), fragment.of(momentum)
        self.applied_step = 0
        self._reducer = reducer.for_tensor(fragment.shapes)
        lengths = [stop - start for start, stop in fragment.spans]
        self._packed = anchor.new_empty(sum(lengths))
        self.pseudo_gradients: Sequence[Tensor] = self._packed.split(lengths)  # of each span
        self._finish: Finish | None = None

    @property
    def under_way(self) -> bool:
        """True between `start` and `finish`."""
        return self._finish is not None

    def start(self, parameters: Tensor, comm: Comm) -> None:
        """Start to average the changes since the anchor."""
        for change, anchor, now in zip(self.pseudo_gradients, self.anchors, self.fragment.of(parameters), strict=True):
            torch.sub(anchor, now, out=change)
        self._finish = self._reducer.start(self._packed, comm)

    def finish(self, step: int) -> None:
        """Wait until `pseudo_gradients` hold the mean, which is applied after `step`."""
        assert self._finish is not None
        self._finish()
        self._finish, self.applied_step = None, step

    def arrived(self) -> Tensor | None:
        """Wait for the averaging that is under way. Return a copy of its mean; None when none is under way."""
        if self._finish is None:
            return None
        self._finish()
        self._finish = _nothing
        return self._packed.clone()

    def restore(self, applied_step: int, arrived: Tensor | None) -> None:
        """Return to a saved state; `arrived` is the mean that was under way in it."""
        self.applied_step, self._finish = applied_step, None
        if arrived is not None:
            self._packed.copy_(arrived)
            self._finish = _nothing


def _nothing() -> None:
    """Do nothing: the all-reduce is finished."""


def equal_cuts(shapes: Sequence[torch.Size], count: int) -> list[Fragment]:
    """Return `count` consecutive fragments of almost equal size, in parameter order.

    A parameter is cut only between its rows, so that a reducer still sees matrices. Raises ValueError when a fragment
    would be empty.
    """
    ends = [0, *accumulate(shape.numel() for shape in shapes)]
    wanted = [round(ends[-1] * part / count) for part in range(count + 1)]
    cuts = [_to_row(position, shapes, ends) for position in wanted]
    if any(start >= stop for start, stop in pairwise(cuts)):
        raise ValueError(f"fragments: found {count}, expected fewer for {len(shapes)} parameters of {ends[-1]} numbers")
    return [Fragment(((start, stop),), _within(start, stop, shapes, ends)) for start, stop in pairwise(cuts)]


def by_modules(names: Sequence[str], shapes: Sequence[torch.Size], groups: Sequence[Sequence[str]]) -> list[Fragment]:
    """Return one fragment per list of module names. `names` are those of the parameters.

    Raises ValueError when a module has no parameter, or a parameter is in no fragment or in two.
    """
    ends = [0, *accumulate(shape.numel() for shape in shapes)]
    owners = [
        [number for number, group in enumerate(groups) if any(_belongs(name, module) for module in group)]
        for name in names
    ]
    problems = [
        f"{module!r} is no module with parameters"
        for group in groups
        for module in group
        if not any(_belongs(name, module) for name in names)
    ]
    problems += [
        f"parameter {name!r} is in {'no fragment' if not owner else f'fragments {owner}'}"
        for name, owner in zip(names, owners, strict=True)
        if len(owner) != 1
    ]
    if problems:
        raise ValueError(f"fragments: expected each parameter in exactly one, but {'; '.join(problems)}")
    fragments = []
    for number in range(len(groups)):
        mine = [index for index, owner in enumerate(owners) if owner == [number]]
        spans: list[tuple[int, int]] = []
        for index in mine:
            adjacent = bool(spans) and spans[-1][1] == ends[index]
            spans.append((spans.pop()[0] if adjacent else ends[index], ends[index + 1]))
        fragments.append(Fragment(tuple(spans), tuple(shapes[index] for index in mine)))
    return fragments


def _belongs(parameter: str, module: str) -> bool:
    return parameter == module or parameter.startswith(f"{module}.")


def _to_row(position: int, shapes: Sequence[torch.Size], ends: Sequence[int]) -> int:
    """Return the end of a row that is nearest to `position`."""
    for shape, start, stop in zip(shapes, ends, ends[1:], strict=False):
        if start < position < stop:
            row = shape[1:].numel()
            return start + round((position - start) / row) * row
    return position


def _within(start: int, stop: int, shapes: Sequence[torch.Size], ends: Sequence[int]) -> tuple[torch.Size, ...]:
    """Return the shapes of the blocks of rows between `start` and `stop`."""
    lengths = [min(stop, last) - max(start, first) for first, last in pairwise(ends)]
    blocks = [(length, shape[1:]) for length, shape in zip(lengths, shapes, strict=True) if length > 0]
    return tuple(torch.Size([length // row.numel(), *row]) for length, row in blocks)
