#!/usr/bin/env python3
"""Run the code of ddp_agent/netlab from a checkout: `sudo launch/netlab.py --help`.

Works with the interpreter of root, which need not have torch or ddp_agent installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddp_agent.netlab.command import main

if __name__ == "__main__":
    sys.exit(main())
