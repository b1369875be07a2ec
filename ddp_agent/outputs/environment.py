"""Facts about the machine and the software of a run, recorded beside its figures."""

import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Return versions, device and commit. Environment variables are not read: they may hold secrets."""
    return {
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpus": os.cpu_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this code runs from, `-dirty` if changed; None for an installed copy."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory that this process held: what torch allocated on the GPU, or the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
