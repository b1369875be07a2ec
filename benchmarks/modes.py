"""The time that every mode adds to a training step, with the ranks that there are."""

import argparse
import functools
from collections.abc import Callable

from benchmarks import configured, overlap
from benchmarks.arguments import at_least, multiple_of
from benchmarks.outcome import Machine, Outcome
from benchmarks.rounds import stopwatch, take_turns
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm

SUMMARY = "a training step of a CNN in every mode of conf/sync, against independent"
PERIOD = 16
YARDSTICK = "independent"
# Of the modes' fields: one period for all, and PostLocalSGD in its second phase from the first step on.
VALUES = {"period": PERIOD, "global_period": PERIOD, "switch_step": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--repeats", type=at_least(1), default=25, help="rounds that count (25)")
    parser.add_argument("--steps", type=multiple_of(PERIOD), default=4 * PERIOD, help="optimizer steps per round (64)")
    parser.add_argument("--batch", type=at_least(1), default=64, help="images per rank (64)")


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """Time whole periods of every mode, so that no round pays for a fragment that another one sent."""
    steps = arguments.steps

    def timed(run: Callable[[int], None]) -> float:
        return stopwatch(lambda: run(steps), ranks.device)

    modes = configured.modes(**VALUES)
    names = [YARDSTICK, *(name for name in modes if name != YARDSTICK)]
    loops = {name: overlap.loop(modes[name], arguments.batch, ranks) for name in names}
    turns = {name: functools.partial(timed, loop) for name, loop in loops.items()}
    timings = take_turns(turns, arguments.repeats, world_comm())
    return Outcome(
        title=f"A training step of a CNN on {overlap.SHAPE[1]} x {overlap.SHAPE[2]} images, {arguments.batch} per rank",
        how=f"medians of {arguments.repeats} alternating rounds of {steps} steps, H = {PERIOD}, time of the slowest "
        f"rank; ratio: to {YARDSTICK}, in the same round",
        machine=Machine.here(ranks),
        rows=[
            {
                "sync": name,
                "ms_per_step": timing.median_s / steps * 1e3,
                "us_more": (timing.median_s - timings[YARDSTICK].median_s) / steps * 1e6,
                **timing.ratios(),
            }
            for name, timing in timings.items()
        ],
    )
