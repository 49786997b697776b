"""SASL mechanisms, server side, as small machines without I/O.

A mechanism takes what the client sent and says what to answer.  Which user a peer becomes, and what
that user may do, is not its business.

Source: RFC 4616 (PLAIN); Couchbase kv_engine ``docs/sasl.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from twisted.internet.defer import Deferred

from kvproto.server.shared import Peer

__all__ = ["MECHANISMS", "Mechanism", "Plain", "Verdict", "mechanism_list"]


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

FAILED = Verdict(False)


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
        if len(parts) != 3:
            return FAILED
        authorise_as, name, password = parts
        # Cyrus (libmemcached) names the user twice; to act for somebody else is nobody's right.
        if authorise_as not in {b"", name}:
            return FAILED
        right = self._peer.check(name.decode("utf-8", "replace"), password)
        if isinstance(right, Deferred):
            return right.addCallback(Verdict)
        return Verdict(right)


MECHANISMS: dict[bytes, Callable[[Peer], Mechanism]] = {b"PLAIN": Plain}
"""How each mechanism begins, the preferred one first."""


def mechanism_list() -> bytes:
    """Return the answer to SASL_LIST: names, separated by spaces."""
    return b" ".join(MECHANISMS)
