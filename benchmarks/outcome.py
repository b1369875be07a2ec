"""The outcome of a benchmark: a table for people, and JSON for programs."""

import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from ddp_agent.distributed.process_group import Runtime
from ddp_agent.outputs.files import to_json, write_atomically
from ddp_agent.outputs.units import human_bytes

Row = Mapping[str, str | float | int | None]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine and the ranks of a measurement.

    `load` is the run queue's mean length over the last minute. Where it exceeds `cores`, other programs were computing.
    """

    processor: str
    cores: int
    threads_per_rank: int
    load: float
    torch_version: str
    backend: str
    ranks: int

    @classmethod
    def here(cls, ranks: Runtime) -> "Machine":
        """Return the machine of this process."""
        return cls(
            processor=_processor(ranks.device),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            threads_per_rank=torch.get_num_threads(),
            load=round(os.getloadavg()[0], 1),
            torch_version=torch.__version__,
            backend=ranks.backend,
            ranks=ranks.world_size,
        )

    def __str__(self) -> str:
        return (
            f"{self.ranks} ranks on {self.backend}, {self.threads_per_rank} thread(s) each; {self.processor}, "
            f"{self.cores} cores, load {self.load}; torch {self.torch_version}"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Table of a benchmark. `rows` share their keys, whose suffix is the unit; `how` says how they were measured."""

    title: str
    how: str
    machine: Machine
    rows: Sequence[Row]

    def table(self) -> Table:
        """Return the table for the terminal, with a line between groups of rows that share their first cell."""
        table = Table(title=self.title, caption=f"{self.how}\n{self.machine}", caption_justify="left")
        for key in self.rows[0]:
            number = any(isinstance(row[key], int | float) for row in self.rows)
            table.add_column(key.replace("_", " "), justify="right" if number else "left")
        groups = [list(rows) for _, rows in itertools.groupby(self.rows, key=lambda row: next(iter(row.values())))]
        for group in groups:
            for row in group:
                last = len(group) > 1 and row is group[-1]
                table.add_row(*(_cell(key, value) for key, value in row.items()), end_section=last)
        return table

    def write(self, path: Path) -> None:
        """Write the fields as one JSON object."""
        write_atomically(path, to_json(asdict(self), indent=2) + "\n")


def _cell(key: str, value: str | float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if key.endswith("_bytes"):
        return human_bytes(value)
    if key.endswith("_ratio"):
        return f"{value:.4f}"
    if key == "target" or key.startswith("ratio"):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
