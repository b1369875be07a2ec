"""Errors of Hydra, OmegaConf and YAML as one line: the override, what is wrong with it, what would be right."""

import sys
from collections.abc import Iterable

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ddp_agent.config.redaction import redacted_override, scrubbed
from ddp_agent.config.registry import LONGEST
from ddp_agent.config.suggestions import nearest, unknown
from ddp_agent.config.untrusted import plain


def explain(error: Exception, override: str = "", cfg: DictConfig | None = None) -> str:
    """Return one line: the override, what is wrong with it, what would be right. `cfg` is composed without it."""
    text, override = str(error), plain(redacted_override(override), LONGEST)
    if isinstance(error, OverrideParseException):
        return f"{override}: expected key=value; quote a value with spaces, = or brackets: key=\\'a b\\'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}: found {choice!r}{_nearest(choice, error.options)}"
    if text.startswith("Could not override") and cfg is not None:
        return _first_unknown(override.lstrip("+~").partition("=")[0], cfg)
    if "--multirun" in text:
        return f"{override}: several values; start a run for each with -m, or put a list in brackets"
    return f"{override}: {in_one_line(error)}" if override else in_one_line(error)


def _first_unknown(key: str, cfg: DictConfig) -> str:
    node, path = cfg, ""
    for part in key.split("."):
        path = f"{path}.{part}" if path else part
        if not OmegaConf.is_dict(node):
            return f"{path}: unknown key, {path.rpartition('.')[0]} is a value"
        if part not in node:
            owner = OmegaConf.select(node, "name") if node is not cfg else None
            keys = (str(known) for known in node if known not in ("hydra", "name"))
            return f"{path}: {unknown(path, keys, str(owner or ''))}"
        node = OmegaConf.select(node, part)
    return f"{key}: cannot be set"


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = nearest(name, known)
    return (f", did you mean {near}?" if near else "") + f" (known: {', '.join(known)})"


def in_one_line(error: Exception) -> str:
    """Return a message of Hydra or OmegaConf without the search path, the link to the manual and the types of nodes."""
    if isinstance(error, UnicodeDecodeError):
        return f"found no UTF-8 at byte {error.start:,}, expected a text file"
    if isinstance(error, RecursionError):
        return "found values nested too deeply"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return f"found a number of more than {sys.get_int_max_str_digits():,} digits"
    lines = [line.strip() for line in (str(error) or str(error.__cause__)).splitlines()]
    noise = ("See https", "full_key:", "object_type", "reference_type", "provider=", "Config search path")
    message = "; ".join(line for line in lines if line and not line.startswith(noise))
    explained = isinstance(error, HydraException | OmegaConfBaseException | YAMLError)
    return scrubbed(message if explained else f"{type(error).__name__}: {message}")
