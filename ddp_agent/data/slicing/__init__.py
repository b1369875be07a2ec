"""Ways to slice the data: the samples and tasks that each rank trains on."""
