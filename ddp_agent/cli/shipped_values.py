"""The values of the shipped configs, which are those of a setting that nobody typed. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ddp_agent.config.help_text import class_in
from ddp_agent.config.shipped import conf_folder


def shipped_values(cfg: Mapping[str, Any], conf: Path | None = None) -> dict[str, Any]:
    """Return the values of config.yaml, and for each group those of the file that names the class in `cfg`.

    Takes 30 ms. A class of another package has no file.
    """
    conf = conf or conf_folder()
    root = _read(conf / "config.yaml")
    defaults = {
        group: choice for each in root.pop("defaults") if isinstance(each, dict) for group, choice in each.items()
    }
    values = dict(root)
    for group in defaults.keys() & cfg.keys():
        named = cfg[group]["name"] if isinstance(cfg[group], Mapping) else None
        files = [file for file in sorted((conf / group).glob("*.yaml")) if class_in(file) == named]
        values[group] = {**(_read(files[0]) if files else {}), **root.get(group, {})}
        values[group]["name"] = class_in(conf / group / f"{defaults[group]}.yaml")
    return values


def _read(file: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
