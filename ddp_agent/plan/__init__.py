"""Predictions for other links and numbers of ranks, fitted from finished runs. Imports no training code."""
