"""Files that say more than they hold, and numbers that no machine has: refused before memory is taken for them."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint_cases
import fuzzing
import numpy
import pytest
import torch
from configs import refusal

from ddp_agent.checkpoint import export
from ddp_agent.checkpoint.manifest import File, Manifest
from ddp_agent.config import memory
from ddp_agent.data.datasets.char_lm import CharLM
from ddp_agent.data.readers.images import read_rgb
from ddp_agent.data.readers.packed import read_npz
from ddp_agent.data.readers.tokens import encode
from ddp_agent.errors import CheckpointError, DataError
from ddp_agent.models.mlp import MLP
from ddp_agent.outputs.metrics_file import read_metrics


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with fuzzing.little_memory():
        yield


def png(width: int, height: int) -> bytes:
    """Black, of one bit a pixel, and so a thousandth as large as what it stands for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_is_as_large_as_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(png(20, 30))
    assert read_rgb(tmp_path / "small.png", "small.png").size == (20, 30)
    (tmp_path / "large.png").write_bytes(png(9_000, 9_000))
    with pytest.raises(
        DataError, match=r"large\.png: found no readable image \(9000 x 9000 pixels, more than 67,108,864"
    ):
        read_rgb(tmp_path / "large.png", "large.png")


def seal(path: Path) -> None:
    manifest = vars(Manifest.read(path)) | {"files": {"rank-0000.pt": File.of(path / "rank-0000.pt")}}
    Manifest(**manifest).write(path)


def refused_checkpoint(folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        checkpoint_cases.load(folder)
    return str(raised.value)


def test_a_packed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    path = checkpoint_cases.save(tmp_path, 10)
    torch.save({"weights": torch.zeros(2_000_000)}, path / "whole.pt")
    with (
        zipfile.ZipFile(path / "whole.pt") as whole,
        zipfile.ZipFile(path / "rank-0000.pt", "w", zipfile.ZIP_DEFLATED) as it,
    ):
        for member in whole.infolist():
            it.writestr(member.filename, whole.read(member), zipfile.ZIP_DEFLATED)
    (path / "whole.pt").unlink()
    seal(path)
    assert "bytes packed into" in refused_checkpoint(tmp_path)


def test_a_checkpoint_in_torchs_old_format_is_refused(tmp_path: Path) -> None:
    """Its pickle says how large the memory must be that comes after it."""
    path = checkpoint_cases.save(tmp_path, 10)
    torch.save({"weights": torch.zeros(5)}, path / "rank-0000.pt", _use_new_zipfile_serialization=False)
    seal(path)
    assert "found no file of torch.save" in refused_checkpoint(tmp_path)


def test_a_manifest_names_no_file_elsewhere(tmp_path: Path) -> None:
    path = checkpoint_cases.save(tmp_path, 10)
    files = {"../../../etc/passwd": File(1, "0" * 64)}
    Manifest(**(vars(Manifest.read(path)) | {"files": files})).write(path)
    with pytest.raises(CheckpointError, match=r"names the file '\.\./\.\./\.\./etc/passwd', expected rank-0000\.pt"):
        Manifest.read(path)


@pytest.mark.parametrize("change", [{"step": "10"}, {"world_size": None}, {"details": []}, {"step": -1}, {"files": {}}])
def test_a_manifest_of_other_types_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint_cases.save(tmp_path, 10)
    Manifest(**(vars(Manifest.read(path)) | change)).write(path)
    if change == {"files": {}}:
        assert "rank-0000.pt: the manifest beside it names no such file" in refused_checkpoint(tmp_path)
    else:
        with pytest.raises(CheckpointError, match="not the manifest of a checkpoint"):
            Manifest.read(path)


@pytest.mark.parametrize("hidden", [[500_000, 500_000], [2**62, 4], [2**40]])
def test_a_model_is_not_built_for_weights_that_are_not_there(hidden: list[int], tmp_path: Path) -> None:
    arguments = {"input_shape": [4], "outputs": 3, "hidden": [8]}
    export.save(
        tmp_path, MLP(input_shape=(4,), outputs=3, hidden=(8,)), description={"name": "MLP", "arguments": arguments}
    )
    about = json.loads((tmp_path / "model.json").read_text())
    about["arguments"]["hidden"] = hidden
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(
        CheckpointError, match=r"does not fit its model|no such model can be built|expected at most"
    ) as raised:
        export.load(tmp_path)
    assert "allocate" not in str(raised.value)


def test_generated_samples_must_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1_000_000_000)
    (problem,) = refusal("dataset.samples=1000000000", dataset="article")
    assert problem == "dataset: its samples take 88.0 GB, expected at most the 1.0 GB of memory"
    with pytest.raises(ValueError, match=r"2 texts of length 1,000,000,000 take 16\.0 GB"):
        encode(["a", "b"], "words", 10, 1_000_000_000)


