"""Reducers: ways to average a flat tensor over ranks."""

from typing import TYPE_CHECKING

from ddp_agent.config.registry import lazy_exports

if TYPE_CHECKING:  # a new class is exported without a line here, but type checkers see it as Any
    from ddp_agent.reducers.base import Reducer as Reducer
    from ddp_agent.reducers.cast import Cast as Cast
    from ddp_agent.reducers.common.feedback import ErrorFeedback as ErrorFeedback
    from ddp_agent.reducers.dense import Dense as Dense
    from ddp_agent.reducers.int8 import Int8 as Int8
    from ddp_agent.reducers.powersgd import PowerSGD as PowerSGD
    from ddp_agent.reducers.sign import Sign as Sign
    from ddp_agent.reducers.sparse import Sparse as Sparse
    from ddp_agent.reducers.topk import TopK as TopK

__getattr__ = lazy_exports(
    "reducer", {"Reducer": "ddp_agent.reducers.base", "ErrorFeedback": "ddp_agent.reducers.common.feedback"}
)
