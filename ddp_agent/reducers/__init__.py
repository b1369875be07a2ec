"""How a flat tensor is averaged over ranks."""

from ddp_agent.reducers.base import Reducer
from ddp_agent.reducers.cast import Cast
from ddp_agent.reducers.dense import Dense

__all__ = ["Cast", "Dense", "Reducer"]
