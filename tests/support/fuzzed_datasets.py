"""Readers of datasets, with a good file each."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fuzzing
import numpy
import torch
from fuzzed_readers import Reader, content, one_file
from idx_files import idx, pixels
from test_archive import GOOD, as_tar
from wav_files import tone, wav

from ddp_agent.data.datasets.char_lm import CharLM
from ddp_agent.data.datasets.intents import Intents
from ddp_agent.data.datasets.movielens import MovieLens
from ddp_agent.data.readers.archive import unpack
from ddp_agent.data.readers.idx import read_idx
from ddp_agent.data.readers.images import read_rgb
from ddp_agent.data.readers.packed import read_npz
from ddp_agent.data.readers.wav import read_wav
from ddp_agent.data.readers.zip_members import members
from ddp_agent.errors import DataError


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


def as_npz(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, audio=numpy.arange(200, dtype=numpy.uint8).reshape(2, 100), more=numpy.zeros(3))
    return file.getvalue()


def audio(path: Path) -> object:
    return read_npz(path, {"audio": (numpy.uint8, 2)})


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
    "npz": one_file("x.npz", as_npz(numpy.savez), audio),
    "npz, packed": one_file("x.npz", as_npz(numpy.savez_compressed), audio),
    "text": one_file("mine.txt", "to be or not to be, ümlaut " * 3, lambda path: char_lm(path.parent)),
}
