"""The cost of the measurements of `consensus_every`."""

import argparse
import time
from collections.abc import Iterator

from benchmarks.arguments import at_least
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timed, take_turns
from benchmarks.step import NEVER, PERIOD, SETTINGS, Setting, Workload, article
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.topology import Topology
from ddp_agent.training.trainer import Trainer

SUMMARY = "the measurements of consensus_every: the cost of one, and its share of time at the default interval"
INTERVAL = 400  # conf/config.yaml's consensus_every
TARGET = 0.02
MEASURE_EVERY = 2 * PERIOD  # often enough to show above the noise of the machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--repeats", type=at_least(1), default=60, help="rounds that count (60)")
    parser.add_argument("--steps", type=at_least(MEASURE_EVERY), default=160, help="optimizer steps per round (160)")


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """Time training with a measurement every MEASURE_EVERY steps, and without."""
    return Outcome(
        title="A measurement of consensus distance and gradient diversity, on the 10-32-2 MLP",
        how=f"medians of {arguments.repeats} alternating rounds of {arguments.steps} steps, wall-clock of the slowest "
        f"rank, with a measurement every {MEASURE_EVERY} steps and without; share: of time, with one every {INTERVAL}",
        machine=Machine.here(ranks),
        rows=list(_rows(arguments.steps, arguments.repeats, ranks)),
    )


def _rows(steps: int, repeats: int, ranks: Runtime) -> Iterator[Row]:
    for setting in SETTINGS:
        if setting.alone:  # there is nothing to measure on one rank
            continue
        workload = Workload(article(), Topology.create(), ranks.device)
        without, measuring = take_turns(contenders(setting, workload, steps), repeats, workload.world).values()
        measurement_s = (measuring.ratio - 1) * without.median_s * MEASURE_EVERY / steps
        yield {
            "synchronised": setting.name,
            "us_per_step": without.median_s / steps * 1e6,
            "us_per_measurement": measurement_s * 1e6,
            "share_ratio": measurement_s / (without.median_s / steps) / INTERVAL,
            "target": TARGET,
        }


def contenders(setting: Setting, workload: Workload, steps: int) -> dict[str, Timed]:
    """Return the two ways to train, the yardstick first."""
    sessions = {every: workload.session(setting.sync(), consensus_every=every) for every in (NEVER, MEASURE_EVERY)}
    trainers = {every: Trainer(session) for every, session in sessions.items()}
    return {
        "without": lambda: fit(trainers[NEVER], steps),
        "measuring": lambda: fit(trainers[MEASURE_EVERY], steps),
    }


def fit(trainer: Trainer, steps: int) -> float:
    """Train `steps` more steps. Return their seconds of wall-clock, measurements and the evaluation included."""
    started = time.perf_counter()
    trainer.fit(until=trainer.session.step + steps)
    return time.perf_counter() - started
