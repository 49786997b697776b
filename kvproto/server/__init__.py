"""What a connection may ask: key-value sessions, binary and text, on any Twisted transport."""

from __future__ import annotations

from kvproto.server.buckets import Bucket, CollectionSettings, Manifest
from kvproto.server.controller import KVController, KVServerFactory
from kvproto.server.counters import Counters
from kvproto.server.passwords import (
    DEFAULT_ITERATIONS,
    HashVerifier,
    hash_password,
)
from kvproto.server.protocol import KVServerProtocol
from kvproto.server.server import Identify, KVServer
from kvproto.server.settings import ServerSettings
from kvproto.server.users import UserTable, Verifier

__all__ = [
    "DEFAULT_ITERATIONS",
    "Bucket",
    "CollectionSettings",
    "Counters",
    "HashVerifier",
    "Identify",
    "KVController",
    "KVServer",
    "KVServerFactory",
    "KVServerProtocol",
    "Manifest",
    "ServerSettings",
    "UserTable",
    "Verifier",
    "hash_password",
]
