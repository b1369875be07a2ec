"""ddp_agent: compares ways of synchronising data-parallel training in PyTorch."""

__version__ = "0.1.0"
