"""Redaction of secrets in the files and texts that a run leaves behind.

A secret is recognised by the name of its key or environment variable, by its shape, or by its randomness
(`secret_text`). Its value is left out of configurations that are written. An error, also one of other code, may quote
it, so it is left out of logs, reasons and the console as well.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ddp_agent.config.secret_text import HIDDEN, is_secret_value, names_secret, secrets_in, without_secrets

SHORTEST = 6  # characters; a shorter secret is not searched in texts, since it would hide ordinary words
SHORTEST_VARIABLE = 12  # of the environment, where a name such as DESKTOP_SESSION may stand for ordinary words

_INTERPOLATION = re.compile(r"\$\{[\w.:]*\}")  # names the place of a value, and holds no value
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)")
_PAIR = re.compile(r"""([\w.-]+)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|\$\{[^}]*\}|[^\s,{}\[\]]+)""")
_OVERRIDE = re.compile(r"[+~]{0,2}([\w./@-]+)=")

_known: set[str] = set()


def remember_environment() -> None:
    """Let `scrubbed` leave the values of secret environment variables out of texts, whatever key they come through."""
    values = [value for name, value in os.environ.items() if names_secret(name) and not value.startswith("/")]
    _known.update(value for value in values if len(value) >= SHORTEST_VARIABLE)


def remember(config: Any) -> None:
    """Let `scrubbed` leave the secrets of `config` out of texts from now on. `config` may be resolved or not."""
    _known.update(text for text in _secrets(config) if len(text) >= SHORTEST)


def _secrets(config: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _secrets(value, secret or names_secret(key) or _is_secret(key, value))
    elif isinstance(config, list | tuple):
        for item in config:
            yield from _secrets(item, secret)
    elif isinstance(config, str):
        yield from (os.environ.get(name, "") for name in _VARIABLE.findall(config) if secret or names_secret(name))
        yield from secrets_in(config)
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
    """Return `text` without the secrets that were remembered, and without what looks like one."""
    return without_secrets(_without_known(text))


def _without_known(text: str) -> str:
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def holds_known_secret(text: str) -> bool:
    """Return True if a secret that was remembered is a part of `text`."""
    return _without_known(text) != text


def redacted(config: Any) -> Any:
    """Return a copy of a tree of mappings and lists in which the value of every secret is replaced."""
    if isinstance(config, Mapping):
        return {
            scrubbed(key) if isinstance(key, str) else key: (
                _hidden(value) if names_secret(key) or _is_secret(key, value) else redacted(value)
            )
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(map(redacted, config))
    return redacted_override(config) if isinstance(config, str) else config


def redacted_value(key: object, value: Any) -> Any:
    """Return the value of a key as it may be shown. The key may look like a secret itself."""
    (shown,) = redacted({key: value}).values()
    return shown


def _is_secret(key: object, value: Any) -> bool:
    return isinstance(value, str) and is_secret_value(key, value)


def _hidden(value: Any) -> Any:
    named = isinstance(value, str) and _INTERPOLATION.fullmatch(value.strip("'\""))
    return value if value is None or named else HIDDEN


def redacted_override(text: str) -> str:
    """Return one or several overrides in Hydra's notation without secrets. Any other text is only scrubbed."""
    override = _OVERRIDE.match(text)
    if override is None:
        return scrubbed(text)
    if names_secret(override[1]) or is_secret_value(override[1], text[override.end() :].strip("'\"")):
        return f"{override[0]}{_hidden(text[override.end() :])}"
    return scrubbed(_PAIR.sub(_without_value, text))


def _without_value(pair: re.Match[str]) -> str:
    return f"{pair[1]}{pair[2]}{_hidden(pair[3])}" if names_secret(pair[1]) else pair[0]
