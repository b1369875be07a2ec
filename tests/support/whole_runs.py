"""Small runs that nobody disturbs, and whether another one ended bit for bit as they did."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from forked_torchrun import Outcome, run
from torch import Tensor

from ddp_agent.checkpoint.manifest import Manifest

STEPS = 60
SIZES = (f"max_steps={STEPS}", "global_batch_size=48", "model.hidden=[32]", "device=cpu")
SMALL = (*SIZES, "log_every=10", "eval_every=30")
MODES = {
    "allreduce": ("sync=allreduce",),
    "compressed": ("sync=compressed", "reducer=int8"),
    "local_sgd": ("sync=local_sgd", "sync.period=8"),
    "diloco": ("sync=diloco", "sync.period=8"),
    "streaming_diloco": ("sync=streaming_diloco", "sync.period=8", "sync.delay=2"),
}
OTHER_MODES = {
    "independent": ("sync=independent",),
    "post_local_sgd": ("sync=post_local_sgd", "sync.switch_step=20", "sync.period=8"),
    "parameter_update": ("sync=parameter_update", "sync.period=8", "sync.outer_lr=0.4"),
    "hierarchical": ("sync=hierarchical", "sync.node_period=2", "sync.global_period=8", "ranks_per_node=1"),
    "slowmo": ("sync=slowmo", "sync.period=8"),
    "gossip": ("sync=gossip", "sync.period=4"),
    "easgd": ("sync=easgd", "sync.period=8"),
}
EVERY_FIVE = ("checkpoint_every=5",)


class Wholes:
    """Each is run once a session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.of = cache(self._of)

    def _of(self, mode: str, size: int) -> Path:
        outcome = run(self._folder / f"{mode} {size}", size, [*SMALL, *(MODES | OTHER_MODES)[mode]])
        assert outcome.codes == [[0] * size], outcome.stderr
        return outcome.run_dir

    def assert_same_end(self, outcome: Outcome, mode: str, size: int) -> None:
        """All of every rank's state but the time that things took; the exported model; the recorded scores."""
        whole = self.of(mode, size)
        for rank, (one, other) in enumerate(zip(final_states(whole), final_states(outcome.run_dir), strict=True)):
            for key in one.keys() - {"clock", "comm", "logged", "standing"}:
                assert _same(one[key], other[key]), f"rank {rank}: {key} differs"
        models = [(path / "model.safetensors").read_bytes() for path in (whole, outcome.run_dir)]
        assert models[0] == models[1]


def final_states(run_dir: Path) -> list[dict[str, Any]]:
    folder = run_dir / "checkpoints" / f"step-{STEPS:08d}"
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank-*.pt"))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def checkpoints(run_dir: Path) -> list[int]:
    """Steps; fails when one is damaged, or a part of one or of another file was left."""
    assert not [path for path in run_dir.rglob("*") if path.suffix == ".tmp" or ".tmp-" in path.name]
    folder = run_dir / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        manifest = Manifest.read(folder / name)
        for file, entry in manifest.files.items():
            entry.check(folder / name / file)
    return [int(name.removeprefix("step-")) for name in names]
