"""Machinery of the sync modes: flat tensors, averaged gradients, fragments, policies for buffers and moments."""
