"""Root keys of a configuration. conf/config.yaml describes each one.

The keys are spread over several classes, one per subject. `Options` joins them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ddp_agent.config.fields import Decay, NonNegativeInt, Pattern, PositiveFloat, PositiveInt, Range

# A file name on any system. It cannot lead out of its folder.
FileName = Annotated[
    str,
    Pattern(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "of up to 100 letters, digits, '.', '_', '-', led by a letter or digit"
    ),
]

# The first steps allocate, tune and compile, so they do not show what a step costs.
UNTRACED_STEPS = 7


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length of the training, and how a step computes."""

    seed: NonNegativeInt
    epochs: PositiveInt | None
    max_steps: PositiveInt | None
    global_batch_size: PositiveInt
    accumulation_steps: PositiveInt
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    clip_norm: PositiveFloat | None
    ema_decay: Decay | None
    recalibrate_batches: PositiveInt

    def total_steps(self, samples: int) -> int:
        """Return the optimizer steps of the run: `max_steps`, or those of `epochs` passes over `samples` samples."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        return -(-self.epochs * samples // self.global_batch_size)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Times of evaluations, logs and diagnostics."""

    eval_every: PositiveInt | None
    evaluate_own: bool
    consensus_every: PositiveInt | None
    consensus_per_layer: bool
    log_every: PositiveInt
    target: float | None
    profile_steps: PositiveInt | None


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Times of checkpoints, and the checkpoint to resume from."""

    checkpoint_every: PositiveInt | None
    keep_checkpoints: PositiveInt
    keep_best_checkpoint: bool
    async_checkpoints: bool
    resume: Path | None
    resume_other_ranks: bool


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Ranks, folders, and what a failure does."""

    run_name: FileName
    data_root: Path | None
    nproc_per_node: Annotated[int, Range(1, 1024)] | None
    ranks_per_node: PositiveInt | None
    on_rank_loss: Literal["stop", "continue"]
    timeout_s: Annotated[float, Range(0, 1e9, above=True)]  # timedelta overflows at 8.6e13
    trusted_packages: list[str]


@dataclass(frozen=True, kw_only=True)
class Options(Launch, Saving, Measurement, Training):
    """Root keys of a configuration."""
