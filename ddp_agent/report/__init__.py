"""Tabulates and draws finished runs. Imports no training code: it works wherever the folders are."""
