"""Any write of a run may fail. The run ends with the file and the reason in words, or goes on without a decoration."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from failing_writes import Disk, Write
from rank_pool import RankPool
from runs import mode, run

TYPED = ("checkpoint_every=4", "keep_checkpoints=1", "eval_every=4")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
# Files that a run can do without, or has a second way to write.
LOSABLE = ("metrics.jsonl", "tensorboard", "attempts.json", "status.json", "checkpoints/step-00000004", ".lock")


def watched_run(path: str, refused: Write | None, nth: int, error: int) -> tuple[Any, list[Write]]:
    disk = Disk(Path(path), refused, nth, error)
    with disk.watched():
        try:
            end: Any = run(*mode("allreduce", *TYPED), path)
        except Exception as failure:
            end = f"uncaught {type(failure).__name__}: {failure}"
    return end, disk.writes


@pytest.mark.parametrize("calls", ["one per file", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_a_write_that_fails_is_named(calls: str, ranks1: RankPool, tmp_path: Path) -> None:
    writes = ranks1.run(watched_run, str(tmp_path / "whole"), None, 1, 0)[0][1]
    chosen = list(dict.fromkeys(writes))
    if calls == "one per file":
        chosen = list({file.replace(".*.tmp", "").lstrip("."): (call, file) for call, file in chosen}.values())
    assert {"summary.json", "model.json", "rank-0000.pt"} <= {
        file.rpartition("/")[2].replace(".*.tmp", "").lstrip(".") for _, file in chosen
    }
    for index, write in enumerate(chosen):
        path, error = tmp_path / str(index), ERRORS[index % len(ERRORS)]
        end, seen = ranks1.run(watched_run, str(path), write, writes.count(write), error)[0]
        assert write in seen
        if isinstance(end, str):
            assert end.startswith(("DataError: ", "CheckpointError: ", "ConfigError: ")), (write, end)
            assert os.strerror(error) in end and str(path) in end, (write, end)
        else:
            assert end["status"] == "finished"
            assert write in (("fsync", "."), ("mkdir", "."), ("mkdir", "checkpoints")) or any(
                file in write[1] for file in LOSABLE
            ), write
