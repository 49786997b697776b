"""A key-value client for Twisted: pipelined, reconnecting, a Deferred for each request.

::

    endpoint = clientFromString(reactor, "kvtls:kv.example:11207:caCertificate=ca.pem")
    client = KVClient(endpoint, reactor, SessionSettings(Credentials("alice", "secret"), "default"))
    client.startService()
    await client.set(b"greeting", b"hello")
    found = await client.get(b"greeting")
    await client.close()

Knows nothing of TLS: that is the endpoint's business.  See ``docs/howto/twisted-client.md``.
"""

from __future__ import annotations

from kvproto.client.bootstrap import DEFAULT_FEATURES, Credentials, SessionSettings
from kvproto.client.client import KVClient, Limits
from kvproto.client.collection import Collection
from kvproto.client.connector import ConnectorState, growing_delays
from kvproto.client.errors import (
    AccessError,
    AmbiguousWriteError,
    BucketError,
    CasMismatchError,
    ConnectionFailedError,
    DurabilityError,
    ExistsError,
    InvalidRequestError,
    LockedError,
    LoginError,
    NotANumberError,
    NotFoundError,
    NotLockedError,
    NotNegotiatedError,
    NotStoredError,
    OversizedReplyError,
    QueueFullError,
    ReplyError,
    RequestTimeoutError,
    ServerFaultError,
    StaleLoginError,
    StoppedError,
    TemporaryError,
    TooBigError,
    UnansweredError,
    UnknownCollectionError,
    UnsupportedError,
    WrongNodeError,
)
from kvproto.client.protocol import KVClientProtocol
from kvproto.client.results import CounterResult, GetResult, MutationResult, MutationToken
from kvproto.wire.framing import Durability

__all__ = [
    "DEFAULT_FEATURES",
    "AccessError",
    "AmbiguousWriteError",
    "BucketError",
    "CasMismatchError",
    "Collection",
    "ConnectionFailedError",
    "ConnectorState",
    "CounterResult",
    "Credentials",
    "Durability",
    "DurabilityError",
    "ExistsError",
    "GetResult",
    "InvalidRequestError",
    "KVClient",
    "KVClientProtocol",
    "Limits",
    "LockedError",
    "LoginError",
    "MutationResult",
    "MutationToken",
    "NotANumberError",
    "NotFoundError",
    "NotLockedError",
    "NotNegotiatedError",
    "NotStoredError",
    "OversizedReplyError",
    "QueueFullError",
    "ReplyError",
    "RequestTimeoutError",
    "ServerFaultError",
    "SessionSettings",
    "StaleLoginError",
    "StoppedError",
    "TemporaryError",
    "TooBigError",
    "UnansweredError",
    "UnknownCollectionError",
    "UnsupportedError",
    "WrongNodeError",
    "growing_delays",
]
