"""SASL mechanisms, server side: what a client sends in, what to answer out.

Which user a peer becomes is `kvproto.server.server.Peer`'s to keep; what it may do then, the
session's.

Source: RFC 4616 (PLAIN), RFC 5802 (SCRAM); Couchbase kv_engine ``docs/sasl.md``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from twisted.internet.defer import Deferred

from kvproto.errors import RemoteProtocolError
from kvproto.server.server import WRONG, Peer
from kvproto.wire.scram import DIGESTS, ServerExchange

__all__ = ["MECHANISMS", "Mechanism", "Plain", "Scram", "Verdict", "mechanism_list"]

_LISTED = (b"SCRAM-SHA512", b"SCRAM-SHA256", b"SCRAM-SHA1", b"PLAIN")
"""Couchbase's spelling.  Cyrus does not know it and so picks PLAIN, which it can."""


MALFORMED = "malformed message"


@dataclass(slots=True)
class Verdict:
    """What a mechanism answers to one message of the client.

    Attributes:
        done: True: the peer is logged in; False: it is not, and the attempt is over; None: the
            client has to say more.
        data: What to send along.
    """

    done: bool | None
    data: bytes = b""


Step: TypeAlias = Verdict | Deferred[Verdict]


class Mechanism(Protocol):
    """One attempt to log in."""

    def step(self, data: bytes) -> Step:
        """Take the client's next message."""


class Plain:
    """PLAIN: ``authzid NUL authcid NUL password`` in one message.

    Args:
        peer: Who is to be logged in.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def step(self, data: bytes) -> Step:
        """Check the password."""
        parts = data.split(b"\0")
        # Cyrus (libmemcached) names the user twice; to act for somebody else is nobody's right.
        if len(parts) != 3 or parts[0] not in {b"", parts[1]}:
            return Verdict(self._peer.conclude(False, "", MALFORMED))
        right = self._peer.check(parts[1].decode("utf-8", "replace"), parts[2])
        if isinstance(right, Deferred):
            return right.addCallback(Verdict)
        return Verdict(right)


class Scram:
    """SCRAM: the password never leaves the client, and nothing slow happens here.

    Args:
        digest: One of SHA-1, SHA-256, SHA-512, as hashlib has it.
        peer: Who is to be logged in.
        nonce: This side's part of the nonce; random when None.
    """

    def __init__(self, digest: str, peer: Peer, nonce: bytes | None = None) -> None:
        self._digest = digest
        self._peer = peer
        self._exchange = ServerExchange(digest, nonce or secrets.token_hex(16).encode())
        self._name: bytes | None = None

    def step(self, data: bytes) -> Step:
        """Take client-first-message, then client-final-message."""
        fault = WRONG
        try:
            if self._name is None:
                return self._challenge(data)
            answer = self._exchange.finish(data)
        except RemoteProtocolError:
            answer, fault = None, MALFORMED
        name = "" if self._name is None else self._name.decode("utf-8", "replace")
        done = self._peer.conclude(answer is not None, name, fault)
        return Verdict(done, answer or b"")

    def _challenge(self, data: bytes) -> Verdict:
        name = self._exchange.begin(data)
        self._name = name
        return Verdict(None, self._exchange.challenge(self._peer.scram_keys(name, self._digest)))


MECHANISMS: dict[bytes, Callable[[Peer], Mechanism]] = {
    **{name: partial(Scram, digest) for name, digest in DIGESTS.items()},
    b"PLAIN": Plain,
}
"""How each mechanism begins."""


def mechanism_list(*, with_users: bool) -> bytes:
    """Return the answer to SASL_LIST: names, separated by spaces.

    Args:
        with_users: Whether there are any; without, no proof of a password could be right.
    """
    return b" ".join(_LISTED if with_users else _LISTED[-1:])
