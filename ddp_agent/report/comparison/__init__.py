"""Comparison of runs: which may be compared, means and intervals over seeds, verdicts, and what these say in words."""
