"""Cadences: ways to change the period H of a periodic mode while it trains."""

from typing import TYPE_CHECKING

from ddp_agent.config.registry import lazy_exports

if TYPE_CHECKING:  # a new class is exported without a line here, but type checkers see it as Any
    from ddp_agent.sync.cadences.base import Cadence as Cadence
    from ddp_agent.sync.cadences.base import CadenceContext as CadenceContext
    from ddp_agent.sync.cadences.drift import Drift as Drift
    from ddp_agent.sync.cadences.fixed import Fixed as Fixed
    from ddp_agent.sync.cadences.linear import Linear as Linear
    from ddp_agent.sync.cadences.qsr import QSR as QSR

__getattr__ = lazy_exports(
    "cadence", {"Cadence": "ddp_agent.sync.cadences.base", "CadenceContext": "ddp_agent.sync.cadences.base"}
)
