"""The one way to open, read and print what others prepared."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_agent.config.untrusted import (
    MAX_DEPTH,
    UnusableFileError,
    json_value,
    lines,
    number,
    open_regular,
    plain,
    read_bytes,
    read_json_object,
    read_text,
    walk,
)

LIMIT = 1000


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        made.bind(path.name)
        os.chdir(here)


def make_large(path: Path) -> None:
    path.write_bytes(bytes(LIMIT + 1))


def terabyte(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


OTHER_KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (fifo, "is a FIFO, expected a regular file"),
    "socket": (bound_socket, "is a socket, expected a regular file"),
    "folder": (Path.mkdir, "is a folder, expected a regular file"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), "is a folder, expected a regular file"),
    "sparse": (terabyte, "found 1,099,511,627,776 bytes, expected at most 1,000"),
    "too large": (make_large, "found 1,001 bytes, expected at most 1,000"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_only_a_regular_file_of_bounded_size_is_opened(tmp_path: Path, kind: str) -> None:
    make, reason = OTHER_KINDS[kind]
    make(tmp_path / "file")
    for read in (read_bytes, read_text, read_json_object, lambda path, limit: list(lines(path, limit))):
        with pytest.raises(UnusableFileError) as caught:
            read(tmp_path / "file", LIMIT)
        assert caught.value.strerror == reason
        assert str(caught.value) == f"{tmp_path / 'file'}: {reason}"


def test_a_file_with_a_gigabyte_of_holes_is_refused_at_any_limit(tmp_path: Path) -> None:
    terabyte(tmp_path / "file")
    with pytest.raises(UnusableFileError, match="of which 0 are on disk"):
        open_regular(tmp_path / "file", 1 << 50)


def test_a_file_that_says_it_is_empty_is_read_up_to_the_limit() -> None:
    with pytest.raises(UnusableFileError, match="found more bytes than it says, expected at most 10"):
        read_bytes(Path("/proc/self/status"), 10)


@pytest.mark.parametrize("name", ["nul\0", "lone \ud800"])
def test_what_is_no_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnusableFileError, match="is no path"):
        read_bytes(tmp_path / name, LIMIT)


def test_the_errors_of_the_system_stay_with_the_whole_path(tmp_path: Path) -> None:
    for below in (None, tmp_path):
        with pytest.raises(FileNotFoundError) as caught:
            read_bytes(tmp_path / "folder" / "file", LIMIT, below=below)
        assert caught.value.filename == str(tmp_path / "folder" / "file")


def test_no_link_below_the_folder_is_followed(tmp_path: Path) -> None:
    """A link above it is the reader's own choice: outputs/ may be on another disk."""
    for folder in ("run", "other"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "file").write_text(folder)
    run = tmp_path / "run"
    (tmp_path / "linked").symlink_to(run)
    assert read_text(tmp_path / "linked" / "inner" / "file", LIMIT, below=tmp_path / "linked") == "run"
    (run / "file").symlink_to(tmp_path / "other" / "inner" / "file")
    (run / "folder").symlink_to(tmp_path / "other" / "inner")
    (run / "dangling").symlink_to(tmp_path / "nowhere")
    for path, reason in [
        (run / "file", "is a link, expected a regular file"),
        (run / "dangling", "is a link, expected a regular file"),
        (run / "folder" / "file", "folder in it is a link, expected a folder"),
        (run / "inner" / "file" / "x", "file in it is a file, expected a folder"),
        (run / ".." / "other" / "inner" / "file", "found .. in it"),
    ]:
        with pytest.raises(UnusableFileError) as caught:
            read_text(path, LIMIT, below=run)
        assert str(caught.value.strerror).startswith(reason)
    assert read_text(run / "file", LIMIT) == "other"


def test_text_has_no_byte_order_mark_and_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("\ufeffä\r\nb".encode())
    assert read_text(path, LIMIT) == "ä\r\nb"
    assert list(lines(path, LIMIT)) == ["ä", "b"]
    path.write_bytes(b"ab\xff")
    assert read_text(path, LIMIT, errors="replace") == "ab\ufffd"
    with pytest.raises(UnusableFileError, match="no UTF-8 at byte 2"):
        read_text(path, LIMIT)


def test_a_line_without_an_end_is_divided(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (3 << 20))
    assert max(map(len, lines(tmp_path / "file", 1 << 30))) == 1 << 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested more than"),
        ("[" * 100_000 + "]" * 100_000, "nested more than"),
        ('{"a":' * 100_000, "nested more than"),
        ("[1,", "not JSON"),
        ("", "not JSON"),
        ("[1]\0", "not JSON"),
    ],
    ids=range(7),
)
def test_json_that_no_run_writes_is_refused_in_words(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        json_value(text)
    assert len(str(caught.value)) < 200
    (tmp_path / "file").write_text(text, encoding="utf-8")
    with pytest.raises(UnusableFileError, match=reason):
        read_json_object(tmp_path / "file", 1 << 20)


def test_numbers_that_no_float_holds_are_none() -> None:
    huge = ["1e999", "-1e999", str(10**400), "1" * 5000, "NaN", "Infinity", "-Infinity"]
    assert json_value(f"[{','.join(huge)}, 1e308, {10**300}]") == [*[None] * len(huge), 1e308, 10**300]


def test_json_that_runs_write_is_read(tmp_path: Path) -> None:
    value = {"ä\udcff": [1, -2.5, 1e308, 10**300, None, True, "\U0001f600", {"deep": [[[]]]}], "": 2**64}
    (tmp_path / "file").write_text("\ufeff" + json.dumps(value), encoding="utf-8")
    assert read_json_object(tmp_path / "file", LIMIT) == value
    (tmp_path / "file").write_text("[]")
    with pytest.raises(UnusableFileError, match="found a JSON list, expected an object"):
        read_json_object(tmp_path / "file", LIMIT)


def test_a_number_can_be_squared_and_summed() -> None:
    assert [number(value) for value in (3, -2.5, 0, 1e149)] == [3.0, -2.5, 0.0, 1e149]
    wrong: list[object] = [True, None, "3", [], 10**400, -(10**400), 1e150, float("inf"), float("nan")]
    assert [number(value) for value in wrong] == [None] * len(wrong)


def test_plain_text_is_one_printable_line() -> None:
    forged = [character for code in range(0x11000) if not (character := chr(code)).isprintable()]
    assert len(forged) > 10_000
    assert {plain(f"before{character}after") for character in forged} == {"before after"}


def test_plain_text_of_a_terminal() -> None:
    assert plain("a\x1b[2J\r\nb\u202ec\x9bd") == "a [2J b c d"
    assert plain("x" * 100, 10) == "x" * 9 + "…"
    assert plain("two  spaces") == "two  spaces"


def test_a_walk_follows_no_link_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 20))
    deep.mkdir(parents=True)
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    found = {path.relative_to(tmp_path): (folders, files) for path, folders, files in walk(tmp_path)}
    assert len(found) == MAX_DEPTH + 1
    assert found[Path()] == (["d"], ["file", "round"])
    monkeypatch.setattr("ddp_agent.config.untrusted.MAX_ENTRIES", 10)
    with pytest.raises(UnusableFileError, match="more than 10 files"):
        list(walk(tmp_path))
