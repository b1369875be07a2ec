"""The secret of a run, and a store whose values only those who know it can write.

torch's store has no password: whoever reaches its port can list, read, write and delete keys. A rank's control values
(failures, stop requests, heartbeats, agreements) therefore carry a code over their key and text (HMAC-SHA256 with the
run's secret), and a value without the right code is ignored as if it were not there. The secret travels in the
environment, which other users of the machine cannot read, and never through the store.

`python train.py` and the scripts in launch/ make a secret. Under a bare torchrun, or on several machines, the user may
set the variable. Without it the codes have an empty key: they protect from accidents and not from people.
"""

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TypeVar

from ddp_agent.distributed.c10d import PrefixStore, Store

VARIABLE = "DDP_AGENT_SECRET"
MOST_BYTES = 32_768  # of a value, its code included
POLL_S = 0.002
MOST_POLL_S = 0.1
_CODE = 32  # hexadecimal digits: 128 bits

T = TypeVar("T")

_log = logging.getLogger(__name__)


def ensure(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make a secret for this process and those that it starts, unless there is one."""
    if not environment.get(VARIABLE):
        environment[VARIABLE] = secrets.token_hex(16)


def secret(environment: Mapping[str, str] = os.environ) -> str:
    """Return the secret, or an empty string where nobody has made one."""
    return environment.get(VARIABLE, "")


def prefix(name: str) -> str:
    """Return a prefix of keys that nobody can guess without the secret. Its hash shows nothing of the secret."""
    own = secret()
    return f"{name}/{hashlib.sha256(f'prefix {own}'.encode()).hexdigest()[:_CODE]}" if own else name


class SignedStore:
    """Texts in a part of a store, each with a code. `name` is unique for this part among all that the run ever uses.

    A `parse` function returns the value of a text and raises ValueError for one that is malformed. A foreign or
    malformed value is ignored, and logged once per key.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = PrefixStore(name, store)
        self._secret = secret().encode()
        self._ignored: set[str] = set()

    def set(self, key: str, text: str) -> None:
        """Write a value."""
        self._store.set(key, self.signed(key, text))

    def get(self, key: str, parse: Callable[[str], T]) -> T | None:
        """Return a value, or None if it is not there or not one of this run's. Does not wait."""
        return self.read(key, self._store.get(key), parse) if self._store.check([key]) else None

    def get_all(self, keys: Sequence[str], parse: Callable[[str], T]) -> list[T | None]:
        """Return the values of keys that exist, in one request. None for one that is not this run's."""
        values = self._store.multi_get(list(keys)) if keys else []
        return [self.read(key, value, parse) for key, value in zip(keys, values, strict=True)]

    def wait(self, key: str, parse: Callable[[str], T], timeout_s: float) -> T:
        """Return a value as soon as it is there. Raise TimeoutError after `timeout_s`.

        Polls: a foreign value would end the store's own `wait`.
        """
        deadline, pause_s = time.monotonic() + timeout_s, POLL_S
        while (value := self.get(key, parse)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{key} did not appear within {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, MOST_POLL_S)
        return value

    def first(self, key: str, text: str, parse: Callable[[str], T]) -> T:
        """Write a value unless one of this run's is there. Return the value that is there then."""
        signed = self.signed(key, text)
        there = self._store.compare_set(key, "", signed)
        found = self.read(key, there, parse)
        if found is None:
            self._store.set(key, signed)
            return parse(text)
        return found

    def delete(self, key: str) -> None:
        """Delete a value that nobody reads any more."""
        self._store.delete_key(key)

    def signed(self, key: str, text: str) -> str:
        """Return a text with its code, for a way that is not the store."""
        return self._code(key, text) + text

    def read(self, key: str, value: bytes, parse: Callable[[str], T]) -> T | None:
        """Return the value of a text with its code, or None for one that is not this run's."""
        try:
            if len(value) > MOST_BYTES:
                raise ValueError(f"{len(value)} bytes")
            whole = value.decode()
            code, text = whole[:_CODE], whole[_CODE:]
            if not hmac.compare_digest(code.encode(), self._code(key, text).encode()):
                raise ValueError("written by somebody without this run's secret")
            return parse(text)
        except (ValueError, RecursionError) as error:
            if key not in self._ignored:
                self._ignored.add(key)
                _log.warning("ignored the value of %s in torchrun's store: %s; see SECURITY.md", key, str(error)[:200])
            return None

    def _code(self, key: str, text: str) -> str:
        message = f"{self.name}\0{key}\0{text}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:_CODE]
