"""Readers of file formats and downloads, which the datasets share."""
