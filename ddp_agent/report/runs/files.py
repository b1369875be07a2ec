"""Readers for files of another program, which may be damaged or cut off. They return what is whole and never raise."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Record = dict[str, Any]

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, but optional


def text_of(path: Path) -> str:
    """Return the file's text, or "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def json_object(text: str) -> Record:
    """Return the JSON object, or {} if `text` is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def json_lines(path: Path) -> tuple[list[Record], int]:
    """Return the lines that are whole JSON objects, and the number of the others."""
    lines = [line for line in text_of(path).splitlines() if line.strip()]
    records = [record for record in map(json_object, lines) if record]
    return records, len(lines) - len(records)


def yaml_value(path: Path) -> Any:
    """Return the value of a yaml file, or None if it cannot be read."""
    text = text_of(path)
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


def number(value: Any) -> float | None:
    """Return `value` as a float, or None unless it is a number whose squares and sums are finite too."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e150
    return float(value) if usable else None


def one_line(value: Any) -> str:
    """Return `value` as one line of printable characters: a run's name or reason may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
