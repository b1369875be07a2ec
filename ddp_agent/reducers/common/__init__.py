"""Bases of lossy reducers: error feedback and quantisation."""
