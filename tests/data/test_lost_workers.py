"""Workers that their machine stops: full shared memory, a kill from outside, a signal for the whole job."""

import os
import signal

import pytest
from test_loader import CPU, Numbered
from torch import Tensor

from ddp_agent.data.loader import stream
from ddp_agent.errors import DataError

FULL = [
    "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
    "unable to write to file </torch_2>",
]


class Failing(Numbered):
    def __init__(self, text: str) -> None:
        super().__init__(8)
        self.text = text

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise RuntimeError(self.text)


class Signalled(Numbered):
    """Sample 5 sends a signal to the process that reads it."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(8)
        self.number = number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 5:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


def read(dataset: Numbered, workers: int = 1) -> list[int]:
    return [int(targets[0]) for _, targets in stream(dataset, [[n] for n in range(8)], device=CPU, workers=workers)]


@pytest.mark.parametrize("text", FULL)
def test_full_shared_memory_is_one_sentence_with_a_remedy(text: str) -> None:
    with pytest.raises(DataError, match=r"^dataset.workers: found 1 per rank, .* /dev/shm, .*--shm-size"):
        read(Failing(text))
    with pytest.raises(RuntimeError) as caught:  # without workers, it is another's error
        read(Failing(text), workers=0)
    assert str(caught.value) == text


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="index out of range"):
        read(Failing("index out of range"))


def test_a_killed_worker_is_one_sentence_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"^dataset.workers: one of 1 per rank was killed from .* fewer"):
        read(Signalled(signal.SIGKILL))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_whole_job_leaves_the_workers_to_their_rank(number: signal.Signals) -> None:
    assert read(Signalled(number)) == [2 * n for n in range(8)]
