"""Recognition of secrets: by the name of a key, by the shape of a token, by randomness.

Addresses are an allow-list: what is written of one is its scheme, host and path.
"""

import re
from itertools import pairwise

HIDDEN = "<redacted>"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = frozenset(
    {
        "secret", "secrets", "password", "passwords", "passwd", "passphrase", "passcode", "pwd", "credential",
        "credentials", "authorization", "auth", "bearer", "cookie", "cookies", "jwt", "signature", "sig", "sas",
        "dsn", "webhook", "webhooks", "otp", "session", "sessionid", "private", "apikey", "apikeys",
        "accesskey", "secretkey", "privatekey", "apitoken", "authtoken", "accesstoken", "connectionstring",
        "connstr", "netrc", "pat",
    }
)  # fmt: skip
_LAST_WORDS = frozenset(("token", "key", "keys"))  # max_tokens, key_dim and token_count are none
_KEY_OF = frozenset(
    {
        "api", "access", "secret", "private", "auth", "account", "signing", "encryption", "ssh", "master",
        "shared", "service",
    }
)  # fmt: skip
_SUBSTRING = re.compile(r"passw|secret|credential|apikey|connection_?string", re.IGNORECASE)

_ADDRESS = re.compile(
    # of a user part, a query and a fragment nothing is kept
    r"(?<=://)([^\s'\"?#]*@)?([^\s'\"?#]*)(\?[^\s'\"#]*)?(#[^\s'\"]*)?"
)
_HOOK = re.compile(r"(?<=/)(services|webhooks)/[^\s'\"]+")  # of chats: the path is the secret

# Tokens that their issuers made recognisable.
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{10,}|gh[oprsu]_[A-Za-z0-9]{10,}|github_pat_\w{10,}|glpat-[\w-]{10,}|npm_[A-Za-z0-9]{20,}"
    r"|pypi-[\w-]{20,}|sk-[\w-]{10,}|[prs]k_(?:live|test)_\w{10,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|ya29\.[\w-]+"
    r"|xox[a-z]-[\w-]{8,}|eyJ[\w-]{5,2000}\.[\w-]+(?:\.[\w-]*)?|SG\.[\w-]{10,200}\.[\w-]+|wandb_v\d_\w+|dop_v\d_\w+"
    r"|AGE-SECRET-KEY-\w+)",
    re.DOTALL,
)
_BEARER = re.compile(r"(?i)\b(bearer|authorization:?(?:\s+\w+)?)(\s+)[\w.~+/=-]{8,}")
_ASSIGNED = re.compile(  # no call and no comparison: a traceback shows source code
    r"""(?<![\w.-])([\w.-]{1,100}+)(["']?\s*=(?!=)\s*|["']\s*:\s*)("[^"]*"|'[^']*'|[^\s,;&{}\[\]()"'=][^\s,;&{}\[\]()"']*+)(?!\()"""
)
_NO_VALUES = ("", HIDDEN, "None", "null", "True", "False", "true", "false")

_CANDIDATE = re.compile(r"[A-Za-z0-9+/=_-]{20,}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_HASH_WORDS = frozenset(
    {
        "sha", "sha1", "sha256", "md5", "hash", "digest", "checksum", "commit", "revision", "id", "uuid",
        "name", "resume", "root", "file", "path", "dir",
    }
)  # fmt: skip


def names_secret(key: object) -> bool:
    """Return True if the value of `key` is a secret, by the key's name.

    Examples:
        >>> names_secret("api_token"), names_secret("X-Amz-Signature"), names_secret("tokens_per_s")
        (True, True, False)
    """
    text = str(key)
    words = _words(text)
    if not words:
        return False
    if _SECRET_WORDS & set(words) or words[-1] in _LAST_WORDS or _SUBSTRING.search(text):
        return True
    return any(first in _KEY_OF and second == "key" for first, second in pairwise(words))


def _words(key: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(key) if not word.isdecimal()]


def without_secrets(text: str) -> str:
    """Return `text` without the parts that look like a secret. Hashes in hexadecimal digits stay."""
    if "://" in text:
        text = _ADDRESS.sub(_address, text)
    for pattern in (_SHAPES, _BEARER):
        text = pattern.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}" if found.re is _BEARER else HIDDEN, text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(_assigned, text)
    return _CANDIDATE.sub(_if_random, text)


def secrets_in(text: str) -> list[str]:
    """Return the tokens of known shapes in `text`."""
    return _SHAPES.findall(text)


def is_secret_value(key: object, value: str) -> bool:
    """Return True for a long hexadecimal value under a key that is not one of a hash, a name or a path."""
    words = {word.lower() for word in re.findall(r"[A-Za-z]+\d*", str(key))}
    return _HEX.fullmatch(value) is not None and not words & _HASH_WORDS and not words & {"sha256", "sha1"}


def _address(found: re.Match[str]) -> str:
    user, place, query, fragment = found.groups()
    hidden = {"": user, "?": query, "#": fragment}
    parts = {mark: f"{mark}{HIDDEN}" if part and len(part) > 1 else "" for mark, part in hidden.items()}
    at = "@" if parts[""] else ""
    place = _HOOK.sub(rf"\1/{HIDDEN}", place)
    return f"{parts['']}{at}{place}{parts['?']}{parts['#']}"


def _assigned(found: re.Match[str]) -> str:
    """Hide the value of an assignment. `group.key=value` stands in advice, and ${…} names a place."""
    words = _words(found[1])
    named = names_secret(found[1]) and (words[-1] not in ("key", "keys") or bool(_KEY_OF & set(words)))
    if not named or found[3].strip("'\"") in _NO_VALUES or "${" in found[3]:
        return found[0]
    return f"{found[1]}{found[2]}{HIDDEN}"


def _if_random(found: re.Match[str]) -> str:
    text = found[0]
    if _is_random(text):
        return HIDDEN
    return "/".join(HIDDEN if len(part) >= 20 and _is_random(part) else part for part in text.split("/"))


def _is_random(text: str) -> bool:
    """Return True for letters and digits that change their kind more often than in names.

    Random letters of both cases and digits change in 62 % of the places, and those of one case in 40 %. Names do in 10
    to 30 %, and rarely have 24 letters and digits without a separator. A number in hexadecimal digits may be a hash.
    """
    kinds = [_kind(letter) for letter in text]
    present = set(kinds) - {""}
    pairs = [(one, two) for one, two in pairwise(kinds) if one and two]
    if len(pairs) < 16 or len(present) < 2 or "0" not in present:
        return False
    changes = sum(one != two for one, two in pairs) / len(pairs)
    if len(present) == 3:
        return changes >= 0.4
    return len(text) >= 24 and len(pairs) == len(text) - 1 and changes >= 0.2 and not _HEX.fullmatch(text)


def _kind(letter: str) -> str:
    if letter.isdigit():
        return "0"
    return "A" if letter.isupper() else "a" if letter.islower() else ""
