"""Train a model on every rank, and synchronise the ranks in the way that `sync=` names.

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

from ddp_agent.__main__ import check, train
from ddp_agent.cli import leave, main

if __name__ == "__main__":
    leave(main(train, check=check, conf=Path(__file__).resolve().parent / "conf"))
