"""Suggestions for keys and choices that were typed wrong, from the shipped configs. No class is imported."""

import difflib
from collections.abc import Iterable

from ddp_agent.config.shipped import shipped_keys

LISTED = 14  # a longer list of known keys hides the answer
# Names of other programs and papers for the keys and choices here.
_SYNONYMS = {
    "adam": "adamw",
    "batch": "global_batch_size",
    "ddp": "allreduce",
    "fedavg": "local_sgd",
    "h": "period",
    "learning_rate": "lr",
    "local_steps": "period",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "steps": "max_steps",
    "sync_every": "period",
    "wd": "weight_decay",
}


def unknown(path: str, known: Iterable[str], owner: str = "") -> str:
    """Return the rest of the line for the unknown key `path`, such as `sync.period`, where `known` keys are.

    `owner`: the name of the class that its group has chosen.
    """
    known = sorted(known)
    group, _, typed = path.rpartition(".")
    key = _SYNONYMS.get(typed.lower(), typed)
    if key not in known:
        if owner and (choices := _choices_with(group, key)):
            more = f" and {len(choices) - 3} more" if len(choices) > 3 else ""
            verb = "have" if len(choices) > 1 else "has"
            return f"unknown key: {owner} has no {key}; {group}={', '.join(choices[:3])}{more} {verb} it"
        if homes := _homes(key):
            return f"unknown key, did you mean {' or '.join(homes[:3])}?"
    near = nearest(typed, known)
    everywhere = {each for choices in shipped_keys().values() for keys in choices.values() for each in keys}
    if not near and (homes := _homes(nearest(typed, sorted(everywhere)))):
        near = " or ".join(homes[:3])
    listed = f" (known: {', '.join(known) or 'none'})" if len(known) <= LISTED else " (--cfg job prints all keys)"
    return f"unknown key{f', did you mean {near}?' if near else ''}{listed}"


def nearest(typed: str, known: Iterable[str]) -> str:
    """Return the known word that was probably meant, "" if none is near."""
    known = list(known)
    meant = _SYNONYMS.get(typed.lower(), typed)
    if meant in known:
        return meant
    lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(meant.lower(), lower, n=1)
    return lower[near[0]] if near else ""


def _choices_with(group: str, key: str) -> list[str]:
    """Return the choices of a group whose file has this key, the simplest first."""
    choices = shipped_keys().get(group, {})
    return sorted((choice for choice in choices if key in choices[choice]), key=lambda choice: len(choices[choice]))


def _homes(key: str) -> list[str]:
    """Return the places of a key: at the root, or in groups."""
    places = {f"{group}.{key}" if group else key for group in shipped_keys() if _choices_with(group, key)}
    return sorted(places, key=lambda place: (place != key, place))
