"""Datasets: one class per file, whose `load()` returns a Task."""
