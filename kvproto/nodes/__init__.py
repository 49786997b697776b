"""Node links as a part of the service: a `NodeConfig` becomes a node of an Erlang cluster.

What is spoken is `kvproto.dist`'s business, who accepts is `kvproto.listeners`'; here they
are given credentials, started, rotated and stopped.
"""

from __future__ import annotations

from kvproto.nodes.files import node_files, read_cookie
from kvproto.nodes.restarts import Restarts
from kvproto.nodes.service import LISTENER, Began, NodeService

__all__ = ["LISTENER", "Began", "NodeService", "Restarts", "node_files", "read_cookie"]
