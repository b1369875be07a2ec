"""Every file that is read, damaged in ways that hypothesis thinks of: the right result, or one clear message.

A reader is one entry of READERS: what lies in its folder, which file is damaged, how it is read, and what it may raise.
"""

import contextlib
import gzip
import io
import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoint_cases
import fuzzing
import planned_runs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from idx_files import idx, pixels
from records import Records
from report_cases import make_sweep, printed, result_of
from test_archive import GOOD, as_tar
from torch import nn
from wav_files import tone, wav

from ddp_agent.checkpoint import export, folder
from ddp_agent.checkpoint.__main__ import main as checkpoint_command
from ddp_agent.checkpoint.manifest import File, Manifest
from ddp_agent.cli import sweep
from ddp_agent.cli.composition import redact_saved
from ddp_agent.data.datasets.char_lm import CharLM
from ddp_agent.data.datasets.intents import Intents
from ddp_agent.data.datasets.movielens import MovieLens
from ddp_agent.data.readers.archive import unpack
from ddp_agent.data.readers.idx import read_idx
from ddp_agent.data.readers.images import read_rgb
from ddp_agent.data.readers.wav import read_wav
from ddp_agent.data.readers.zip_members import members
from ddp_agent.errors import CheckpointError, DataError
from ddp_agent.outputs import restarts as attempts
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.tensorboard import History, TensorBoardMirror
from ddp_agent.plan.__main__ import main as plan
from ddp_agent.report.output_folder import check_free
from ddp_agent.report.report_json import report_json
from ddp_agent.report.runs.run import ReportError

Damage = Callable[[bytes], "st.SearchStrategy[bytes]"]


@dataclass(frozen=True)
class Reader:
    victim: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    may_raise: tuple[type[Exception], ...] = ()
    damage: Damage = fuzzing.damaged
    before_reading: Callable[[Path], object] = field(default=lambda folder: None)
    """What somebody who means harm does after the damage: to make hashes right, say."""


def content(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


def one_file(
    name: str, data: bytes | str, read: Callable[[Path], object], error: type[Exception] = DataError, **more: Any
) -> Reader:
    return Reader(name, lambda path: content(data)(path / name), lambda path: read(path / name), (error,), **more)


# Datasets


def picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels(6, 5, 3).to(torch.uint8).numpy()).save(file, kind)
    return file.getvalue()


