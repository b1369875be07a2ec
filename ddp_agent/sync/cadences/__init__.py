"""Cadences: ways to change the period H of a periodic mode while it trains."""

from ddp_agent.sync.cadences.base import Cadence, CadenceContext
from ddp_agent.sync.cadences.drift import Drift
from ddp_agent.sync.cadences.fixed import Fixed
from ddp_agent.sync.cadences.linear import Linear
from ddp_agent.sync.cadences.qsr import QSR

__all__ = ["QSR", "Cadence", "CadenceContext", "Drift", "Fixed", "Linear"]
