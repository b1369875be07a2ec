"""Rules for configuration files of unknown origin: an allow-list of the keys that a file may set.

Hydra's node starts programs and sets environment variables. Other keys say which code is trusted. A file may set only
the keys of `FILE_MAY_SET` in Hydra's node, and no key of `ONLY_TYPED`. Whoever types a command may set every key.
"""

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ddp_agent.config.redaction import redacted_value
from ddp_agent.config.untrusted import UnusableFileError, read_bytes, walk

TARGET = "_target_"
DEEPEST = 50
LARGEST_BYTES = 1_000_000  # of a file; reading it takes a second
ONLY_TYPED: Mapping[str, Any] = {"trusted_packages": [], "resume": None}
"""Root keys that count only on the command line, with the value that a file may give: packages whose code runs, and a
run directory whose checkpoints are continued and replaced."""

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MOST_LINES = 8  # of the problems of one file
_WORD = re.compile(r"[\w.,:@%+-]{1,100}")  # no space, quote or line break: a launcher writes it into a script
_SEPARATOR = re.compile(r"[=,_+.-]{1,3}")
_SWEPT_KEY = re.compile(r"\+{0,2}([A-Za-z_]\w*)(/\w+)*(\.\w+)*")  # as typed before the =

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one: ten times as fast
_Fits = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _is_word(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, str) and _WORD.fullmatch(value) is not None)


def _is_words(value: Any) -> bool:
    return all(map(_is_word, value)) if isinstance(value, list) else _is_word(value)


def _is_separator(value: Any) -> bool:
    return isinstance(value, str) and _SEPARATOR.fullmatch(value) is not None


FILE_MAY_SET: Mapping[str, _Fits] = {
    "mode": _is_word,
    **dict.fromkeys(("run.dir", "sweep.dir", "sweep.subdir"), _is_text),  # compared with the current directory later
    "job.name": _is_word,
    "job.chdir": lambda value: value in (False, None),
    "job.config.override_dirname.exclude_keys": _is_words,
    **dict.fromkeys(("job.config.override_dirname.kv_sep", "job.config.override_dirname.item_sep"), _is_separator),
    **dict.fromkeys(
        (
            *("launcher.n_jobs", "launcher.timeout_min", "launcher.array_parallelism", "launcher.mem_gb"),
            *("launcher.nodes", "launcher.tasks_per_node", "launcher.cpus_per_task", "launcher.gpus_per_node"),
            *("launcher.max_num_timeout", "launcher.signal_delay_s"),
            *("sweeper.n_trials", "sweeper.n_jobs", "sweeper.max_batch_size", "sweeper.max_failure_rate"),
            *("sweeper.sampler.seed", "sweeper.sampler.n_startup_trials"),
        ),
        _is_number,
    ),
    **dict.fromkeys(("launcher.partition", "launcher.qos", "launcher.account", "launcher.constraint"), _is_word),
    **dict.fromkeys(("sweeper.study_name", "sweeper.direction"), _is_words),
}
"""Keys of Hydra's node that a file may set, and the values that fit. `sweeper.params.<key>` is checked by its key."""

# Configs of Hydra itself, and those of installed plugins, that a file may choose.
_OWN_CHOICES = (
    *("hydra/config", "hydra/output/default", "hydra/help/default", "hydra/hydra_help/default", "hydra/env/default"),
    *(f"hydra/{log}_logging/{name}" for log in ("job", "hydra") for name in ("default", "none", "disabled", "stdout")),
)
_PLUGINS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")


def file_problems(folders: Iterable[Path]) -> list[str]:
    """Return one line per configuration file below `folders` that must not be used.

    A file that is no YAML passes: it is refused when it is chosen.
    """
    problems = []
    for folder in folders:
        try:
            files = [here / name for here, _, names in walk(folder) for name in names if name.endswith(".yaml")]
        except UnusableFileError as error:
            problems.append(str(error))
            continue
        problems += [f"{file}: {problem}" for file in sorted(files) if (problem := text_problem(file))]
    return problems


def text_problem(file: Path) -> str:
    """Return why the text of a file must not be used, or an empty string."""
    depth = 0
    try:
        content = read_bytes(file, LARGEST_BYTES)
        if content.startswith(_MARKS):
            return "begins with a byte order mark, which hides the first line from Hydra; save it as UTF-8 without one"
        for event in yaml.parse(content, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                return f"found values nested more than {DEEPEST} deep"
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for gigabytes
                return f"found the alias *{event.anchor}, expected an interpolation ${{…}}"
            if isinstance(event, yaml.ScalarEvent) and TARGET in event.value:
                return f"found {TARGET}, but objects are named by `name:` here"
    except UnusableFileError as error:
        return str(error.strerror)
    except (yaml.YAMLError, OSError, ValueError):
        return ""
    return ""


def content_problems(content: Any, typed: Collection[str]) -> list[str]:
    """Return one line per key that a file must not set. `content` is unresolved, and placed where Hydra merges it.

    A key that is `typed` as well passes: the typed value replaces the file's.
    """
    if not isinstance(content, Mapping):
        return []
    lines = [
        _refusal(key, content[key], "which a file must not set")
        for key, harmless in ONLY_TYPED.items()
        if key in content and content[key] != harmless and key not in typed
    ]
    for path, value in _leaves(content["hydra"]) if "hydra" in content else ():
        if not _may_set(path, value) and ".".join(("hydra", *path)) not in typed:
            known = ".".join(path) in FILE_MAY_SET
            why = "expected a plain word or number where a file sets it" if known else "which a file must not set"
            lines.append(_refusal(".".join(("hydra", *path)), value, why))
    return lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more keys"]


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, node


def _may_set(path: tuple[str, ...], value: Any) -> bool:
    if path[:2] == ("sweeper", "params"):
        return len(path) == 3 and _may_sweep(path[2]) and not isinstance(value, list)
    fits = FILE_MAY_SET.get(".".join(path)) if all("." not in part for part in path) else None
    return fits is not None and fits(value)


def _may_sweep(key: str) -> bool:
    """Return True for a key whose values a file may choose. Hydra passes it to jobs as if it had been typed."""
    match = _SWEPT_KEY.fullmatch(key)
    return match is not None and match[1] not in {"hydra", *ONLY_TYPED}


def _refusal(key: str, value: Any, why: str) -> str:
    shown = redacted_value(key, value)
    return f"{key}: found {shown!r}, {why}; type it if it is yours: {key.removeprefix('hydra.sweeper.params.')}=…"


def choice_problem(config: str, package: str, typed: Collection[str]) -> str:
    """Return why an installed config must not be chosen by a file, or an empty string.

    `config` is its path (group/name), `package` is the node that it fills.
    """
    group = config.rpartition("/")[0]
    if group in typed or (config != "hydra" and not config.startswith("hydra/") and not _is_hydras(package)):
        return ""
    expected = {"hydra/output": "hydra"}.get(group, group.replace("/", "."))
    if package == expected and (config in _OWN_CHOICES or group in _PLUGINS):
        return ""
    return f"{group}: found {config.rpartition('/')[2]!r} at {package or 'the root'}, which a file must not choose"


def _is_hydras(package: str) -> bool:
    return package == "hydra" or package.startswith("hydra.")
