"""Reducers: ways to average a flat tensor over ranks."""

from ddp_agent.reducers.base import Reducer
from ddp_agent.reducers.cast import Cast
from ddp_agent.reducers.common.feedback import ErrorFeedback
from ddp_agent.reducers.dense import Dense
from ddp_agent.reducers.int8 import Int8
from ddp_agent.reducers.powersgd import PowerSGD
from ddp_agent.reducers.sign import Sign
from ddp_agent.reducers.sparse import Sparse
from ddp_agent.reducers.topk import TopK

__all__ = ["Cast", "Dense", "ErrorFeedback", "Int8", "PowerSGD", "Reducer", "Sign", "Sparse", "TopK"]
