"""Which samples a rank trains on."""
