"""Benchmarks of this tree against plain torch, each in one run on one machine: see `python -m ddp_agent.bench --help`."""
