"""The training loop and everything that it keeps: state, time, evaluations, diagnostics, settings."""
