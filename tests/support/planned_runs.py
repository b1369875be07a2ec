"""Run directories of an invented cluster with known costs. The cost of each mode is written out here once more."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TENSOR = 800_000  # bytes
STEPS = 80
LATER = {1: 0.0, 2: 0.5641895835, 3: 0.8462843753, 4: 1.0293753730, 8: 1.4236003060}  # E(max of n normal draws)


@dataclass(frozen=True, kw_only=True)
class World:
    """The costs of the cluster.

    `rate`: of the link, in bits per second. None: it is not recorded, and a byte takes `host_byte_s` only.
    """

    message_s: float = 3e-4
    host_byte_s: float = 2e-9
    headers: float = 1.05
    rate: float | None = 1e9
    latency_s: float = 0.0
    local_s: float = 0.02
    spread_s: float = 1e-3
    backward_s: float = 4e-3
    noise: float = 0.0
    micro_batch: int = 32

    @property
    def byte_s(self) -> float:
        return self.host_byte_s + (self.headers * 8 / self.rate if self.rate else 0.0)


def ring(n: int, size: float) -> tuple[float, float]:
    """Return the messages that follow one another and the bytes that a rank sends in a ring all-reduce."""
    return 2 * (n - 1), 2 * (n - 1) / n * size


MODES: dict[str, dict[str, Any]] = {
    "independent": {"sync": "independent"},
    "allreduce": {"sync": "allreduce"},
    "compressed": {"sync": "compressed"},
    "compressed int8": {"sync": "compressed", "reducer": "int8"},
    "compressed topk": {"sync": "compressed", "reducer": "topk"},
    "compressed powersgd": {"sync": "compressed", "reducer": "powersgd"},
    "local_sgd H=8": {"sync": "local_sgd", "period": 8},
    "diloco H=16 int8": {"sync": "diloco", "period": 16, "reducer": "int8"},
    "gossip H=1": {"sync": "gossip", "period": 1, "graph": "ring"},
    "easgd H=8": {"sync": "easgd", "period": 8},
    "hierarchical H=1,8": {"sync": "hierarchical", "node_period": 1, "global_period": 8},
    "post_local_sgd H=8": {"sync": "post_local_sgd", "period": 8, "switch_step": 20},
    "streaming_diloco H=8": {"sync": "streaming_diloco", "period": 8, "fragments": 2, "delay": 1},
}


@dataclass(frozen=True)
class Sync:
    """The cost of a synchronisation: calls, messages that follow one another, bytes that a rank sends."""

    often: float  # per step
    calls: int
    payload: float
    messages: float
    sent: float
    waits_for: int
    uneven: float = 1.0  # factor by which its bytes take longer than alone


def sync_of(mode: dict[str, Any], n: int) -> Sync:
    often = 1 / mode.get("period", mode.get("global_period", 1))
    if mode["sync"] == "post_local_sgd":
        first = mode["switch_step"] / STEPS  # share of the steps that exchange gradients
        return Sync(first + (1 - first) * often, 1, TENSOR, *ring(n, TENSOR), n)
    if mode["sync"] == "streaming_diloco":
        return Sync(mode["fragments"] * often, 1, TENSOR / 2, *ring(n, TENSOR / 2), n)
    if mode["sync"] == "gossip":
        peers = 1 if n == 2 else 2
        return Sync(often, peers, peers * TENSOR, 1, peers * TENSOR, 1 + peers, 1.2 if peers > 1 else 1.0)
    match mode.get("reducer"):
        case "int8":  # all-to-all of a quarter of the bytes, then an all-gather of a share of them
            coded = TENSOR / 4
            return Sync(often, 2, coded * (1 + 1 / n), 1 + (n - 1), 2 * (n - 1) / n * coded, n)
        case "topk":
            packet = TENSOR / 50
            return Sync(often, 1, packet, n - 1, (n - 1) * packet, n)
        case "powersgd":  # two all-reduces, one after the other
            messages, sent = ring(n, TENSOR / 40)
            return Sync(often, 2, 2 * TENSOR / 40, 2 * messages, 2 * sent, n)
    return Sync(often, 1, TENSOR, *ring(n, TENSOR), n)


def seconds(world: World, mode: dict[str, Any], n: int) -> tuple[float, float]:
    """Return the seconds of a step in which only bytes move, and in which a rank waits for others."""
    if mode["sync"] == "independent" or n == 1:
        return 0.0, 0.0
    sync = sync_of(mode, n)
    each_s = sync.messages * (world.message_s + world.latency_s) + sync.sent * sync.uneven * world.byte_s
    hidden_s = {"allreduce": world.backward_s, "streaming_diloco": mode.get("delay", 0) * world.local_s}
    moving_s = sync.often * max(0.0, each_s - hidden_s.get(mode["sync"], 0.0))
    moving_s -= mode.get("switch_step", 0) / STEPS * min(each_s, world.backward_s)
    return moving_s, world.spread_s * LATER[sync.waits_for] * math.sqrt(sync.often)


def speed(world: World, label: str, n: int, extra_s: float = 0.0) -> float:
    """Return samples per second."""
    return n * world.micro_batch / (world.local_s + extra_s + sum(seconds(world, MODES[label], n)))


def write(
    path: Path,
    world: World,
    label: str,
    n: int = 2,
    *,
    seed: int = 0,
    steps: int = STEPS,
    extra_s: float = 0.0,
    **changes: Any,
) -> Path:
    """Write a run directory. `extra_s`: compute time beyond that of `independent`. `changes` replace summary values."""
    mode = MODES[label]
    draw = random.Random(f"{label} {n} {seed}")
    moving_s, waiting_s = (s * (1 + draw.gauss(0, world.noise)) for s in seconds(world, mode, n))
    sync = sync_of(mode, n)
    silent = mode["sync"] == "independent" or n == 1
    counted = [0, 0, 0, 0] if silent else [sync.often, sync.calls, sync.payload, sync.sent]
    often, calls, payload, sent = counted
    local_s = world.local_s + extra_s
    times = {"data_s": steps * local_s / 10, "compute_s": steps * local_s * 9 / 10}
    summary = {
        "status": "finished", "dataset": "digits", "model": "mlp", "cadence": "fixed", "sync": mode["sync"],
        "reducer": mode.get("reducer", "dense"), "period": mode.get("period"), "world_size": n, "nodes": n,
        "seed": seed, "steps": steps, "samples": steps * n * world.micro_batch, "params": TENSOR // 4, "device": "cpu",
        "metric_name": "accuracy", "test_metric": 0.9, "higher_is_better": True, **times,
        "exposed_comm_s": steps * (moving_s + waiting_s), "straggler_wait_s": steps * waiting_s,
        "train_s": sum(times.values()) + steps * (moving_s + waiting_s), "syncs": steps * often,
        "collectives": steps * often * calls, "payload_bytes": steps * often * payload,
        "wire_bytes": steps * often * sent, "link_bytes": world.rate and steps * often * sent * world.headers,
        "link_rate_bits_per_s": world.rate, "data_sha256": "d", "init_sha256": "i", "order_sha256": "o", "target": None,
    } | changes  # fmt: skip
    own = {key: value for key, value in mode.items() if key not in ("sync", "reducer")}
    config = {"sync": {"name": mode["sync"].title(), **own}, "seed": seed, "optimizer": {"lr": 0.1}}
    (path / ".hydra").mkdir(parents=True, exist_ok=True)
    (path / ".hydra" / "config.yaml").write_text(json.dumps(config))
    (path / ".hydra" / "overrides.yaml").write_text("[]")
    (path / "status.json").write_text('{"status": "finished"}')
    (path / "summary.json").write_text(json.dumps(summary))
    metric = summary["test_metric"]
    points = [{"step": step, "train_s": 1, "test_accuracy": metric * step / steps} for step in (steps // 2, steps)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return path


def sweep(path: Path, world: World, labels: Any = MODES, n: int = 2, **changes: Any) -> Path:
    """Write a run directory per label."""
    for index, label in enumerate(labels):
        write(path / str(index), world, label, n, **changes)
    return path
