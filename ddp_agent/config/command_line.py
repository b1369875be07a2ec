"""Quoting of commands that are printed: what is shown can be pasted into a shell, and Hydra reads the same value."""

import os
import re
import shlex
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")  # Hydra reads it as it stands
_OTHER_TYPES = ("null", "true", "false", "nan", "inf")
_INTERPOLATION = re.compile(r"(\\*)\$\{")


def override(key: str, value: str | Path) -> str:
    """Return `key=value` for a command line: quoted for Hydra's grammar, and then for the shell.

    Examples:
        >>> print(override("resume", "outputs/first"), override("resume", "outputs/lr=0.1, a"))
        resume=outputs/first 'resume="outputs/lr=0.1, a"'
    """
    return shell_word(f"{key}={for_hydra(str(value))}")


def shell_word(text: str) -> str:
    """Return a word that bash reads as `text`. Line breaks and other unprintable characters are shown as escapes."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def for_hydra(value: str) -> str:
    """Return `value` as Hydra's grammar of overrides has to be told: quoted, unless it is a plain word or path."""
    if _PLAIN.fullmatch(value) and value.lower() not in _OTHER_TYPES:
        return value
    # OmegaConf: \${ is no interpolation, and backslashes before it stand for half as many.
    value = _INTERPOLATION.sub(lambda found: found[1] * 2 + r"\${", value)
    mark = "'" if '"' in value else '"'  # double quotes where possible: the shell's are single
    # Hydra: the same holds before a quote and at the end.
    before = re.compile(rf"(\\*)({mark}|\Z)")
    return mark + before.sub(lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), value) + mark
