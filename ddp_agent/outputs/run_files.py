"""Paths of a run's files."""

import json
from pathlib import Path
from typing import Any


class RunFiles:
    """The paths of a run directory's files, which need not exist. Reads nothing but the status."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder with one folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """One JSON object, written at the end."""
        return self.path / "summary.json"

    @property
    def status(self) -> Path:
        """State of the newest attempt."""
        return self.path / "status.json"

    @property
    def attempts(self) -> Path:
        """The steps at which attempts began."""
        return self.path / "attempts.json"

    @property
    def sample(self) -> Path:
        """Text that the final model made."""
        return self.path / "sample.txt"

    def log(self, rank: int) -> Path:
        """Return the path of a rank's log."""
        return self.path / ("train.log" if rank == 0 else f"train.rank{rank}.log")

    def read_status(self) -> dict[str, Any]:
        """Return the content of `status`. It is empty if the file is missing or damaged."""
        try:
            status = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}
