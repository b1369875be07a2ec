"""The failure that ends a run, and the decision which error a rank raises for it."""

import json
from dataclasses import asdict, dataclass, fields
from enum import Enum, auto
from typing import NamedTuple

import torch.distributed as dist

from ddp_agent.distributed.ledger import CommError
from ddp_agent.errors import NonFiniteError, PeerFailedError, RefusedError

STEPS = range(2**53)
MOST_LETTERS = 5000  # of a report's text
CODES = range(1, 256)  # of a failure. 0 would end a run as if it had finished


@dataclass(frozen=True)
class Failure:
    """A rank's failure. Its peers exit with `code`."""

    rank: int
    step: int
    code: int
    text: str
    unreported: bool = False  # that rank cannot report to the user itself: it is dead, hangs or is cut off
    noticed_by: int = -1  # the rank that reports it to the user then

    @classmethod
    def lost(cls, rank: int, step: int, text: str, *, noticed_by: int) -> "Failure":
        """Return the failure of a rank that cannot report it itself."""
        return cls(rank, step, PeerFailedError.exit_code, text, unreported=True, noticed_by=noticed_by)

    def to_json(self) -> str:
        """Return the failure as a JSON object. A text that is too long loses its middle."""
        text = self.text
        if len(text) > MOST_LETTERS:
            text = f"{text[: MOST_LETTERS // 2]} … {text[3 - MOST_LETTERS // 2 :]}"
        return json.dumps(asdict(self) | {"text": text})

    @classmethod
    def from_json(cls, text: str, world_size: int) -> "Failure":
        """Return the failure whose `to_json` is `text`. Raise ValueError for what no rank would have reported."""
        found = json.loads(text)
        if not isinstance(found, dict) or found.keys() != {it.name for it in fields(cls)}:
            raise ValueError("found no failure report")
        failure = cls(**found)
        in_range(failure.rank, range(world_size), "rank")
        in_range(failure.step, STEPS, "step")
        in_range(failure.code, CODES, "exit code of a failure")
        if not isinstance(failure.text, str) or len(failure.text) > MOST_LETTERS:
            raise ValueError("text: expected a string")
        in_range(failure.noticed_by, range(-1, world_size), "noticed_by")
        if not isinstance(failure.unreported, bool):
            raise ValueError("unreported: expected true or false")
        return failure

    def as_error(self) -> PeerFailedError:
        """Return the error that another rank raises for this failure."""
        return PeerFailedError(self.rank, self.text, self.code, self.step)


def in_range(value: object, allowed: range, name: str) -> int:
    """Return an integer of the range. Raise ValueError for anything else, True and 1.0 included."""
    if type(value) is not int or value not in allowed:
        raise ValueError(f"{name}: found {str(value)[:50]!r}, expected an integer from {allowed[0]} to {allowed[-1]}")
    return value


def parse_step(text: str) -> int:
    """Return the number of a step. Raise ValueError for anything else."""
    return in_range(int(text), STEPS, "step")


class ErrorKind(Enum):
    """A kind of exception that ends a rank."""

    BUG = auto()  # an exception of the model or of this package
    COLLECTIVE = auto()  # a collective or the store failed: most likely another rank ended
    REFUSED = auto()  # a refusal of this rank's own
    NAN_OF_PEER = auto()  # a NaN that came from another rank, which names it itself
    PEER_FAILED = auto()  # the failure of another rank was known before


class Origin(Enum):
    """The rank at which the failure started that the ranks heard of first."""

    OWN = auto()
    CUT_OFF = auto()  # this rank, which could not reach the store any more
    PEER = auto()


class Verdict(NamedTuple):
    """A rank's ending: raise its own error or the first failure, and linger so that torchrun sees the cause first."""

    raise_first: bool
    linger: bool


OWN_ERROR = Verdict(raise_first=False, linger=False)
OWN_ERROR_LATER = Verdict(raise_first=False, linger=True)
FIRST_FAILURE = Verdict(raise_first=True, linger=False)
FIRST_FAILURE_LATER = Verdict(raise_first=True, linger=True)

VERDICTS: dict[tuple[ErrorKind, Origin], Verdict] = {
    (ErrorKind.BUG, Origin.OWN): OWN_ERROR,
    (ErrorKind.BUG, Origin.CUT_OFF): OWN_ERROR,
    (ErrorKind.BUG, Origin.PEER): FIRST_FAILURE_LATER,
    (ErrorKind.COLLECTIVE, Origin.OWN): OWN_ERROR,  # nobody reported a cause
    (ErrorKind.COLLECTIVE, Origin.CUT_OFF): FIRST_FAILURE,
    (ErrorKind.COLLECTIVE, Origin.PEER): FIRST_FAILURE_LATER,
    (ErrorKind.REFUSED, Origin.OWN): OWN_ERROR,
    (ErrorKind.REFUSED, Origin.CUT_OFF): OWN_ERROR,
    (ErrorKind.REFUSED, Origin.PEER): OWN_ERROR,  # its text is a whole message, which no other rank has
    (ErrorKind.NAN_OF_PEER, Origin.OWN): OWN_ERROR,
    (ErrorKind.NAN_OF_PEER, Origin.CUT_OFF): FIRST_FAILURE,
    (ErrorKind.NAN_OF_PEER, Origin.PEER): FIRST_FAILURE,
    (ErrorKind.PEER_FAILED, Origin.OWN): OWN_ERROR,
    (ErrorKind.PEER_FAILED, Origin.CUT_OFF): OWN_ERROR,
    (ErrorKind.PEER_FAILED, Origin.PEER): OWN_ERROR_LATER,  # it is that failure
}

# Errors that another rank's end causes: that rank's report is waited for.
ECHOES = (ErrorKind.COLLECTIVE, ErrorKind.NAN_OF_PEER)


def kind_of(error: BaseException) -> ErrorKind:
    """Return the kind of an exception that ends this rank."""
    if isinstance(error, PeerFailedError):
        return ErrorKind.PEER_FAILED
    if isinstance(error, CommError | dist.DistError):
        return ErrorKind.COLLECTIVE
    if isinstance(error, NonFiniteError) and error.rank is None:
        return ErrorKind.NAN_OF_PEER
    return ErrorKind.REFUSED if isinstance(error, RefusedError) else ErrorKind.BUG


def origin_of(first: Failure, rank: int) -> Origin:
    """Return the origin of the failure that was heard first, as seen from `rank`."""
    if first.rank != rank:
        return Origin.PEER
    return Origin.CUT_OFF if first.unreported else Origin.OWN
