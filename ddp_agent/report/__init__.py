"""Comparison of finished runs in tables, figures and sentences. Imports no training code: run folders are enough."""
