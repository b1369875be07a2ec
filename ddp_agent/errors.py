"""Refusals that a user can act on. `exit_code` is what the process returns."""

from collections.abc import Sequence


class RefusedError(Exception):
    """A run that must not start or go on; the text is the whole message, no traceback is needed."""

    exit_code = 1


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


class NonFiniteError(RefusedError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 5
