"""Models that a run can train. The data gives them `input_shape` and `outputs`."""
