"""One line of the ledger: an accepted connection, and what may be said to it."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.interfaces import IAddress

from kvproto.listeners.states import Event, State

__all__ = ["GONE", "Entry", "IAccepted", "Rank", "describe_peer", "host_of"]


class IAccepted(Protocol):
    """What the ledger says to a connection."""

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's DER certificates, leaf first."""

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Let an event happen to it."""

    def progressed(self) -> bool:
        """Tell whether the peer has sent more than the beginning of a handshake."""


class _Gone:
    """Whom events are said to once a connection is gone: nobody.

    It takes the place of the connection, so that what still holds an entry (a drain, a
    status page) does not hold protocol, transport and owner with it.
    """

    peer_chain: tuple[bytes, ...] = ()

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Do nothing."""

    def progressed(self) -> bool:
        """Say that there is nothing to wait for."""
        return True


GONE = _Gone()


class Rank(enum.IntEnum):
    """How much a connection that has not logged in has achieved."""

    SILENT = 0
    ADVANCED = 1
    VERIFIED = 2


@dataclass(slots=True, eq=False)
class Entry:
    """One accepted connection.

    Attributes:
        id: Unique in this process, from 1 in the order of accept().
        listener: Name of the listener that accepted it.
        peer: Where it comes from; the PROXY header's word once that is known.
        accepted: What to say events to.
        since: When it entered its state, in seconds of the ledger's clock.
        born: When it was accepted.
        state: Where it is; changed by `Ledger.enter` only.
        stage: The last state in which nobody had begun to end it: how far it came.
        deadline: When its state ends of itself; None only for an owned connection
            whose peer showed no certificate that expires.
        generation: Credential generation of its handshake, 0 when not known.
        tls: Version of TLS, ``""`` before the end of the handshake and without one.
        user: Who it logged in as, ``""`` for anonymous, None before that.
        owner: Class name of the protocol that owns it, ``""`` before that.
        reason: Why it ends, ``""`` as long as nobody knows.
        host: The peer's address without its port, ``""`` when it has none.
        direction: ``"in"`` for accepted ones; links that we dial will say ``"out"``.
        rank: How far it came, for choosing who makes room.
        counted: Whether it takes one of the places of verified connections.
    """

    id: int
    listener: str
    peer: IAddress | None
    accepted: IAccepted
    since: float
    born: float
    state: State = State.HANDSHAKING
    stage: State = State.HANDSHAKING
    deadline: float | None = None
    generation: int = 0
    tls: str = ""
    user: str | None = None
    owner: str = ""
    reason: str = ""
    host: str = ""
    direction: str = "in"
    rank: Rank = Rank.SILENT
    counted: bool = False

    def describe_peer(self) -> str:
        """Return the peer as logs show it."""
        return describe_peer(self.peer)


_MAPPED = "::ffff:"
"""Beginning of an IPv4 address as an IPv6 socket, or a proxy, shows it."""


def host_of(peer: IAddress | None) -> str:
    """Return the peer's address without its port, ``""`` when it has none.

    One address has one form here, however it came in: limits count by it.
    """
    host: str = getattr(peer, "host", None) or ""
    if host.startswith(_MAPPED):
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        return host if mapped is None else str(mapped)
    return host


def describe_peer(peer: IAddress | None) -> str:
    """Return the peer for logs and status: ``192.0.2.1:4711``, ``[2001:db8::1]:4711``, ``unix``."""
    host = getattr(peer, "host", None) or ""
    if not host:
        return "unknown" if peer is None else "unix"
    port = getattr(peer, "port", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
