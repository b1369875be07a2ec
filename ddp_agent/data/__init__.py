"""Data: datasets, readers of file formats, slicing, the order of samples and the loader."""
