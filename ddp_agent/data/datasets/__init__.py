"""What a run learns from: one class a file, and its `load()` returns a Task."""
