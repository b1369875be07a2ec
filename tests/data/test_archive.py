"""Archives are unpacked where they belong and nowhere else, and no larger than they say and may be."""

import io
import tarfile
from pathlib import Path

import pytest

from ddp_agent.data.readers.archive import stays_inside, unpack
from ddp_agent.errors import DataError

Contents = dict[str, bytes]
GOOD = {"a/one.txt": b"one", "two": b"2" * 5000}


def as_tar(contents: Contents, mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def refused(content: bytes, folder: Path, most_bytes: int = 10_000) -> str:
    """The message, when nothing outside of `folder`/in was written."""
    archive = folder / "archive"
    archive.write_bytes(content)
    with pytest.raises(DataError) as caught:
        unpack(archive, folder / "in", most_bytes=most_bytes)
    assert {path.name for path in folder.iterdir()} <= {"archive", "in", "linked"}
    assert str(caught.value).startswith(f"{archive}: found ")
    return str(caught.value)


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_what_was_packed_is_unpacked(mode: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(as_tar(GOOD, mode))
    for _ in range(2):  # over what is there, too
        unpack(tmp_path / "archive", tmp_path / "in", most_bytes=10_000)
        assert {name: (tmp_path / "in" / name).read_bytes() for name in GOOD} == GOOD


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "a/../..", "..\\out", "C:/out", "C:out"])
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    assert "expected names that stay" in refused(as_tar({name: b"x"}), tmp_path)


def test_names() -> None:
    assert all(map(stays_inside, ["a", "a/b", "a..b", "...", "a b/ü"]))
    assert not any(map(stays_inside, ["", "..", "/", "//a", "a/..", "\\a", "a\0b"]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("inside")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "expected files and folders alone" in refused(file.getvalue(), tmp_path)


def test_a_file_is_not_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "linked").write_bytes(b"mine")
    (tmp_path / "in" / "two").symlink_to(tmp_path / "linked")
    (tmp_path / "archive").write_bytes(as_tar(GOOD))
    unpack(tmp_path / "archive", tmp_path / "in", most_bytes=10_000)
    assert (tmp_path / "linked").read_bytes() == b"mine"
    assert (tmp_path / "in" / "two").read_bytes() == GOOD["two"]


def test_no_more_is_written_than_may_be(tmp_path: Path) -> None:
    bomb = {"small": b"1" * 100, "large": bytes(10_000_000)}
    assert "found 10,000,000 bytes in 'large', expected at most 9,900" in refused(as_tar(bomb), tmp_path)
    assert not (tmp_path / "in" / "large").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", as_tar(GOOD)[:-20], as_tar(GOOD)[:60]],
    ids=["empty", "garbage", "tar without its end", "tar's beginning"],
)
def test_damage_is_named(content: bytes, tmp_path: Path) -> None:
    assert "expected a whole tar file" in refused(content, tmp_path)


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        unpack(tmp_path / "nowhere", tmp_path, most_bytes=1)
