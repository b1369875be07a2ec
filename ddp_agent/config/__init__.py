"""Configuration: types and ranges of values, names to classes, redaction of secrets, help text."""
