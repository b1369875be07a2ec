"""Every reader of texts: a byte order mark is no letter, UTF-16 is a text, and what is none is refused in words."""

import codecs
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import test_speech_commands
from fuzzed_datasets import DATASETS
from fuzzed_readers import Reader
from test_char_lm import load as load_text
from test_char_lm import text_file

from ddp_agent.data.readers.files import opened, read_text
from ddp_agent.data.task import Task
from ddp_agent.errors import DataError

TEXTS = ["stars", "titles", "banking77", "clinc150", "text"]
WORDS = Reader("testing_list.txt", test_speech_commands.write_google, test_speech_commands.load, (DataError,))
TABLES = Reader("train.csv", lambda path: test_speech_commands.write_tables(path / ""), test_speech_commands.load)
READERS = {name: DATASETS[name] for name in TEXTS} | {"word list": WORDS, "word table": TABLES}
ENCODE: dict[str, Callable[[str], bytes]] = {
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
}


def loaded(name: str, folder: Path) -> str:
    READERS[name].write(folder)
    task = READERS[name].read(folder)
    assert isinstance(task, Task)
    return task.data.sha256


def reread(name: str, folder: Path, data: bytes) -> str:
    (folder / READERS[name].victim).write_bytes(data)
    task = READERS[name].read(folder)
    assert isinstance(task, Task)
    return task.data.sha256


@pytest.mark.parametrize("name", READERS)
def test_the_data_are_the_same_in_every_encoding(name: str, tmp_path: Path) -> None:
    plain = loaded(name, tmp_path)
    text = (tmp_path / READERS[name].victim).read_bytes().decode()
    for encode in ENCODE.values():
        assert reread(name, tmp_path, encode(text)) == plain
    if name != "text":  # there, every character counts
        assert reread(name, tmp_path, text.replace("\r\n", "\n").replace("\n", "\r\n").encode()) == plain


@pytest.mark.parametrize("name", READERS)
def test_a_link_out_of_the_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    """Any text of the user could pass for one of these."""
    folder = tmp_path / "data"
    folder.mkdir()
    plain = loaded(name, folder)
    victim, secret = folder / READERS[name].victim, tmp_path / "secret"
    victim.rename(secret)
    victim.symlink_to(secret)
    with pytest.raises(DataError, match=r": found a link to .*secret, expected a file in this folder or below it"):
        READERS[name].read(folder)
    secret.rename(folder / "elsewhere")
    victim.unlink()
    victim.symlink_to("elsewhere")
    assert loaded_again(name, folder) == plain


def loaded_again(name: str, folder: Path) -> str:
    task = READERS[name].read(folder)
    assert isinstance(task, Task)
    return task.data.sha256


def test_the_case_of_the_field(tmp_path: Path) -> None:
    """A text of 8 symbols with a byte order mark has 8 symbols."""
    text_file(tmp_path, "to be or\nnot" * 9)
    plain = load_text(tmp_path, context=4)
    text_file(tmp_path, "\ufeff" + "to be or\nnot" * 9)
    marked = load_text(tmp_path, context=4)
    assert marked.model_arguments == plain.model_arguments == {"vocabulary": 8}


@pytest.mark.parametrize("data", ["text without a mark".encode("utf-16-le"), b"a\0b" * 9])
def test_zero_bytes_are_no_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "input.txt").write_bytes(data)
    with pytest.raises(DataError, match=r"input.txt: found a zero byte as character 2, expected a text in UTF-8"):
        load_text(tmp_path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a FIFO"), ("zero", "a device"), ("folder", "a folder")):
        with (
            pytest.raises(DataError, match=rf"{name}: is {kind}, expected a regular file; it should be a picture"),
            opened(tmp_path / name, "a picture"),
        ):
            pass


def test_a_text_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    assert read_text(tmp_path / "a", "a text", 10) == "x" * 10
    with pytest.raises(DataError, match=r"a: found 10 bytes, expected at most 9; it should be a text"):
        read_text(tmp_path / "a", "a text", 9)
