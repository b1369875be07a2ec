"""Trains a model on every rank, and synchronises the ranks in the way that `sync=` names.

torchrun --standalone --nproc_per_node=2 train.py                        # gradient all-reduce on digits
python train.py sync=local_sgd sync.period=16                            # starts torchrun itself
python train.py -m sync=allreduce,local_sgd,diloco seed=0,1,2            # a sweep
python train.py --help                                                   # all models, datasets, modes, reducers
"""

import os
from pathlib import Path

if __name__ == "__main__":
    # Ranks share the cores of a machine; torch would start as many threads as there are cores in each of them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from ddp_agent.cli import LaunchContext, leave, main
from ddp_agent.outputs.run_directory import RunDirectory


def check(context: LaunchContext) -> None:
    """Refuses a wrong configuration before anything is started."""
    from ddp_agent.training.settings import parse

    parse(context.cfg, choices=context.choices, world_size=context.world_size)


def train(context: LaunchContext, directory: RunDirectory) -> None:
    """One rank of a run: here, and only here, the parts meet."""
    from ddp_agent.run import run

    run(context, directory)


if __name__ == "__main__":
    leave(main(train, check=check, conf=Path(__file__).resolve().parent / "conf"))
