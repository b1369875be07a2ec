"""The console: in a terminal, in a log file, and at the end."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from ddp_agent.outputs.console import ConsoleProgress, result_table
from ddp_agent.outputs.observer import Evaluation, Result, Start
from ddp_agent.outputs.units import human_bytes, human_seconds

SUMMARY: dict[str, Any] = {
    "steps": 100, "sync": "diloco", "reducer": "bf16", "world_size": 4, "metric_name": "accuracy",
    "test_metric": 0.98765, "train_s": 75.2, "payload_bytes": 1, "wire_bytes": 12_345_678, "syncs": 1234,
    "target": None,
}  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None, legacy_windows=False)


def output(progress: ConsoleProgress) -> str:
    file = progress.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@contextmanager
def shown(progress: ConsoleProgress) -> Iterator[None]:
    """Call the observer as a run does: `close` comes after an exception, too."""
    progress.begin(Start(model=nn.ReLU(), config={}, step=0))
    try:
        yield
    finally:
        progress.close()


def evaluate(progress: ConsoleProgress, step: int, values: dict[str, float]) -> None:
    progress.evaluated(Evaluation(step=step, values=values, model=nn.ReLU()))


def plain(clock: Clock, **options: Any) -> ConsoleProgress:
    return ConsoleProgress(1000, console=console(terminal=False), clock=clock, **options)


def test_plain_lines_are_rate_limited_and_carry_the_numbers() -> None:
    clock = Clock()
    progress = plain(clock)
    with shown(progress):
        for step in range(1, 1001):
            clock.now = step / 32
            progress.stepped(step)
            if step % 10 == 0:
                progress.logged(step, {"train_loss": 0.12345678, "lr": 0.1, "samples_per_s": 25600.4})
    lines = output(progress).splitlines()
    assert len(lines) == 6  # 31 seconds, one line every five
    assert lines[0] == "step 160/1,000  train_loss 0.1235  samples_per_s 25,600  26 s left"


def test_every_evaluation_is_a_line() -> None:
    progress = plain(Clock())
    with shown(progress):
        for step in (1, 2, 3):
            evaluate(progress, step, {"test_accuracy": 0.9612, "test_loss": 0.125, "lr": 0.1})
    assert output(progress).splitlines()[1] == "step 2/1,000  test_accuracy 0.9612  test_loss 0.125  0.0 s left"


def test_time_left_of_a_resumed_run_counts_its_own_steps_alone() -> None:
    clock = Clock()
    progress = plain(clock, first_step=800)
    clock.now = 100.0
    evaluate(progress, 900, {"test_loss": 1.0})
    assert output(progress).endswith("1 min 40 s left\n")


def test_a_terminal_gets_a_bar_with_step_loss_speed_and_time() -> None:
    clock = Clock()
    progress = ConsoleProgress(1000, console=console(terminal=True), clock=clock)
    with shown(progress):
        progress.logged(500, {"train_loss": 0.25, "samples_per_s": 1000.0})
        clock.now = 1.0
        progress.stepped(501)
        evaluate(progress, 501, {"test_accuracy": 0.5})
    text = output(progress)
    for expected in (
        "step 501/1,000",
        "━",
        "50%",
        "loss 0.25",
        "1,000 samples/s",
        "-:--:--",
        "test_accuracy 0.5",
    ):
        assert expected in text


def test_the_bar_is_never_behind_the_line_above_it() -> None:
    progress = ConsoleProgress(1000, console=console(terminal=True), clock=Clock())
    with shown(progress):
        progress.stepped(100)
        evaluate(progress, 700, {"test_accuracy": 0.5})
        line, below = output(progress).split("test_accuracy")
        assert re.findall(r"step (\d+)/1,000", line)[-1] == "700"
        assert re.findall(r"step (\d+)/1,000", below) == ["700"]


def test_a_dumb_terminal_gets_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "dumb"})
    progress = ConsoleProgress(10, console=dumb)
    with shown(progress):
        evaluate(progress, 7, {"test_accuracy": 0.5})
    assert output(progress).startswith("step 7/10  test_accuracy 0.5")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_draws_nothing_until_something_is_due(terminal: bool) -> None:
    clock = Clock()
    progress = ConsoleProgress(1000, console=console(terminal=terminal), clock=clock)
    with shown(progress):
        before = output(progress)
        for step in range(1, 100):
            progress.stepped(step)
        assert output(progress) == before
        clock.now = 0.6
        progress.stepped(100)
        assert (output(progress) != before) is terminal


def test_an_exception_gives_the_cursor_back() -> None:
    progress = ConsoleProgress(10, console=console(terminal=True))
    with pytest.raises(RuntimeError), shown(progress):
        raise RuntimeError
    assert output(progress).rstrip("\n").endswith("\x1b[?25h")  # "show cursor"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_says_what_was_reached_at_what_cost_and_what_to_do_next(terminal: bool) -> None:
    run = Path("multirun/x y/[bold]sync=diloco," + "seed=0," * 20)
    progress = ConsoleProgress(100, console=console(terminal=terminal))
    with shown(progress):
        progress.finished(Result(summary=SUMMARY, hparams={}, run_dir=run))
    text = output(progress)
    for expected in ("diloco · bf16 · 4 ranks", "accuracy", "0.9877", "1 min 15 s", "12.3 MB", "1,234"):
        assert expected in text
    assert f"  tensorboard --logdir '{run}'\n  python -m ddp_agent.report '{run}'\n" in text


@pytest.mark.parametrize(
    ("changes", "column", "cell"),
    [
        ({"target": 0.99, "time_to_target_s": None}, "time to 0.99", "not reached"),
        ({"target": 0.5, "time_to_target_s": 3.21}, "time to 0.5", "3.2 s"),
        ({"test_metric": None}, "test accuracy", "–"),
        ({"world_size": 1}, "syncs", "1,234"),
    ],
)
def test_cells_of_the_final_table(changes: dict[str, Any], column: str, cell: str) -> None:
    table = result_table({**SUMMARY, **changes})
    (cells,) = [list(c.cells) for c in table.columns if c.header == column]
    assert cells == [cell]


def test_a_run_without_a_target_has_no_column_for_it() -> None:
    assert [c.header for c in result_table(SUMMARY).columns] == [
        "test accuracy",
        "training time",
        "bytes sent",
        "syncs",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_600, "1 MB"), (1.234e9, "1.23 GB"),
     (5e12, "5 TB"), (2.5e18, "2,500.0 PB")],
)  # fmt: skip
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.7, "1 h 00 min"), (7380, "2 h 03 min"), (360_000, "100 h 00 min")],
)  # fmt: skip
def test_human_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_measurements_that_it_does_not_show_leave_the_last_ones(terminal: bool) -> None:
    clock = Clock()
    progress = ConsoleProgress(1000, console=console(terminal=terminal), clock=clock)
    with shown(progress):
        progress.logged(5, {"train_loss": 0.25, "samples_per_s": 10.0})
        clock.now = 6.0
        progress.logged(6, {"gradient_cosine": 0.5})  # and uses up no turn of the rate limit
        progress.logged(7, {"train_loss": 0.5, "samples_per_s": 20.0})
    assert ("loss 0.5" if terminal else "step 7/1,000") in output(progress)
    assert "cosine" not in output(progress) and "step 6" not in output(progress)
