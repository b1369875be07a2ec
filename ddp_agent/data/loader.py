"""Loading of the samples of a step onto the device, in the order that `sample_order.py` defines."""

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ddp_agent.data.sample_order import Order
from ddp_agent.data.task import Data
from ddp_agent.distributed.process import die_with_parent
from ddp_agent.errors import DataError
from ddp_agent.rng import mixed_seed

Batch = tuple[Tensor, Tensor]

# The way to start workers, independent of Python's default (which changed in 3.14). A fork of the rank costs
# milliseconds and ends with the rank. A process that imports torch costs seconds, at every evaluation.
START = "fork" if sys.platform == "linux" else None

SPARED_S = 30  # between SIGTERM and the end of a worker, if its rank does not end it before

SHARED_MEMORY = "/dev/shm"
# Texts of torch's errors where that is full. Containers have 64 MB of it by default.
_FULL = ("shared memory", "No space left on device", "Bus error", "unable to write to file", "unable to mmap")


@dataclass(frozen=True)
class Share:
    """One rank's part of the samples of a step: `accumulation` micro-batches of `micro_batch` samples."""

    rank: int
    world_size: int
    micro_batch: int
    accumulation: int = 1

    @property
    def samples(self) -> int:
        """The number of samples that the rank takes in a step."""
        return self.micro_batch * self.accumulation


def micro_batches(data: Data, order: Order, share: Share, *, steps: range, device: torch.device) -> Generator[Batch]:
    """Yield inputs and targets of a rank's micro-batches in `steps` (1-based), on `device`.

    A TensorDataset is moved to the device once and indexed there: host and device never wait for each other. Any other
    dataset is read ahead of its use by `data.workers` processes.
    """
    firsts = (order.first(step, share.samples, share.rank, share.world_size) for step in steps)
    starts = (start for first in firsts for start in range(first, first + share.samples, share.micro_batch))
    if isinstance(data.train, TensorDataset):
        return _resident(data.train, order.to(device), starts, share.micro_batch)
    batches = (order.take(start, share.micro_batch).tolist() for start in starts)
    seed = mixed_seed(order.seed, (steps.start - 1) * share.world_size + share.rank)
    return stream(data.train, batches, device=device, workers=data.workers, seed=seed)


def _resident(dataset: TensorDataset, order: Order, starts: Iterable[int], micro_batch: int) -> Generator[Batch]:
    inputs, targets = (tensor.to(order.device) for tensor in dataset.tensors)
    for start in starts:
        indices = order.take(start, micro_batch)
        yield inputs.index_select(0, indices), targets.index_select(0, indices)


def stream(
    dataset: Dataset[Any], batches: Iterable[list[int]], *, device: torch.device, workers: int, seed: int = 0
) -> Generator[Batch]:
    """Yield the samples with the given indices, batch by batch, on `device`.

    `close` ends the workers, and so does the last batch. `seed` is for datasets that draw random numbers in workers.
    Raises a worker's DataError without the worker's traceback, and DataError for workers that lack shared memory.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context=START if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_end_with_the_rank,
        # A loader without a generator draws from torch's global one, and a resumed run would differ.
        generator=torch.Generator().manual_seed(seed),
    )
    try:
        yield from _moved(loader, device)
    except DataError as error:
        # The text of a worker's error holds its traceback; only the last line tells what to do.
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
    except (RuntimeError, OSError, EOFError) as error:
        if workers and (remedy := _lost_worker(error, workers)):
            raise DataError(remedy) from error
        raise


def _moved(loader: Any, device: torch.device) -> Generator[Batch]:
    iterator = _started(loader)
    try:
        for inputs, targets in iterator:
            yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
    finally:
        # torch leaves this to the garbage collector, and an error would hold the iterator.
        getattr(iterator, "_shutdown_workers", lambda: None)()


def _lost_worker(error: Exception, workers: int) -> str:
    """Return one sentence on a worker that its machine stopped, or "" for an error of another kind."""
    text = str(error)
    if any(sign in text for sign in _FULL):
        place = os.statvfs(SHARED_MEMORY)
        return (
            f"dataset.workers: found {workers} per rank, which hand batches over in {SHARED_MEMORY}, of which "
            f"{place.f_bavail * place.f_frsize / 1e6:,.0f} of {place.f_blocks * place.f_frsize / 1e6:,.0f} MB are "
            "free; give the container more (docker run --shm-size=8g), or set dataset.workers=0"
        )
    gone = not isinstance(error, RuntimeError) and not text.startswith("Caught ")  # its pipe; else its dataset's error
    if gone or "killed by signal: Killed" in text or "exited unexpectedly" in text:
        return (
            f"dataset.workers: one of {workers} per rank was killed from outside, as systems do when memory is used "
            "up; set fewer workers, or give the job more memory"
        )
    return ""


def _started(loader: Any) -> Iterator[Any]:
    """Start the workers, with the rank's objects hidden from their garbage collection.

    A fork has no threads or children of the rank's process groups and loaders. Destroying one of these kills the
    worker.
    """
    gc.freeze()
    try:
        return iter(loader)  # forks
    finally:
        gc.unfreeze()


def _end_with_the_rank(worker: int) -> None:
    """Let the worker die with its rank, which it would outlive by seconds, ignore Ctrl-C, and delay SIGTERM.

    Both often go to all processes of a job, and a rank needs batches until it has saved a checkpoint. torch's handler
    would raise an error in a rank that is printing or saving, as soon as one of its workers is gone.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SPARED_S))
