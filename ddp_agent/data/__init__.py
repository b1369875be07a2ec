"""Data: datasets, their readers, slicing among ranks, order and loading of samples."""
