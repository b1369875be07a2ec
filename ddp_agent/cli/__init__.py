"""From a command line to a run: which of five things the user typed, and what is done about it.

| command                        | module      | what happens                                                       |
|--------------------------------|-------------|--------------------------------------------------------------------|
| torchrun … train.py …          | rank_process | every rank: agree on the directory, compose, check, train          |
| python train.py …              | relaunch    | compose, check, then become torchrun with ranks of `train.py …`    |
| python train.py -m …           | sweep       | Hydra's sweeper; a job is `python train.py …` in its own directory |
| torchrun … train.py -m …       | sweep       | rank 0 does the same, the other ranks leave                        |
| train.py --help, --cfg job, …  | command     | a text, and no ranks                                               |

`train.py` hands over two functions and its folder of configs, and imports torch only inside them:

    if __name__ == "__main__":
        leave(main(train, check=check, conf=Path(__file__).parent / "conf"))

This folder is all that knows of Hydra. Ranks use its compose API, not `hydra.main`: that would let each of them
choose a directory by its own clock, write the configs and configure the log.
"""

from ddp_agent.cli.command import main
from ddp_agent.cli.composition import LaunchContext
from ddp_agent.distributed.process import leave

__all__ = ["LaunchContext", "leave", "main"]
