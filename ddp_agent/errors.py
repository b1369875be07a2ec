"""Refusals that a user can act on. `exit_code` is what the process returns."""

from collections.abc import Sequence


class RefusedError(Exception):
    """A run that must not start or go on; the text is the whole message, no traceback is needed."""

    exit_code = 1
    rank: int | None = None  # where it arose, when that is not where it is raised
    step: int | None = None


class ConfigError(RefusedError):
    """Every problem of a configuration at once, each naming its key, what was found and what would be right."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RefusedError):
    """A data file that is missing, damaged or not what it claims to be."""

    exit_code = 3


class CheckpointError(RefusedError):
    """A checkpoint or exported model that is damaged, foreign, or belongs to another run."""

    exit_code = 3


class CutOffError(RefusedError):
    """A replica cannot reach the coordinator, or the others do not come; alone it must not go on."""

    exit_code = 4


class PeerFailedError(RefusedError):
    """Another rank failed, so this one cannot go on. `code` is what that rank exits with, if it told why."""

    exit_code = 4

    def __init__(self, rank: int, text: str, code: int = exit_code, step: int | None = None) -> None:
        super().__init__(text)
        self.rank, self.exit_code, self.step = rank, code, step


class NoProgressError(RefusedError):
    """Several attempts got no further than where they began."""

    exit_code = 4


class DivergedError(RefusedError):
    """Ranks do not have alike what they share."""

    exit_code = 3

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step


class NonFiniteError(RefusedError):
    """A loss or gradient that is NaN or infinite. `rank` is None on a rank that got it from another."""

    exit_code = 5

    def __init__(self, text: str, rank: int | None = None, step: int | None = None) -> None:
        super().__init__(text)
        self.rank, self.step = rank, step


class PreemptedError(RefusedError):
    """A signal asked the run to stop; it has saved everything and can go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step
