"""Names of torch.distributed that it does not declare as exported, which mypy asks for; and one private number."""

import torch.distributed as dist
from torch.distributed import GradBucket, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

__all__ = ["FIRST_BUCKET_BYTES", "GradBucket", "HashStore", "PrefixStore", "Store", "TCPStore"]

FIRST_BUCKET_BYTES: int = dist._DEFAULT_FIRST_BUCKET_BYTES  # type: ignore[attr-defined]  # of DDP
