"""A run's checkpoints: where they go, which of them stay, and whether training waits for the disk."""

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
    """Its methods are collectives. With `beside_training` a save returns when the state is copied, and a thread does
    the rest: one at a time, through a process group of its own, since its collectives and those of training meet in
    another order on each rank. What goes wrong there is raised by the next call."""

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
        self.wait()
        if not self.beside_training:
            return self._save(step, state, details)
        arguments = (step, copied(state), details)
        # A daemon: when a peer dies, nobody must wait for this thread to learn of it.
        self._thread = threading.Thread(target=self._try, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()
        return None

    def wait(self) -> None:
        """Returns when nothing is being written. Raises CheckpointError, on all ranks, when it could not be."""
        if self._thread:
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
    """The same, with tensors of its own on the CPU: those of training go on changing."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state
