"""Benchmarks of this tree against plain torch, both in one run: see `python -m ddp_agent.bench --help`."""
