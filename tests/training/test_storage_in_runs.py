"""A model of a user's own that gives itself other memory while `train.py` trains it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rank_pool import RankPool
from runs import mode, run
from storage_changes import CHANGING, HARMLESS, KEPT, REFUSED, Records

BY_OPTIMIZER = "a stranger in the optimizer"  # a model has none
CRASHES = ("a buffer deleted", "another shape", "half")  # torch itself fails in the same forward pass
FEW = (["data in forward", "a buffer assigned in forward", "set_"], ["a layer replaced", "a buffer registered"])
EVERY = ([*HARMLESS, *CHANGING], [name for name in REFUSED if name not in (BY_OPTIMIZER, *CRASHES)])
EACH = [FEW, pytest.param(EVERY, marks=pytest.mark.exhaustive)]


def ends(name: str, changes: Sequence[str], path: str) -> dict[str, tuple[Any, list[str]]]:
    """Return the summary or the refusal of one run per change, and what it said."""
    found = {}
    for number, change in enumerate(changes):
        cfg, choices = mode(name, "device=cpu", "max_steps=5", "checkpoint_every=4")
        model = {"name": "storage_changes:Restless", "change": change}
        cfg |= {"model": model, "trusted_packages": ["storage_changes"]}
        handler = Records()
        logging.getLogger("ddp_agent").addHandler(handler)
        try:
            found[change] = run(cfg, choices, f"{path}/{number}"), handler.said
        finally:
            logging.getLogger("ddp_agent").removeHandler(handler)
    return found


@pytest.mark.parametrize("name", ["local_sgd", "diloco", "allreduce"])
@pytest.mark.parametrize("changes", EACH, ids=["few", "every"])
def test_a_run_is_the_same_or_is_refused_by_name(
    ranks2: RankPool, tmp_path: Path, name: str, changes: tuple[list[str], list[str]]
) -> None:
    survived, refused = changes
    first, second = ranks2.run(ends, name, ["nothing", *survived, *refused], str(tmp_path))
    untouched, _ = first["nothing"]
    for change in survived:
        summary, said = first[change]
        assert isinstance(summary, dict), f"{change}: {summary}"
        assert summary["syncs"] == untouched["syncs"], change
        if change in HARMLESS:
            assert summary["test_loss"] == pytest.approx(untouched["test_loss"], rel=1e-5), change
        assert sum("were copied back" in text for text in said) == (change not in KEPT), change
    for change in refused:
        for text, _ in (first[change], second[change]):
            assert text.startswith("ModelChangedError: the model has changed since setup: "), change
            assert REFUSED[change][1].replace("\\", "") in text
