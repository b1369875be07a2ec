"""Readers of file formats, and downloads that are compared with their sha256."""
