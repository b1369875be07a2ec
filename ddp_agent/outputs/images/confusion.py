"""Which classes are taken for which, as a picture."""

import math

from torch import Tensor

from ddp_agent.outputs.confusion import Confusion
from ddp_agent.outputs.images.canvas import table

MOST = 200  # classes that a picture has room for


def confusion(found: Confusion) -> Tensor | None:
    """A row a class, a column a guess; None for more classes than can be told apart."""
    if len(found.counts) > MOST:
        return None
    shares = found.counts / found.counts.sum(1, keepdim=True).clamp(min=1)
    title = "What is guessed (columns) of each class (rows), in per cent of it"
    return table(title, shares, found.names, found.names, shade=math.sqrt)  # else 2 % would look like nothing
