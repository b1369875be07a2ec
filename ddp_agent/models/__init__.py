"""What a run trains: pure functions of their input, told `input_shape` and `outputs` by the data."""
