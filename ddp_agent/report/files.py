"""Files that somebody else wrote, perhaps not to the end: what can be read of them, and never an exception."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Record = dict[str, Any]

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one: ten times as fast


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def json_object(text: str) -> Record:
    """Empty when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def json_lines(path: Path) -> tuple[list[Record], int]:
    """The whole lines, and how many others there are."""
    lines = [line for line in text_of(path).splitlines() if line.strip()]
    records = [record for record in map(json_object, lines) if record]
    return records, len(lines) - len(records)


def yaml_value(path: Path) -> Any:
    """None when it cannot be read."""
    text = text_of(path)
    try:
        return _SafeLoader(text).get_single_data() if _is_tame(text) else None
    except (yaml.YAMLError, ValueError):
        return None


def _is_tame(text: str) -> bool:
    """Hydra writes no aliases, of which a few lines could stand for gigabytes, and nothing that is nested deeply."""
    depth = 0
    for event in yaml.parse(text, _SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 50 or isinstance(event, yaml.AliasEvent):
            return False
    return True


def flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys, and values as Hydra's command line would have them."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def number(value: Any) -> float | None:
    """As a float of which squares and sums are finite, too."""
    measured = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e150
    return float(value) if measured else None


def plain(value: Any) -> str:
    """In one line that is safe to print: a run's name or reason may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
