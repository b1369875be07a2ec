"""Traffic by formula: the collectives of a run, stated without sending anything. Imports no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

Kind = Literal["all_reduce", "all_gather", "all_to_all", "broadcast", "exchange"]
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind and size, as one rank makes them.

    `count`: how many, in the whole run, or for one averaging where a reducer states them.
    `payload_bytes`: what one of them is given, per peer in an exchange. `at_most`: the data may need fewer bytes.
    `sharded`: the payload is this rank's share of a tensor, so among more ranks it is smaller.
    `ranks`: the size of the group; `group`: what becomes of it in a larger world.
    `peers`: neighbours of an exchange, in a world that is large enough.
    `cover`: what goes on meanwhile: nothing, backward, or `delay` optimizer steps.
    `period`: H, where a longer one makes it rarer; `varies`: a cadence changes H. `shortest`: the shortest possible H.
    `until_step`: the last step with such a collective, where the rest of the run has none.
    """

    kind: Kind
    payload_bytes: float
    count: float = 1
    at_most: bool = False
    sharded: bool = False
    ranks: int = 1
    group: Literal["world", "node", "owners"] = "world"
    peers: int = 1
    cover: Literal["nothing", "backward", "steps"] = "nothing"
    delay: int = 0
    period: int | None = None
    varies: bool = False
    shortest: int = 1
    until_step: int | None = None

    @property
    def calls(self) -> float:
        """The number of calls that are counted: an exchange is one per peer; a rank alone in its group makes none."""
        if self.ranks == 1:
            return 0
        return self.count * (min(self.peers, self.ranks - 1) if self.kind == "exchange" else 1)


def total_bytes(collectives: Iterable[Collective]) -> float:
    """Return the payload bytes of all collectives."""
    return sum(each.calls * each.payload_bytes for each in collectives)


def wire_bytes(kind: Kind, ranks: int, payload_bytes: float) -> float:
    """Return what one rank sends of a payload under a bandwidth-optimal algorithm. An exchange is with one peer."""
    if ranks == 1:
        return 0.0
    parts = {"all_reduce": 2 * (ranks - 1) / ranks, "all_to_all": (ranks - 1) / ranks, "all_gather": ranks - 1}
    return parts.get(kind, 1) * payload_bytes


@dataclass(frozen=True, kw_only=True)
class RunSizes:
    """The sizes on which the traffic of a run depends. A number is an element of a tensor.

    `shapes` are those of the parameters, `trained_shapes` of those with requires_grad, in registration order.
    `buffer_numbers` are buffers of the parameters' dtype; `in_one_piece`: they lie behind the parameters.
    `other_buffer_bytes` has one entry per other buffer, of which so many numbers are floating-point or integers.
    `moments`: numbers of the optimizer's state that are averaged where it is.
    """

    steps: int
    ranks: int
    ranks_per_node: int
    names: Sequence[str]
    shapes: Shapes
    trained_shapes: Shapes
    itemsize: int
    buffer_numbers: int = 0
    in_one_piece: bool = True
    other_buffer_bytes: Sequence[int] = ()
    floating_numbers: int = 0
    integer_numbers: int = 0
    moments: int = 0

    @property
    def numbers(self) -> int:
        """The number of parameters."""
        return numbers(self.shapes)


def numbers(shapes: Shapes) -> int:
    """Return how many numbers tensors of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes)


def times(collectives: Iterable[Collective], count: float, **changes: Any) -> list[Collective]:
    """Return the collectives, each `count` times as often, with other `changes`."""
    return [replace(each, count=each.count * count, **changes) for each in collectives] if count else []


def covered(collectives: Sequence[Collective], cover: Literal["backward", "steps"], delay: int = 0) -> list[Collective]:
    """Return a reducer's collectives when something goes on between its start and its finish.

    Only the first one runs meanwhile: the others begin when a reducer finishes.
    """
    return [replace(each, cover=cover, delay=delay) if index == 0 else each for index, each in enumerate(collectives)]


def to_plain(collectives: Iterable[Collective]) -> list[dict[str, Any]]:
    """Return what a summary holds of them: plain dicts without the defaults."""
    defaults = {field.name: field.default for field in fields(Collective)}
    return [{key: value for key, value in asdict(each).items() if value != defaults[key]} for each in collectives]


def from_plain(rows: Iterable[Mapping[str, Any]]) -> list[Collective]:
    """Return the collectives of a summary. Raises TypeError for rows of another form."""
    collectives = [Collective(**row) for row in rows]
    for each in collectives:
        figures = (each.payload_bytes, each.count, each.ranks, each.peers, each.delay, each.shortest, each.period or 1)
        if each.kind not in get_args(Kind) or not all(isinstance(figure, int | float) for figure in figures):
            raise TypeError(f"found {each}")
    return collectives
