"""Errors that a user can act on. The process exits with `exit_code`."""

from collections.abc import Sequence


class RefusedError(Exception):
    """A run that must not start or continue. Its text is the whole message; no traceback is needed."""

    exit_code = 1
    rank: int | None = None  # the rank where it arose, when another rank raises it
    step: int | None = None


class ConfigError(RefusedError):
    """All problems of a configuration. Each names its key, the value that was found and the values that are right."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RefusedError):
    """A data file that is missing, damaged or of another format than it claims."""

    exit_code = 3


class CheckpointError(RefusedError):
    """A checkpoint or exported model that is damaged, foreign, or belongs to another run."""

    exit_code = 3


class LostDirectoryError(RefusedError):
    """A run directory that was deleted, moved or replaced while the run was in it."""

    exit_code = 3

    def __init__(self, text: str, step: int | None = None) -> None:
        super().__init__(text)
        self.step = step


class CutOffError(RefusedError):
    """A replica that cannot reach the coordinator, or for which the others do not come. Alone it must not continue."""

    exit_code = 4


class UnreachableError(RefusedError):
    """A rank that cannot be reached, or a store or network on which ranks cannot meet."""

    exit_code = 4


class PeerFailedError(RefusedError):
    """A failure of another rank, which ends this one too. `code`: that rank's exit code, if it reported one."""

    exit_code = 4

    def __init__(self, rank: int, text: str, code: int = exit_code, step: int | None = None) -> None:
        super().__init__(text)
        self.rank, self.exit_code, self.step = rank, code, step


class NoProgressError(RefusedError):
    """A run of which several attempts got no further than the step they began with."""

    exit_code = 4


class DivergedError(RefusedError):
    """Ranks whose copies of shared tensors differ."""

    exit_code = 3

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step


class ModelChangedError(RefusedError):
    """A model or optimizer that was changed after setup in a way that a sync mode cannot follow."""

    exit_code = 3


class NonFiniteError(RefusedError):
    """A loss or gradient that is NaN or infinite. `rank` is None on a rank that received it from another."""

    exit_code = 5

    def __init__(self, text: str, rank: int | None = None, step: int | None = None) -> None:
        super().__init__(text)
        self.rank, self.step = rank, step


class PreemptedError(RefusedError):
    """A run that a signal asked to stop. It has saved everything and can be resumed."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step
