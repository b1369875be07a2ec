"""Guard against restarts without progress.

torchrun restarts ranks as often as `--max-restarts` allows. A crash at the same step each time would use up all
restarts, so a run that got no further in a few attempts gives up.
"""

import logging
import os
import signal
from pathlib import Path
from typing import Any

from ddp_agent.config.command_line import override
from ddp_agent.config.untrusted import read_json
from ddp_agent.outputs.files import to_json, write_atomically
from ddp_agent.outputs.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_LIMIT_BYTES = 1 << 20
FUTILE = 3  # attempts that began at the same step


def begin(directory: RunDirectory, attempt: int, step: int, last_reason: str | None) -> str:
    """Record an attempt that continues from `step`. Return why it must not be made, or an empty text.

    `last_reason`: why the attempt before it ended. A run that a person resumes (attempt 0) starts a new record. Called
    on rank 0.
    """
    earlier = _read(directory.attempts) if attempt > 0 else []
    same_step = [one for one in earlier[-FUTILE:] if one.get("from_step") == step]
    if len(same_step) == FUTILE:
        return (
            f"{FUTILE} attempts in a row began after step {step} and ended before the next checkpoint, so no more are "
            f"made; the last one: {last_reason or 'it was killed'}. Repair that, then "
            f"{override('resume', directory.path)}"
        )
    attempts = [*earlier, {"attempt": attempt, "from_step": step}]
    try:
        write_atomically(directory.attempts, to_json(attempts) + "\n")
    except OSError as error:
        _log.warning("%s: %s; a crash loop may go unnoticed", directory.attempts, error.strerror)
    return ""


def stop_torchrun() -> None:
    """Send SIGTERM to torchrun, which would otherwise restart the ranks."""
    count, most = (int(os.environ.get(f"TORCHELASTIC_{name}") or 0) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if "TORCHELASTIC_RUN_ID" in os.environ and count < most:
        os.kill(os.getppid(), signal.SIGTERM)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        attempts = read_json(path, _LIMIT_BYTES, below=path.parent)
    except OSError:
        return []
    return [one for one in attempts if isinstance(one, dict)] if isinstance(attempts, list) else []
