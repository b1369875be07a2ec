"""Command lines: each of the five kinds that a user can type, and the module that turns it into a run.

| command                        | module       | what happens                                                       |
|--------------------------------|--------------|--------------------------------------------------------------------|
| torchrun … train.py …          | rank_process | every rank: agree on the directory, compose, check, train          |
| python train.py …              | relaunch     | compose, check, then become torchrun with ranks of `train.py …`    |
| python train.py -m …           | sweep        | Hydra's sweeper; a job is `python train.py …` in its own directory |
| torchrun … train.py -m …       | sweep        | rank 0 does the same, the other ranks leave                        |
| train.py --help, --cfg job, …  | command      | a text, and no ranks                                               |

`ddp-agent train` stands for `train.py` where the package is installed (`program`). Both call `main` with two functions,
which import torch only when they are called, and with the folder of configs.

No other folder uses Hydra. Ranks use its compose API instead of `hydra.main`, with which each rank would choose a
directory by its own clock, write the configs and configure the log.
"""

from ddp_agent.cli.command import main
from ddp_agent.cli.composition import LaunchContext
from ddp_agent.distributed.process import leave

__all__ = ["LaunchContext", "leave", "main"]
