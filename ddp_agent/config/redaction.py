"""Redaction of secrets in the files and texts that a run leaves behind.

A secret is recognised by the name of its key or environment variable. Its value is left out of configurations that are
written. An error, also one of other code, may quote it, so it is left out of logs and reasons as well.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "<redacted>"
SHORTEST = 6  # characters; a shorter secret is not searched in texts, since it would hide ordinary words

_NAME = re.compile(
    r"secret|passw|passphrase|credential|authorization"
    r"|(^|[_.-]|api|access|auth|private|bearer)(token|key|keys)$",
    re.IGNORECASE,
)
_INTERPOLATION = re.compile(r"\$\{[\w.:]*\}")  # names the place of a value, and holds no value
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)")
_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_PAIR = re.compile(r"""([\w.-]+)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|\$\{[^}]*\}|[^\s,{}\[\]]+)""")
_OVERRIDE = re.compile(r"[+~]{0,2}([\w./@-]+)=")

_known: set[str] = set()


def names_secret(key: object) -> bool:
    """Return True if the value of `key` is a secret, by the key's name.

    Examples:
        >>> names_secret("api_token"), names_secret("tokens_per_s")
        (True, False)
    """
    return _NAME.search(str(key)) is not None


def remember(config: Any) -> None:
    """Let `scrubbed` leave the secrets of `config` out of texts from now on. `config` may be resolved or not."""
    _known.update(text for text in _secrets(config) if len(text) >= SHORTEST)


def _secrets(config: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _secrets(value, secret or names_secret(key))
    elif isinstance(config, list | tuple):
        for item in config:
            yield from _secrets(item, secret)
    elif isinstance(config, str):
        yield from (os.environ.get(name, "") for name in _VARIABLE.findall(config) if secret or names_secret(name))
        if secret and not _INTERPOLATION.fullmatch(config.strip("'\"")):
            yield config
    elif secret and isinstance(config, int | float) and not isinstance(config, bool):
        yield str(config)


def remember_overrides(overrides: Iterable[str]) -> None:
    """Let `scrubbed` leave the secrets of overrides as typed out of texts from now on."""
    for override in overrides:
        key, _, value = override.partition("=")
        remember({key: value.strip("'\"")})
        remember([{pair[1]: pair[3].strip("'\"")} for pair in _PAIR.finditer(value)])


def scrubbed(text: str) -> str:
    """Return `text` without the secrets that were remembered, and without passwords in URLs."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _IN_URL.sub(HIDDEN, text)


def redacted(config: Any) -> Any:
    """Return a copy of a tree of mappings and lists in which the value of every secret is replaced."""
    if isinstance(config, Mapping):
        return {key: _hidden(value) if names_secret(key) else redacted(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(redacted, config))
    return redacted_override(config) if isinstance(config, str) else config


def _hidden(value: Any) -> Any:
    named = isinstance(value, str) and _INTERPOLATION.fullmatch(value.strip("'\""))
    return value if value is None or named else HIDDEN


def redacted_override(text: str) -> str:
    """Return one or several overrides in Hydra's notation without secrets. Any other text is only scrubbed."""
    override = _OVERRIDE.match(text)
    if override is None:
        return scrubbed(text)
    if names_secret(override[1]):
        return f"{override[0]}{_hidden(text[override.end() :])}"
    return scrubbed(_PAIR.sub(_without_value, text))


def _without_value(pair: re.Match[str]) -> str:
    return f"{pair[1]}{pair[2]}{_hidden(pair[3])}" if names_secret(pair[1]) else pair[0]
