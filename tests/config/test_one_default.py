"""A default that stands in a signature and in a file of conf/ is one: library and command line train alike."""

from typing import Any

import pytest
from configs import files, node

from ddp_agent.config.fields import REQUIRED, coerce, parameters
from ddp_agent.config.registry import PLACES, locate


def differing(values: dict[str, Any], target: type) -> dict[str, tuple[Any, Any]]:
    """Return by name the file's value and the signature's default, where these differ."""
    accepted = parameters(target)
    both = {key: accepted[key] for key in accepted.keys() & values.keys() if accepted[key].default is not REQUIRED}
    coerced = {key: coerce(values[key], parameter.annotation) for key, parameter in both.items()}
    return {key: (value, both[key].default) for key, value in coerced.items() if value != both[key].default}


CASES = [(group, name) for group in PLACES for name in files(group)]


@pytest.mark.parametrize(("group", "name"), CASES)
def test_file_and_signature_have_one_default(group: str, name: str) -> None:
    values = node(group, name)
    assert differing(values, locate(group, values["name"])) == {}


def test_every_group_is_compared_and_a_difference_is_seen() -> None:
    assert {group for group, _ in CASES} == set(PLACES)
    values = node("sync", "diloco", outer_momentum=0.9)
    assert differing(values, locate("sync", "DiLoCo")) == {"outer_momentum": (0.9, 0.6)}
