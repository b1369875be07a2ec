"""The schema of `summary.json`: one field per key, in the order of the file.

The fields are spread over several classes, one per subject. `Summary` joins them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_SPREAD = {"spread": True}  # the mapping's own keys are keys of the file


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The parts that a run is made of, by the labels of their config files, and its size."""

    status: str = "finished"
    dataset: str
    slicing: str
    model: str
    sync: str
    cadence: str
    reducer: str
    period: int | None
    world_size: int
    seed: int
    steps: int
    samples: int
    params: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The test scores of the final consensus model."""

    metric_name: str
    higher_is_better: bool
    test_metric: float
    test_loss: float
    class_accuracies: Mapping[str, float | None] = field(metadata=_SPREAD)
    """Keys `class_accuracy/<name>`, for data with few classes."""
    task_metrics: Mapping[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of the rank that trained longest; see `Clock.read`."""

    train_s: float
    wall_s: float
    data_s: float
    compute_s: float
    exposed_comm_s: float
    eval_s: float
    checkpoint_s: float
    straggler_wait_s: float


@dataclass(frozen=True, kw_only=True)
class Communication:
    """Synchronisations and bytes of rank 0. Link bytes are those of rank 0's node, in an emulated network only.

    `frozen_share` is the share of the payload that frozen parameters have at the end of the run, from 0 to 1. `traffic`
    states by formula the collectives that were counted: rows of `distributed.traffic.Collective`.
    """

    syncs: int
    collectives: int
    payload_bytes: int
    wire_bytes: int
    frozen_share: float
    traffic: list[dict[str, Any]]
    link_bytes: int | None
    link_rate_bits_per_s: int | None


@dataclass(frozen=True, kw_only=True)
class RankDiagnostics:
    """The last measurement of each diagnostic; None if it was never measured."""

    consensus_relative: float | None = None
    change_cosine: float | None = None
    gradient_cosine: float | None = None
    pseudo_gradient_norm: float | None = None
    critical_batch_samples: float | None = None
    consensus_distance: float | None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The best metric, and the cost of reaching the target. None if it was not reached."""

    target: float | None
    best_metric: float | None
    time_to_target_s: float | None
    bytes_to_target: int | None
    steps_to_target: int | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speed, and the hardware and software that it was measured on. Memory is the largest of all ranks."""

    samples_per_s: float
    peak_memory_bytes: int
    torch_version: str
    python_version: str
    platform: str
    device: str
    cpus: int | None
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Hashes of what the run started from, and the division of its work among ranks and nodes."""

    data_sha256: str
    order_sha256: str
    task_owners: Mapping[str, list[int]] | None
    nodes: int
    init_sha256: str
    replicas: Mapping[str, int] = field(metadata=_SPREAD)
    """Keys `replicas_…`, for runs that continue without a lost replica."""
    shard_sizes: list[int] | None
    shard_labels: list[list[int]] | None
    shard_divergences: list[float] | None


# Python collects the fields of bases from the last to the first.
@dataclass(frozen=True, kw_only=True)
class Summary(Origin, Machine, Goal, RankDiagnostics, Communication, Times, Scores, Identity):
    """The result of a finished run."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        content: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            content |= value if one.metadata.get("spread") else {one.name: value}
        return content
