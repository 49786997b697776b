"""Where values live elsewhere: in Valkey or Redis, or on a fleet of memcached servers.

An *engine* is Valkey or Redis, one server or a cluster: connections, the layout of documents in it
and the store on top (`kvproto.upstream.store.EngineStore`) are here; what operations mean is
`kvproto.store`'s.  A *fleet* is a set of memcached servers (``fleet*``, ``ring``, ``hashes``,
``pipe``), which say themselves what operations mean.
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
