"""What it costs to look at what the ranks do to each other."""

import argparse
import time
from collections.abc import Iterator

from benchmarks.arguments import at_least
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timed, take_turns
from benchmarks.step import NEVER, PERIOD, SETTINGS, Setting, Stage, article
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.topology import Topology
from ddp_agent.training.trainer import Trainer

SUMMARY = "diagnostics (consensus_every): what a look costs, and its share at the default interval"
INTERVAL = 400  # conf/config.yaml's consensus_every
TARGET = 0.02
LOOK_EVERY = 2 * PERIOD  # here: often enough to be seen among what else the machine does


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=at_least(1), default=60, help="rounds that count (60)")
    parser.add_argument("--steps", type=at_least(LOOK_EVERY), default=160, help="optimizer steps a round (160)")


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    return Outcome(
        title="A look at what the ranks do to each other, on the 10-32-2 MLP",
        how=f"medians of {arguments.repeats} alternating rounds of {arguments.steps} steps, wall-clock of the slowest "
        f"rank, with a look every {LOOK_EVERY} steps and with none; share: of wall-clock, at a look every {INTERVAL}",
        machine=Machine.here(ranks),
        rows=list(_rows(arguments.steps, arguments.repeats, ranks)),
    )


def _rows(steps: int, repeats: int, ranks: Runtime) -> Iterator[Row]:
    for setting in SETTINGS:
        if setting.alone:  # nobody to look at
            continue
        stage = Stage(article(), Topology.create(), ranks.device)
        without, looking = take_turns(contenders(setting, stage, steps), repeats, stage.world).values()
        look_s = (looking.ratio - 1) * without.median_s * LOOK_EVERY / steps
        yield {
            "synchronised": setting.name,
            "us_a_step": without.median_s / steps * 1e6,
            "us_a_look": look_s * 1e6,
            "share_ratio": look_s / (without.median_s / steps) / INTERVAL,
            "target": TARGET,
        }


def contenders(setting: Setting, stage: Stage, steps: int) -> dict[str, Timed]:
    trainers = {every: stage.trainer(setting.sync(), consensus_every=every) for every in (NEVER, LOOK_EVERY)}
    return {
        "without": lambda: fit(trainers[NEVER], steps),
        "looking": lambda: fit(trainers[LOOK_EVERY], steps),
    }


def fit(trainer: Trainer, steps: int) -> float:
    """Seconds that `steps` more steps and the evaluation at their end take, looks included."""
    trainer.total_steps += steps
    started = time.perf_counter()
    trainer.fit()
    return time.perf_counter() - started
