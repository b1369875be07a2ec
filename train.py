"""Train a PyTorch model on many ranks, which synchronise in the way that `sync=` names.

    torchrun --standalone --nproc_per_node=2 train.py                        # all-reduce of gradients, on digits
    python train.py sync=local_sgd sync.period=16                            # starts torchrun itself
    python train.py sync=diloco reducer=int8 model=cnn dataset=cifar10 data_root=data
    python train.py resume=outputs/first max_steps=4000                      # continues from the newest checkpoint
    python train.py -m sync=allreduce,local_sgd,diloco seed=0,1,2            # a sweep over all combinations
    python train.py --help                                                   # all models, datasets, modes, reducers
    python train.py --cfg job                                                # the whole configuration

Everything goes into outputs/<time>/: metrics.jsonl, summary.json, checkpoints, TensorBoard, the final model. conf/
explains each key, `python -m ddp_agent.report outputs/*` compares runs, ddp_agent/training/trainer.py is the loop.
"""

import os
from pathlib import Path

if __name__ == "__main__":
    # Ranks share the cores of a machine. Without this, torch would start as many threads as cores in each rank.
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"

from ddp_agent.__main__ import check, train
from ddp_agent.cli import leave, main

if __name__ == "__main__":
    leave(main(train, check=check, conf=Path(__file__).resolve().parent / "conf"))