def test_a_thousand_million_layers_or_processes_are_refused() -> None:
    assert refusal("model.layers=1000000000", model="gpt") == [
        "model.layers: found 1000000000, expected an integer >= 1 and <= 1000"
    ]
    assert refusal("nproc_per_node=1000000") == [
        "nproc_per_node: found 1000000, expected an integer >= 1 and <= 1024 or null"
    ]


@pytest.mark.parametrize("file", ["../secret.txt", "/etc/passwd", "a/../../b", ""])
def test_a_text_lies_below_the_folder_of_data(file: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine " * 100)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"^dataset\.file: found .*, expected a path below data_root$"):
        CharLM(data_root=tmp_path / "data", file=file, download=False, context=4, sample=1).load()


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "3", "unix_s": 1}', '{"step": 3}', '{"step": 3, "unix_s": 1, "a": [1]}', "[" * 100_000, "3",
        '{"step": true, "unix_s": 1}', '{"step": -1, "unix_s": 1}', '{"step": 3, "unix_s": 1, "train_s": 1e300}',
        '{"step": 3, "unix_s": 1, "payload_bytes": null}',
    ],
)  # fmt: skip
def test_a_line_that_no_run_wrote_is_passed_over(line: str, tmp_path: Path) -> None:
    good = {"step": 2, "unix_s": 1.5, "test_accuracy": 0.5, "train_s": 1, "payload_bytes": 9, "rate": None}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    assert read_metrics(tmp_path / "metrics.jsonl", 99) == [good]


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def refused_array(path: Path, begin: bytes) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("audio.npy", begin + bytes(200))
    with pytest.raises(DataError, match=r"x\.npz: .*found ") as raised:
        read_npz(path, {"audio": (numpy.uint8, 2)})
    assert "\n" not in str(raised.value) and "pickle" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_take_no_more_memory_than_there_are_bytes(how: int, tmp_path: Path) -> None:
    path, wanted = tmp_path / "x.npz", {"audio": (numpy.uint8, 2)}

    def write(rows: int) -> None:
        with zipfile.ZipFile(path, "w", how) as archive:
            archive.writestr("audio.npy", header((rows, 100)) + bytes(200))

    write(2)
    assert read_npz(path, wanted)["audio"].shape == (2, 100)
    write(10**9)
    with pytest.raises(DataError, match=r"x\.npz: found 100,000,000,000 bytes claimed for audio, more than there can"):
        read_npz(path, wanted)
    path.write_bytes(path.read_bytes().replace(b"(1000000000, 100)", b"(1000000000, 100 ", 1))
    if how == zipfile.ZIP_STORED:  # and with a header that is no header
        with pytest.raises(DataError, match=r"x\.npz: found "):
            read_npz(path, wanted)


@pytest.mark.parametrize("size_at", [20, 24])
def test_a_zip_directory_that_claims_gigabytes_is_refused(size_at: int, tmp_path: Path) -> None:
    """The directory claims 3 GB, as the header does: packed (20) or unpacked (24)."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("audio.npy", header((30_000_000, 100)) + bytes(200))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + size_at
    data[place : place + 4] = struct.pack("<I", 3_100_000_000)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npz: found .* bytes claimed for audio, more than there can be"):
        read_npz(path, {"audio": (numpy.uint8, 2)})


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (header((2, 100), "|O"), r"audio: found object of shape (2, 100), expected uint8 with 2 dimensions"),
        (header((2, -100)), r"audio: found uint8 of shape (2, -100), expected uint8 with 2"),
        (header((2, 100)).replace(b"\x01\x00", b"\x03\x00", 1), "found audio in version (3, 0) of the format"),
        (numpy.lib.format.magic(1, 0) + struct.pack("<H", 20_000) + b" " * 20_000, "found Header info length (20000)"),
        (header((2, 100)).replace(b"'|u1'", b"()   "), "found "),
        (header((2, 100)).replace(b"'|u1'", b"{[]}  "), "found "),
    ],
)
def test_headers_of_arrays_are_refused_in_words(begin: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused_array(tmp_path / "x.npz", begin)
