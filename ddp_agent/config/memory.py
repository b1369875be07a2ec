"""How much memory this machine has: what a number in a configuration or file asks for is compared with it first.

Linux promises memory that it does not have, and ends processes when they use it.
"""

import os


def machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require(size_bytes: int, what: str) -> None:
    """Raises ValueError when `what` is more than the whole machine could hold."""
    if size_bytes > (most := machine_bytes()):
        raise ValueError(f"{what} take {size_bytes / 1e9:,.1f} GB, expected at most the {most / 1e9:,.1f} GB of memory")
