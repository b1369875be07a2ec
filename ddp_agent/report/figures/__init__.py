"""Figures of a comparison, drawn by Matplotlib."""
