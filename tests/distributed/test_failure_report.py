"""The error that a rank raises when several ranks have failed: one row per case."""

from dataclasses import dataclass, field

import pytest
import torch

from ddp_agent.distributed.failure_report import VERDICTS, ErrorKind, Failure, Origin, kind_of, origin_of
from ddp_agent.distributed.ledger import CommError
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.errors import ConfigError, NonFiniteError, PeerFailedError

RANK = 1
OWN = Failure(RANK, 7, 4, "what this rank reported")
CUT_OFF = Failure(RANK, 7, 4, "torchrun's store has not answered", unreported=True)
PEER = Failure(0, 6, 5, "what rank 0 reported")
DEAD = Failure(0, 6, 4, "no sign of life", unreported=True)

BUG = ZeroDivisionError("a bug")
COLLECTIVE = CommError("connection closed by peer")
REFUSED = ConfigError("max_steps: found 3")
OWN_NAN = NonFiniteError("loss is nan", rank=RANK, step=7)
NAN_OF_PEER = NonFiniteError("a rank's loss is nan")
KNOWN = PeerFailedError(0, "what rank 0 reported", 5, 6)
CUT = PeerFailedError(RANK, "torchrun's store has not answered")


@dataclass
class Detector:
    """Answers `fail` with the failure that was heard first."""

    first: Failure
    calls: list[str] = field(default_factory=list)

    def fail(self, text: str, code: int, *, echo: bool) -> Failure:
        self.calls.append(f"{text}, code {code}, {'echo' if echo else 'own'}")
        return self.first

    def linger(self) -> None:
        self.calls.append("linger")


def _runtime(detector: Detector) -> Runtime:
    return Runtime(
        rank=RANK,
        world_size=2,
        local_world_size=2,
        attempt=0,
        device=torch.device("cpu"),
        backend="gloo",
        failure_detector=detector,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("error", "first", "raises_first", "lingers"),
    [
        (BUG, OWN, False, False),
        (BUG, CUT_OFF, False, False),
        (BUG, PEER, True, True),
        (BUG, DEAD, True, True),
        (COLLECTIVE, OWN, False, False),
        (COLLECTIVE, CUT_OFF, True, False),
        (COLLECTIVE, PEER, True, True),
        (COLLECTIVE, DEAD, True, True),
        (REFUSED, OWN, False, False),
        (REFUSED, CUT_OFF, False, False),
        (REFUSED, PEER, False, False),
        (OWN_NAN, PEER, False, False),
        (NAN_OF_PEER, OWN, False, False),
        (NAN_OF_PEER, CUT_OFF, True, False),
        (NAN_OF_PEER, PEER, True, False),
        (KNOWN, OWN, False, False),
        (CUT, CUT_OFF, False, False),
        (KNOWN, PEER, False, True),
        (KNOWN, DEAD, False, True),
    ],
)
def test_which_error_is_raised_and_who_lingers(
    error: Exception, first: Failure, raises_first: bool, lingers: bool
) -> None:
    detector = Detector(first)
    runtime = _runtime(detector)
    cause = runtime._report(error)
    assert (detector.calls[1:] == ["linger"]) == lingers
    if not raises_first:
        assert cause is None
    else:
        assert cause is not None
        assert (cause.rank, str(cause), cause.exit_code, cause.step) == (first.rank, first.text, first.code, first.step)


def test_every_case_has_its_verdict() -> None:
    assert VERDICTS.keys() == {(kind, origin) for kind in ErrorKind for origin in Origin}


@pytest.mark.parametrize(
    ("error", "kind", "report"),
    [
        (BUG, ErrorKind.BUG, "ZeroDivisionError: a bug, code 4, own"),
        (COLLECTIVE, ErrorKind.COLLECTIVE, "CommError: connection closed by peer, code 4, echo"),
        (REFUSED, ErrorKind.REFUSED, "max_steps: found 3, code 2, own"),
        (OWN_NAN, ErrorKind.REFUSED, "loss is nan, code 5, own"),
        (NAN_OF_PEER, ErrorKind.NAN_OF_PEER, "a rank's loss is nan, code 5, echo"),
        (KNOWN, ErrorKind.PEER_FAILED, "what rank 0 reported, code 5, own"),
    ],
)
def test_the_report_of_an_error(error: Exception, kind: ErrorKind, report: str) -> None:
    assert kind_of(error) is kind
    detector = Detector(OWN)
    _runtime(detector)._report(error)
    assert detector.calls[0] == report


def test_the_origin_of_a_failure() -> None:
    assert [origin_of(first, RANK) for first in (OWN, CUT_OFF, PEER, DEAD)] == [
        Origin.OWN,
        Origin.CUT_OFF,
        Origin.PEER,
        Origin.PEER,
    ]


def test_a_failure_survives_the_store() -> None:
    assert Failure.from_json(DEAD.to_json(), world_size=2) == DEAD
