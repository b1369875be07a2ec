"""A training loop that is timed in rounds, though its one call never returns."""

import threading
from collections.abc import Callable

import torch

Fit = Callable[[Callable[[], None]], None]
"""Function that trains without end and calls its argument after every step."""


class Paused:
    """Training loop in a thread of its own, which runs only while a caller waits in `__call__` for its steps.

    The loop starts in the first round, which warms up, and continues where it stopped in the next one. The thread
    costs nothing while it waits for its turn.
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
        """Return after `steps` more steps. Raise the exception of the loop, if there is one."""
        self._left = steps
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the loop by an exception inside of it."""
        self._over = True
        if self._thread.is_alive():
            self._turn.release()
            self._thread.join()

    def _work(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # the current device is per thread
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


class _Over(BaseException):  # not an Exception, which a loop might catch as an error of its own
    pass
