"""All of a trainer's state on one rank, as plain data: a run resumed from it continues bit for bit."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ddp_agent.trainer import Trainer


@dataclass
class Standing:
    """How good the run is so far; a target that was not reached is None."""

    best_metric: float | None = None
    time_to_target_s: float | None = None
    bytes_to_target: int | None = None
    steps_to_target: int | None = None


def capture(trainer: "Trainer") -> dict[str, Any]:
    return {
        "step": trainer.step,
        "weights": [trainer.sync.flat.everything, *trainer.sync.flat.others],
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "sync": trainer.sync.state_dict(),
        "syncs": trainer.sync.syncs,
        "reducer": trainer.reducer.state_dict(),
        "ema": trainer.ema.state_dict() if trainer.ema else {},
        "comm": asdict(trainer.topology.world.settle()),
        "seconds": trainer.clock.snapshot(),
        "loss_sum": trainer.loss_sum,
        "logged": [trainer.logged_step, trainer.logged_s],
        "standing": asdict(trainer.standing),
        "random": random_state(trainer.device),
    }


def restore(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Random streams come last: building and rehearsing have drawn from them."""
    trainer.step = state["step"]
    trainer.sync.flat.restore(state["weights"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.sync.load_state_dict(state["sync"])
    trainer.sync.syncs = state["syncs"]
    trainer.reducer.load_state_dict(state["reducer"])
    if trainer.ema:
        trainer.ema.load_state_dict(state["ema"])
    for name, value in state["comm"].items():
        setattr(trainer.topology.world.stats, name, value)
    trainer.clock.seconds.update(state["seconds"])
    trainer.loss_sum.copy_(state["loss_sum"])
    trainer.logged_step, trainer.logged_s = state["logged"]
    trainer.standing = Standing(**state["standing"])
    restore_random_state(state["random"], trainer.device)


def random_state(device: torch.device) -> dict[str, Any]:
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(words), gauss],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
