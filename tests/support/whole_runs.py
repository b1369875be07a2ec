"""Small runs without faults, and the bitwise comparison of other runs with them."""

from functools import cache
from pathlib import Path

from configs import files
from forked_torchrun import Outcome, run
from run_states import same, states, training_state
from short_periods import short

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
    name: (f"sync={name}", *short(name, period=8, switch_step=20), "ranks_per_node=1")
    for name in files("sync")
    if name not in MODES
}
EVERY_FIVE = ("checkpoint_every=5",)


class Wholes:
    """Runs without faults. Each is made once per session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.of = cache(self._of)

    def _of(self, mode: str, size: int) -> Path:
        outcome = run(self._folder / f"{mode} {size}", size, [*SMALL, *(MODES | OTHER_MODES)[mode]])
        assert outcome.codes == [[0] * size], outcome.stderr
        return outcome.run_dir

    def assert_same_end(self, outcome: Outcome, mode: str, size: int) -> None:
        """Compare every rank's state except times, and the exported model."""
        whole = self.of(mode, size)
        pairs = zip(states(whole, STEPS), states(outcome.run_dir, STEPS), strict=True)
        for rank, (one, other) in enumerate((training_state(one), training_state(other)) for one, other in pairs):
            for key in one:
                assert same(one[key], other[key]), f"rank {rank}: {key} differs"
        models = [(path / "model.safetensors").read_bytes() for path in (whole, outcome.run_dir)]
        assert models[0] == models[1]


def checkpoints(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints. Fails if one is damaged or if a temporary file is left."""
    assert not [path for path in run_dir.rglob("*") if path.suffix == ".tmp" or ".tmp-" in path.name]
    folder = run_dir / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        manifest = Manifest.read(folder / name)
        for file, entry in manifest.files.items():
            entry.check(folder / name / file)
    return [int(name.removeprefix("step-")) for name in names]
