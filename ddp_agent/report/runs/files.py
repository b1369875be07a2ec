"""Readers for files of another program, which may be damaged or cut off. They return what is whole and never raise."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ddp_agent.config.untrusted import json_value, lines, read_text

Record = dict[str, Any]
_LIMIT_BYTES = 64 << 20  # a summary of 1000 ranks and classes has less than 1 MB
_METRICS_LIMIT_BYTES = 4 << 30

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, but optional


def text_of(path: Path, *, below: Path) -> str:
    """Return the file's text, or "" if it cannot be read. No link in the folder `below` is followed."""
    try:
        return read_text(path, _LIMIT_BYTES, below=below, errors="replace")
    except OSError:
        return ""


def json_object(text: str) -> Record:
    """Return the JSON object, or {} if `text` is anything else."""
    try:
        value = json_value(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def json_lines(path: Path, *, below: Path) -> tuple[list[Record], int]:
    """Return the lines that are whole JSON objects, and the number of the others."""
    records, damaged = [], 0
    try:
        for line in lines(path, _METRICS_LIMIT_BYTES, below=below):
            if record := json_object(line):
                records.append(record)
            elif line.strip():
                damaged += 1
    except OSError:
        pass  # the run then lacks its last evaluation, and that is said
    return records, damaged


def yaml_value(path: Path, *, below: Path) -> Any:
    """Return the value of a yaml file, or None if it cannot be read."""
    text = text_of(path, below=below)
    try:
        return _SafeLoader(text).get_single_data() if _is_harmless(text) else None
    except (yaml.YAMLError, ValueError):
        return None


def _is_harmless(text: str) -> bool:
    """Return False for aliases and deep nesting. Hydra writes neither, and a few aliases can stand for gigabytes."""
    depth = 0
    for event in yaml.parse(text, _SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 50 or isinstance(event, yaml.AliasEvent):
            return False
    return True


def flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys with their values, written as on Hydra's command line."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
