"""Benchmarks of this tree against plain torch, both in one run: see `python -m benchmarks --help`."""