def as_zip(contents: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file.getvalue()


def ratings() -> str:
    seen = [(user, film) for user in (1, 2, 7) for film in range(9)]
    rows = [f"{user},{10 * film},{1 + (user + film) % 9 / 2},{1000 + user * film}" for user, film in seen]
    rows += [f"{20 + film // 10},{10 * film},3.5,{film}" for film in range(10, 120)]
    return "\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n"


def movielens(predict: str) -> Callable[[Path], object]:
    arguments: Any = {"predict": predict, "ranking_loss": "bpr", "negatives": 2}
    return lambda path: MovieLens(data_root=path, **arguments).load()


def write_movies(path: Path) -> None:
    titles = "".join(f"{10 * film},Film {film},x\n" for film in range(120))
    content(ratings())(path / "ratings.csv")
    content(f"movieId,title,genres\n{titles}")(path / "movies.csv")


SENTENCES = [["what time is it", "time"], ["play a song, please", "music"], ["how late is it?", "time"]]


def intents(corpus: Any) -> Callable[[Path], object]:
    rest: Any = {"tasks": ["intent"], "features": "ngrams", "loss": "cross_entropy", "buckets": 50, "length": 8}
    return lambda path: Intents(data_root=path, corpus=corpus, download=False, **rest).load()


def write_banking(path: Path) -> None:
    lines = "".join(f'"{text}",{intent}\n' for text, intent in SENTENCES)
    for name in ("train.csv", "test.csv"):
        content("text,category\n" + lines)(path / name)


def char_lm(path: Path) -> object:
    return CharLM(data_root=path, file="mine.txt", download=False, context=4, sample=2).load()


IMAGES, LABELS = idx(pixels(3, 4, 5)), idx(pixels(7))


DATASETS = {
    "idx": one_file("file", IMAGES, lambda path: read_idx(path, "images")),
    "idx.gz": one_file("file", gzip.compress(LABELS), lambda path: read_idx(path, "labels")),
    "png": one_file("file.png", picture("PNG"), lambda path: read_rgb(path, str(path))),
    "jpg": one_file("file.jpg", picture("JPEG"), lambda path: read_rgb(path, str(path))),
    "tar.gz": one_file("file", as_tar(GOOD), lambda path: unpack(path, path.parent / "in", most_bytes=100_000)),
    "tar": one_file("file", as_tar(GOOD, "w"), lambda path: unpack(path, path.parent / "in", most_bytes=100_000)),
    "zip": one_file(
        "file", as_zip({f"in/{name}": data for name, data in GOOD.items()}), lambda path: dict(members(path, "in"))
    ),
    "stars": Reader("ratings.csv", write_movies, movielens("stars"), (DataError,)),
    "ranking": Reader("ratings.csv", write_movies, movielens("ranking"), (DataError,)),
    "titles": Reader("movies.csv", write_movies, movielens("stars"), (DataError,)),
    "banking77": Reader("train.csv", write_banking, intents("banking77"), (DataError,)),
    "clinc150": Reader(
        "data_full.json",
        lambda path: content(json.dumps({"train": SENTENCES, "test": SENTENCES}))(path / "data_full.json"),
        intents("clinc150"),
        (DataError,),
        damage=fuzzing.damaged_json,
    ),
    "wav": one_file("x.wav", wav(tone()), lambda path: read_wav(path.read_bytes(), path.name)),
    "text": one_file("mine.txt", "to be or not to be, ümlaut " * 3, lambda path: char_lm(path.parent)),
}

# Checkpoints and models


def write_checkpoint(path: Path) -> None:
    checkpoint_cases.save(path / "checkpoints", 10)


def seal(path: Path) -> None:
    """Sizes and hashes of what is there."""
    checkpoint = path / "checkpoints" / "step-00000010"
    manifest = vars(Manifest.read(checkpoint)) | {"files": {"rank-0000.pt": File.of(checkpoint / "rank-0000.pt")}}
    Manifest(**manifest).write(checkpoint)


def seal_manifest(path: Path) -> None:
    """The manifest's own hash, where it still has one."""
    from ddp_agent.checkpoint.manifest import _sha256

    file = path / "checkpoints" / "step-00000010" / "manifest.json"
    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
        tree = json.loads(file.read_bytes())
        tree.pop("sha256", None)
        file.write_text(json.dumps(tree | {"sha256": _sha256(tree)}))


def load_checkpoint(path: Path) -> tuple[int, checkpoint_cases.State] | None:
    return checkpoint_cases.load(path / "checkpoints")


def whole_or_refused(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded is None or checkpoint_cases.is_state_of(loaded, 10)


def look_at_checkpoints(path: Path) -> None:
    newest = folder.newest(path / "checkpoints")
    folder.best(newest)
    folder.surplus(newest, keep=1, keep_best=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for command in (["list"], ["verify"], ["prune", "--keep", "1", "--keep-best"]):
            assert checkpoint_command([command[0], str(path), *command[1:]]) in (0, 3)


MODEL = {"hidden": [5, 6], "input_shape": [4], "outputs": 3}
RANK, MANIFEST = "checkpoints/step-00000010/rank-0000.pt", "checkpoints/step-00000010/manifest.json"


def write_model(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    export.save(path, model, description={"name": "MLP", "arguments": MODEL})


def seal_model(path: Path) -> None:
    about = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(about | {"weights": vars(File.of(path / "model.safetensors"))}))


STATES = {
    "rank file": Reader(RANK, write_checkpoint, whole_or_refused, (CheckpointError,)),
    "rank file, sealed": Reader(RANK, write_checkpoint, load_checkpoint, (CheckpointError,), before_reading=seal),
    "manifest": Reader(MANIFEST, write_checkpoint, whole_or_refused, (CheckpointError,), fuzzing.damaged_json),
    "manifest, sealed": Reader(
        MANIFEST, write_checkpoint, load_checkpoint, (CheckpointError,), fuzzing.damaged_json, seal_manifest
    ),
    "manifest, looked at": Reader(
        MANIFEST, write_checkpoint, look_at_checkpoints, (), fuzzing.damaged_json, seal_manifest
    ),
    "safetensors": Reader("model.safetensors", write_model, export.load, (CheckpointError,), before_reading=seal_model),
    "model.json": Reader("model.json", write_model, export.load, (CheckpointError,), fuzzing.damaged_json),
}

# Run directories


def write_history(path: Path) -> None:
    directory = RunDirectory(path)
    records = Records(directory, "accuracy")
    records.begin(nn.Linear(2, 2), {})
    for step in range(1, 5):
        records.log(step, {"train_loss": 1 / step})
        records.evaluation(step, {"test_accuracy": 0.5}, train_s=step, payload_bytes=100, model=nn.Linear(2, 2))
    records.close()
    (event_file,) = (path / "tensorboard").iterdir()
    event_file.rename(path / "tensorboard" / "events.out.tfevents.1")
    directory.write_status("failed", "tired")
    directory.close()
    (path / "attempts.json").write_text('[{"attempt": 0, "from_step": 0}, {"attempt": 1, "from_step": 2}]')
    (path / "job.json").write_text('{"overrides": ["a=1"], "attempts": 2}')


def replay(path: Path) -> None:
    mirror = TensorBoardMirror(path / "again", "test_accuracy")
    try:
        mirror.replay(History.read(path, 3))
    finally:
        mirror.close()


def status(path: Path) -> None:
    RunFiles(path).read_status().get("status")
    directory = RunDirectory(path, restart=True)
    with directory:
        directory.reason()
        directory.write_status("failed", "again")


def begin(path: Path) -> None:
    with RunDirectory(path, restart=True) as directory:
        attempts.begin(directory, 2, 2, None)


def earlier_attempts(path: Path) -> int:
    with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setenv(sweep._FAILURES, str(path / "failures"))
        return sweep._earlier_attempts(path, ["a=1"], "job 0")


def history(victim: str, read: Callable[[Path], object], damage: Damage, *errors: type[Exception]) -> Reader:
    return Reader(victim, write_history, read, errors, damage)


def write_report_runs(path: Path) -> None:
    make_sweep(path, {"allreduce": [0.9, 0.8], "local_sgd": [0.7]}, target=0.6, period=4)


def report(path: Path) -> None:
    result = result_of(path)
    printed(result)
    json.loads(report_json(result, []))


def report_of(victim: str, damage: Damage) -> Reader:
    return Reader(f"1/{victim}", write_report_runs, report, (ReportError,), damage)


def write_planned_runs(path: Path) -> None:
    planned_runs.sweep(path, planned_runs.World(), ["independent", "allreduce", "local_sgd H=8", "diloco H=16 int8"])


def plan_for(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert plan([str(path), "--rate", "1gbit", "--ranks", "2,64"]) in (0, 2)


def write_saved(path: Path) -> None:
    (path / ".hydra").mkdir()
    (path / ".hydra" / "hydra.yaml").write_text("hydra: {overrides: {task: [token=abc]}, job: {x: '${y}'}}\n")


INDEX = json.dumps({"generator": "ddp_agent.report", "files": ["report.json", "index.html"]})
RUNS = {
    "metrics.jsonl": history("metrics.jsonl", replay, fuzzing.damaged_lines),
    "events": history("tensorboard/events.out.tfevents.1", replay, fuzzing.damaged),
    "status.json": history("status.json", status, fuzzing.damaged_json),
    "attempts.json": history("attempts.json", begin, fuzzing.damaged_json),
    "job.json": history("job.json", earlier_attempts, fuzzing.damaged_json, sweep.JobFailedError),
    "report: summary": report_of("summary.json", fuzzing.damaged_json),
    "report: status": report_of("status.json", fuzzing.damaged_json),
    "report: metrics": report_of("metrics.jsonl", fuzzing.damaged_lines),
    "report: config": report_of(".hydra/config.yaml", fuzzing.damaged_json),
    "report: overrides": report_of(".hydra/overrides.yaml", fuzzing.damaged_json),
    "report: index": one_file(
        "report.json", INDEX, lambda path: check_free(path.parent, {"a": b""}), ReportError, damage=fuzzing.damaged_json
    ),
    "plan: summary": Reader("1/summary.json", write_planned_runs, plan_for, (), fuzzing.damaged_json),
    "plan: config": Reader("1/.hydra/config.yaml", write_planned_runs, plan_for, (), fuzzing.damaged_json),
    "saved configs": Reader(".hydra/hydra.yaml", write_saved, lambda path: redact_saved(path, path), ()),
}

READERS = DATASETS | STATES | RUNS
SHARE = 7 / 10 / len(READERS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a reader as it should be, written once."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("good")
            READERS[name].write(made[name])
        return made[name]

    return folder_of


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name: str, good: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(good(name), tmp_path, dirs_exist_ok=True)
    READERS[name].read(tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_words(name: str, good: Callable[[str], Path]) -> None:
    reader, whole = READERS[name], good(name)

    @fuzzing.tries(SHARE)
    @given(reader.damage((whole / reader.victim).read_bytes()))
    def look(damaged: bytes) -> None:
        with tempfile.TemporaryDirectory() as temporary, fuzzing.little_memory():
            path = Path(temporary, "folder")
            shutil.copytree(whole, path)
            (path / reader.victim).write_bytes(damaged)
            reader.before_reading(path)
            fuzzing.outcome(lambda: reader.read(path), reader.may_raise)

    look()
