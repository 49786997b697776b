"""Where values live elsewhere: a Valkey or Redis server, or a cluster of them.

Owns connections to engines, the layout of documents in them, and the store on top
(`kvproto.upstream.store.EngineStore`).  What operations mean is `kvproto.store`'s.
"""

from __future__ import annotations

from typing import Any

from kvproto.upstream.cluster import ClusterEngine
from kvproto.upstream.engine import Engine, SingleEngine
from kvproto.upstream.options import SCHEMES, EngineOptions, parse_options
from kvproto.upstream.store import EngineStore

__all__ = ["SCHEMES", "Engine", "EngineOptions", "EngineStore", "make_engine", "parse_options"]


def make_engine(options: EngineOptions, reactor: Any, watch_interval: float = 2.0) -> Engine:
    """Make an engine of the kind that the options name; see `Engine` for the arguments."""
    kind = ClusterEngine if options.cluster else SingleEngine
    return kind(options, reactor, watch_interval)
