"""Outputs of a run: run directory, metrics file, summary, TensorBoard, console and images."""
