"""Every dataset that reads files says what they are and how to get them: without a folder, and in a wrong one."""

from pathlib import Path
from typing import Any

import pytest
from configs import files, node

from ddp_agent.config.fields import parameters
from ddp_agent.config.registry import build, locate
from ddp_agent.data.source import Source
from ddp_agent.errors import ConfigError, DataError

NODES = {name: node("dataset", name) for name in files("dataset")}
WITH_FILES = [name for name, values in NODES.items() if "data_root" in parameters(locate("dataset", values["name"]))]
CHOICES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in WITH_FILES),
    ("intents", {"corpus": "banking77"}),
    ("speech_commands", {"corpus": "arabic16"}),
    ("movielens", {"predict": "ranking"}),
    ("char_lm", {"file": "mine.txt"}),
]


def source_of(name: str, values: dict[str, Any], folder: Path) -> Source:
    source = build("dataset", NODES[name] | values, data_root=folder).source
    assert isinstance(source, Source)
    return source


@pytest.mark.parametrize(("name", "values"), CHOICES)
def test_a_missing_folder_is_explained(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    source = source_of(name, values, tmp_path)
    with pytest.raises(
        ConfigError, match=r"data_root: found None, expected a path \(set data_root=<folder>\)"
    ) as caught:
        build("dataset", NODES[name] | values, data_root=None)
    for fact in (source.content, source.size, source.licence, source.url, source.layout):
        assert fact and fact in str(caught.value)
    can_download = "download" in NODES[name] and values.get("corpus") != "arabic16"
    assert ("dataset.download=true" in str(caught.value)) == can_download == source.downloads


@pytest.mark.parametrize(("name", "values"), CHOICES)
@pytest.mark.parametrize("there", ["nothing", "something else", "no folder"])
def test_a_wrong_folder_is_explained(name: str, values: dict[str, Any], there: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    if there != "no folder":
        folder.mkdir()
    if there == "something else":
        (folder / "holiday.mov").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        build("dataset", NODES[name] | values, data_root=folder).load()
    found = {"nothing": "an empty folder", "something else": "only holiday.mov", "no folder": "no such folder"}[there]
    assert str(folder) in str(caught.value) and found in str(caught.value)
    layout = source_of(name, values, folder).layout
    assert layout in str(caught.value) or (name, values) == CHOICES[-1]  # a text of one's own lies anywhere
