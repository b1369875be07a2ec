"""Entry point of the folder: `python -m ddp_agent.netlab`, or its path where `ddp_agent` is not installed."""

import sys
from pathlib import Path

if not __package__:  # started by its path, as `lab.environment` does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from ddp_agent.netlab.command import main

if __name__ == "__main__":
    sys.exit(main())
