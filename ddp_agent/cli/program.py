"""The program that a user started, in the words that start it again. Imports no torch."""

import sys
from dataclasses import dataclass
from pathlib import Path

MODULE = ("-m", "ddp_agent", "train")  # starts a rank from any folder, installed or in a checkout


@dataclass(frozen=True, kw_only=True)
class Program:
    """Command that trains: `train.py`, or `ddp-agent train` in an environment where the package is installed."""

    words: tuple[str, ...]  # behind the interpreter, also behind torchrun: a script, or -m and a module
    folder: Path  # what --config-path is relative to
    typed: str = "python train.py"  # as help text and errors show it
    under_torchrun: str = "train.py"

    @classmethod
    def script(cls) -> "Program":
        """Return the script that the interpreter runs."""
        path = Path(sys.argv[0]).absolute()
        return cls(words=(str(path),), folder=path.parent)

    @classmethod
    def command(cls) -> "Program":
        """Return `ddp-agent train`: its ranks start as it did itself, by the installed script or by `python -m`."""
        path = Path(sys.argv[0]).absolute()
        words = MODULE if path.name == "__main__.py" else (str(path), "train")
        return cls(words=words, folder=Path.cwd(), typed="ddp-agent train", under_torchrun=" ".join(MODULE))
