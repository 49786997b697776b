"""One line of the ledger: an accepted connection, and what may be said to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress

from kvproto.base.addresses import describe_peer
from kvproto.listeners.states import Event, State

__all__ = ["NULL_CONNECTION", "Entry", "IAccepted", "Rank"]


class IAccepted(Protocol):
    """A connection as the ledger knows it."""

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's DER certificates, leaf first."""

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Let an event happen to it."""

    def progressed(self) -> bool:
        """Return whether the peer has sent more than the beginning of a handshake."""

    def traffic(self) -> tuple[int, int] | None:
        """Return bytes received and sent so far; None where nobody counts them."""


class NullConnection:
    """Takes the place of a connection that is gone, and ignores all events.

    So what still holds an entry (a drain, a status page) does not hold protocol, transport and
    owner with it.
    """

    peer_chain: tuple[bytes, ...] = ()

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Do nothing."""

    def progressed(self) -> bool:
        """Return True: there is nothing to wait for."""
        return True

    def traffic(self) -> tuple[int, int] | None:
        """Return None: nothing moves any more."""
        return None


NULL_CONNECTION = NullConnection()


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
        active: When the last request of its was complete; never over where nobody watches that.
        state: Where it is; changed by `Ledger.enter` only.
        stage: The last state in which nobody had begun to end it: how far it came.
        deadline: When its state ends of itself; None only for an owned connection
            whose peer showed no certificate that expires.
        expires: When its peer's certificate ends, in Unix seconds; None when it does not, or
            where nothing is done about it.
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
    active: float = 0.0
    deadline: float | None = None
    expires: float | None = None
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

    def log_fields(self) -> dict[str, Any]:
        """Return the fields that every line of the log about a connection has."""
        return {
            "connection": self.id,
            "peer": describe_peer(self.peer),
            "listener": self.listener,
        }
