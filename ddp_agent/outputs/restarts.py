"""How often a run was started, from which step, and when to stop trying.

torchrun starts ranks again as often as it is told. A crash that comes at the same step each time would use up all of
that and tell the same story each time, so a run that got no further in a few attempts gives up.
"""

import json
import logging
import os
import signal
from typing import Any

from ddp_agent.outputs.files import to_json, write_atomically
from ddp_agent.outputs.run_directory import RunDirectory

_log = logging.getLogger(__name__)
FUTILE = 3  # attempts that began at the same step


def begin(directory: RunDirectory, attempt: int, step: int, last_reason: str | None) -> str:
    """Rank 0 notes an attempt that goes on from `step`; returns why it must not be made, or nothing.

    `last_reason`: how the attempt before it ended. A run that a person resumes is a new attempt at everything.
    """
    earlier = _read(directory) if attempt > 0 else []
    alike = [one for one in earlier[-FUTILE:] if one.get("from_step") == step]
    if len(alike) == FUTILE:
        return (
            f"{FUTILE} attempts in a row began after step {step} and ended before the next checkpoint, so no more are "
            f"made; the last one: {last_reason or 'it was killed'}. Repair that, then resume={directory.path}"
        )
    noted = [*earlier, {"attempt": attempt, "from_step": step}]
    try:
        write_atomically(directory.path / "attempts.json", to_json(noted) + "\n")
    except OSError as error:
        _log.warning("%s/attempts.json: %s; a crash loop may go unnoticed", directory.path, error.strerror)
    return ""


def stop_torchrun() -> None:
    """Else it would start the ranks again, all of whose attempts have been made."""
    count, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if "TORCHELASTIC_RUN_ID" in os.environ and count < most:
        os.kill(os.getppid(), signal.SIGTERM)


def _read(directory: RunDirectory) -> list[dict[str, Any]]:
    try:
        told = json.loads((directory.path / "attempts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
