"""Text of `train.py --help`: every choice of every group, read from the configs and the source."""

import re
from pathlib import Path

from ddp_agent.config.registry import definitions
from ddp_agent.config.untrusted import read_text

_LIMIT_BYTES = 1 << 20

GROUPS = {
    "sync": "ways to synchronise",
    "reducer": "ways to average a tensor",
    "cadence": "how the period of a periodic mode changes",
    "model": "models",
    "dataset": "data",
    "slicing": "which samples a rank trains on",
}

_HEAD = """\
Trains one model on every rank, and compares ways to synchronise the ranks.

  torchrun --standalone --nproc_per_node=2 {under_torchrun} sync=local_sgd sync.period=16
  {typed} model=mlp dataset=digits max_steps=200 nproc_per_node=2
  {typed} -m sync=allreduce,local_sgd,diloco seed=0,1,2
"""

_TAIL = """\
Values live in {conf}: a key of config.yaml is set with key=value, a key of a group's file with group.key=value.
  --cfg job      print the whole configuration         -m             run every combination of key=a,b
  --info         say where it comes from               --hydra-help   all flags
A run leaves everything in outputs/<time>/, a sweep in multirun/<time>/<job>/.
"""


def show(conf: Path, typed: str = "python train.py", under_torchrun: str = "train.py") -> int:
    """Print the help text. Return the exit code 0."""
    print(text(conf, typed, under_torchrun))
    return 0


def text(conf: Path, typed: str = "python train.py", under_torchrun: str = "train.py") -> str:
    """Return the help text for the configs in `conf`; examples start with `typed`, or run `under_torchrun`."""
    head = _HEAD.format(typed=typed, under_torchrun=under_torchrun)
    sections = [_section(group, title, conf / group) for group, title in GROUPS.items()]
    return "\n".join([head, *sections, _TAIL.format(conf=conf)])


def _section(group: str, title: str, folder: Path) -> str:
    descriptions = {class_name: line for class_name, (_, line) in definitions(group).items()}
    files = sorted(folder.glob("*.yaml"))
    width = max((len(file.stem) for file in files), default=0)
    lines = [f"  {file.stem:<{width}}  {descriptions.get(class_in(file), '')}".rstrip() for file in files]
    return "\n".join([f"{group}=…  ({title})", *lines, ""])


def class_in(file: Path) -> str:
    """Return the top-level `name:` of a config file, empty if it has none.

    A regular expression is enough, since the other values are not needed. A file that cannot be read has none.
    """
    try:
        text = read_text(file, _LIMIT_BYTES, errors="replace")
    except OSError:
        return ""
    match = re.search(r"^name:\s*[\"']?([\w.:]+)", text, re.MULTILINE)
    return match[1] if match else ""
