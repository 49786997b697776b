"""What a connection may ask: key-value sessions, binary and text, on any Twisted transport."""

from __future__ import annotations

from kvproto.server.controller import KVController, KVServerFactory
from kvproto.server.counters import Counters
from kvproto.server.protocol import KVServerProtocol
from kvproto.server.settings import ServerSettings
from kvproto.server.shared import Identify, KVServer
from kvproto.server.users import PasswordVerifier, UserTable, Verifier

__all__ = [
    "Counters",
    "Identify",
    "KVController",
    "KVServer",
    "KVServerFactory",
    "KVServerProtocol",
    "PasswordVerifier",
    "ServerSettings",
    "UserTable",
    "Verifier",
]
