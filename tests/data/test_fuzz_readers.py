"""Every file that is read, damaged in ways that hypothesis thinks of: the right result, or one clear message.

A reader is one entry of READERS: the files in its folder, the damaged one, how it is read, and what it may raise.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzzing
import pytest
from fuzzed_checkpoints import STATES
from fuzzed_datasets import DATASETS
from fuzzed_runs import RUNS
from hypothesis import given

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
