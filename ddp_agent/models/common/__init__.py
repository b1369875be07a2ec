"""Code that several models share: blocks, a head per task, the table of layers, building without memory."""
