"""Memory of this machine. A size that a configuration or a file asks for is compared with it before it is allocated.

Linux promises memory that it does not have, and kills processes when they use it.
"""

import os


def machine_bytes() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require(size_bytes: int, what: str) -> None:
    """Raise ValueError, which names `what`, when `size_bytes` is more than the memory of the machine."""
    if size_bytes > (most := machine_bytes()):
        raise ValueError(f"{what} take {size_bytes / 1e9:,.1f} GB, expected at most the {most / 1e9:,.1f} GB of memory")
