"""Logs of a run: rank 0 writes a file and the console, the other ranks only warnings."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_agent.outputs import log


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("root_logger")
def test_rank_0_logs_to_file_and_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup_logging(tmp_path, rank=0)
    logging.getLogger("a").info("hello")
    logging.getLogger("a").warning("mind the gap")
    assert capsys.readouterr().out == "hello\nwarning: mind the gap\n"
    assert "INFO a: hello" in (tmp_path / "train.log").read_text()


@pytest.mark.usefixtures("root_logger")
def test_other_ranks_log_warnings_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup_logging(tmp_path, rank=2)
    logging.getLogger("a").info("hello")
    assert list(tmp_path.iterdir()) == []
    logging.getLogger("a").warning("mind the gap")
    assert "WARNING a: mind the gap" in (tmp_path / "train.rank2.log").read_text()
    assert capsys.readouterr().out == ""
