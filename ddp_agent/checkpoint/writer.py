"""The writer of a run's checkpoints, in training's thread or beside it."""

import threading
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ddp_agent.checkpoint.saving import save
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group_comm import twin


@dataclass
class Writer:
    """Writer of checkpoints to `directory`, of which it keeps the newest `keep`. Its methods are collectives.

    With `beside_training` a save returns when the state is copied, and a thread writes it, one checkpoint at a time.
    The thread has a process group of its own, because its collectives and those of training are called in a different
    order on each rank. The next call raises an error of the thread.
    """

    directory: Path
    comm: Comm
    _: KW_ONLY
    fingerprint: Mapping[str, Any]
    keep: int
    keep_best: bool = False
    beside_training: bool = False
    _thread: threading.Thread | None = field(default=None, init=False)
    _error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._own_comm = twin(self.comm) if self.beside_training else self.comm

    def save(self, step: int, state: dict[str, Any], details: Mapping[str, Any]) -> None:
        """Save a checkpoint, after the one before it is written."""
        self.wait()
        if not self.beside_training:
            return self._save(step, state, details)
        arguments = (step, copied(state), details)
        # A daemon: after the death of a peer this thread may never end.
        self._thread = threading.Thread(target=self._try, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()
        return None

    def wait(self) -> None:
        """Return when the last checkpoint is written. Raises CheckpointError, on all ranks, if that failed."""
        if self._thread:
            with self.comm.ledger.progress.following(self._own_comm.ledger.progress):
                self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _try(self, step: int, state: dict[str, Any], details: Mapping[str, Any]) -> None:
        try:
            self._save(step, state, details)
        except Exception as error:
            self._error = error

    def _save(self, step: int, state: dict[str, Any], details: Mapping[str, Any]) -> None:
        save(
            self.directory,
            step,
            state,
            comm=self._own_comm,
            fingerprint=self.fingerprint,
            details=details,
            keep=self.keep,
            keep_best=self.keep_best,
        )


def copied(state: Any) -> Any:
    """Return a copy of `state` with all tensors on the CPU. Training continues to change the originals."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state
