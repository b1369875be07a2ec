"""The text of `train.py --help`: what there is to choose from, read from the configs and the source."""

import re
from pathlib import Path

from ddp_agent.config.registry import definitions

GROUPS = {
    "sync": "ways to synchronise",
    "reducer": "ways to average a tensor",
    "cadence": "how the period of a periodic mode changes",
    "model": "models",
    "dataset": "data",
    "slicing": "which samples a rank trains on",
}

_HEAD = """\
Trains one model on every rank, and compares ways to keep the ranks in step.

  torchrun --standalone --nproc_per_node=2 train.py sync=local_sgd sync.period=16
  python train.py model=mlp dataset=digits max_steps=200 nproc_per_node=2
  python train.py -m sync=allreduce,local_sgd,diloco seed=0,1,2
"""

_TAIL = """\
Values live in {conf}: a key of config.yaml is set with key=value, a key of a group's file with group.key=value.
  --cfg job      print the whole configuration         -m             run every combination of key=a,b
  --info         say where it comes from               --hydra-help   all flags
A run leaves everything in outputs/<time>/, a sweep in multirun/<time>/<job>/.
"""


def show(conf: Path) -> int:
    print(text(conf))
    return 0


def text(conf: Path) -> str:
    sections = [_section(group, title, conf / group) for group, title in GROUPS.items()]
    return "\n".join([_HEAD, *sections, _TAIL.format(conf=conf)])


def _section(group: str, title: str, folder: Path) -> str:
    described = {module_class: line for module_class, (_, line) in definitions(group).items()}
    files = sorted(folder.glob("*.yaml"))
    width = max((len(file.stem) for file in files), default=0)
    lines = [f"  {file.stem:<{width}}  {described.get(_class_of(file), '')}".rstrip() for file in files]
    return "\n".join([f"{group}=…  ({title})", *lines, ""])


def _class_of(file: Path) -> str:
    """The top-level `name:`. A regular expression, since the other values are of no interest here."""
    found = re.search(r"^name:\s*[\"']?([\w.:]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""
