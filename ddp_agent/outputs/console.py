"""Progress of a run on rank 0's console: a bar in a terminal, plain lines elsewhere, a table at the end.

Every line goes to `train.log`, too: the console may be lost while the run goes on.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ddp_agent.config.command_line import shell_word
from ddp_agent.outputs.log import FILE_ONLY
from ddp_agent.outputs.observer import Evaluation, Observer, Result, Start, Values
from ddp_agent.outputs.units import human_bytes, human_seconds

_log = logging.getLogger(__name__)
_SHOWN = ("train_loss", "samples_per_s")
_FORMATS = {"samples_per_s": ",.0f"}


class ConsoleProgress(Observer):
    """Progress towards `steps` optimizer steps, counted from `first_step` when the run is resumed."""

    def __init__(
        self,
        steps: int,
        *,
        first_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._steps, self._first_step, self._clock = steps, first_step, clock
        self._start_s = clock()
        moves = self.console.is_terminal and not self.console.is_dumb_terminal
        self._bar = _bar(self.console) if moves else None
        # rich's own refresh is a thread that would take the interpreter from training 10 times per second.
        self._every_s = 0.5 if self._bar else 5.0
        self._due_s = self._start_s + self._every_s
        if self._bar:
            self._task = self._bar.add_task("", total=steps, completed=first_step, shown="", speed="")

    def begin(self, start: Start) -> None:
        if self._bar:
            self._bar.start()

    def stepped(self, step: int) -> None:
        """Move the bar every half second. Without a terminal this costs nothing."""
        if self._bar and self._is_due():
            self._bar.update(self._task, completed=step, refresh=True)

    def logged(self, step: int, values: Values) -> None:
        """Show loss and speed. They are on the host already, so showing them makes no GPU wait."""
        if not values.keys() & _SHOWN:
            return
        if self._bar:
            loss, speed = values.get("train_loss"), values.get("samples_per_s")
            self._bar.update(
                self._task,
                completed=step,
                shown="" if loss is None else f"loss {loss:.4g}",
                speed="" if speed is None else f"{speed:,.0f} samples/s",
            )
        elif self._is_due():
            self._line(step, {key: values[key] for key in _SHOWN if key in values})

    def evaluated(self, evaluation: Evaluation) -> None:
        """Print a line for every evaluation, above the bar where there is one."""
        scores = {key: value for key, value in evaluation.values.items() if key.startswith("test_")}
        self._line(evaluation.step, scores)

    def finished(self, result: Result) -> None:
        """Print the result table and the commands that show more."""
        if self._bar:
            self._bar.update(self._task, completed=result.summary["steps"], refresh=True)
            self._bar.stop()
        self.console.print(result_table(result.summary))
        _log.info(", ".join(f"{name} {cell}" for name, cell in _row(result.summary).items()), extra=FILE_ONLY)
        run = shell_word(str(result.run_dir))
        for command in (f"tensorboard --logdir {run}", f"python -m ddp_agent.report {run}"):
            self._print(f"  {command}")

    def close(self) -> None:
        """Leave the terminal tidy: the cursor is shown again."""
        if self._bar:
            self._bar.stop()

    def _is_due(self) -> bool:
        now_s = self._clock()
        if now_s < self._due_s:
            return False
        self._due_s = now_s + self._every_s
        return True

    def _line(self, step: int, values: Values) -> None:
        if self._bar:  # else it would show an older step below this line
            self._bar.update(self._task, completed=step, refresh=True)
        shown = "  ".join(f"{key} {value:{_FORMATS.get(key, '.4g')}}" for key, value in values.items())
        self._print(f"step {step:,}/{self._steps:,}  {shown}  {self._time_left(step)}".rstrip())

    def _time_left(self, step: int) -> str:
        done, left = step - self._first_step, self._steps - step
        if done <= 0 or left <= 0 or self._bar:
            return ""
        return f"{human_seconds((self._clock() - self._start_s) / done * left)} left"

    def _print(self, line: str) -> None:
        """Print without wrapping at 80 columns, which would break a log file, and without markup in a path."""
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        _log.info(line, extra=FILE_ONLY)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step {task.completed:,}/{task.total:,}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
    )


def result_table(summary: Mapping[str, Any]) -> Table:
    """Return the table with a run's score and costs. Keys are those of `summary.json`."""
    ranks = summary["world_size"]
    table = Table(title=f"{summary['sync']} · {summary['reducer']} · {ranks} rank{'s' * (ranks != 1)}")
    row = _row(summary)
    for name in row:
        table.add_column(name, justify="right")
    table.add_row(*row.values())
    return table


def _row(summary: Mapping[str, Any]) -> dict[str, str]:
    row = {
        f"test {summary['metric_name']}": _or_dash(summary["test_metric"], "{:.4f}".format),
        "training time": _or_dash(summary["train_s"], human_seconds),
        "bytes sent": _or_dash(summary["wire_bytes"], human_bytes),
        "syncs": _or_dash(summary["syncs"], "{:,}".format),
    }
    if summary.get("target") is not None:
        reached_s = summary.get("time_to_target_s")
        row[f"time to {summary['target']:g}"] = "not reached" if reached_s is None else human_seconds(reached_s)
    return row


def _or_dash(value: Any, shown: Callable[[Any], str]) -> str:
    return "–" if value is None else shown(value)
