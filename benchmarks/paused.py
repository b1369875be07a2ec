"""Takes turns with loops that somebody else owns."""

import threading
from collections.abc import Callable

import torch

Fit = Callable[[Callable[[], None]], None]
"""Trains for ever, and calls what it is given after every step."""


class Paused:
    """A training loop in a thread of its own, which goes on only as long as somebody waits in `__call__` for its steps.

    So a framework's `fit` can be timed in rounds that alternate with those of others: it begins once, goes on where
    it stopped, and all that it does from one step to the next is within a round; what it does before the first step
    is within the first round, which warms up. Nothing is asked of the interpreter while the thread rests.
    """

    def __init__(self, fit: Fit, device: torch.device) -> None:
        self._fit = fit
        self._device = device
        self._left = 0
        self._over = False
        self._error: BaseException | None = None
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __call__(self, steps: int) -> None:
        """Returns after so many more steps. An exception of the loop is raised here."""
        self._left = steps
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """The loop leaves through an exception."""
        self._over = True
        if self._thread.is_alive():
            self._turn.release()
            self._thread.join()

    def _work(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has one of its own
        try:
            self._fit(self._after_step)
        except _Over:
            return
        except BaseException as error:
            self._error = error
        else:
            self._error = RuntimeError("the training loop ended by itself")
        self._done.release()

    def _after_step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.release()
            self._turn.acquire()
            if self._over:
                raise _Over


class _Over(BaseException):  # not an Exception: no loop shall take it for an error of its own
    pass
