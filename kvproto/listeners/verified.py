"""A connection as its controller and its owner see it."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from zope.interface import implementer

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.interfaces import ISecuredTransport, IVerifiedConnection
from kvproto.listeners.entry import Entry
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.states import Event, State

__all__ = ["VerifiedConnection"]

peer_log = LimitedLog(make_logger())

LONGEST_USER = 100
"""Characters of a user's name that are logged: a peer may give one of 16 KiB."""


@implementer(IVerifiedConnection)
class VerifiedConnection:
    """What `kvproto.listeners.Handoff` shows of itself.

    Attributes:
        entry: Its line in the ledger.
    """

    entry: Entry
    transport: Any  # a KVTLSProtocol, a socket, an in-memory pair: asked what it provides
    _ledger: Ledger
    _ended_by: Event
    _notable = False  # whether its end is worth a line in a production service's log

    @property
    def id(self) -> int:
        """Unique in this process, counted from 1 in the order of accept()."""
        return self.entry.id

    @property
    def listener(self) -> str:
        """Name of the listener that accepted it."""
        return self.entry.listener

    @property
    def peer(self) -> IAddress | None:
        """Where it comes from."""
        return self.entry.peer

    @property
    def generation(self) -> int:
        """Credential generation of its handshake."""
        return self.entry.generation

    @property
    def state(self) -> State:
        """Where it is in the table."""
        return self.entry.state

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's DER certificates, leaf first; empty without TLS or without any."""
        if ISecuredTransport.providedBy(self.transport):
            chain: tuple[bytes, ...] = self.transport.peer_chain()
            return chain
        return ()

    @property
    def ended_by(self) -> str:
        """What ended it."""
        return self._ended_by.value

    def authenticated(self, user: str) -> None:
        """Leave the pool of connections that have not logged in."""
        self._ledger.authenticated(self.entry, user)

    def login_ended(self, mechanism: str, user: str, fault: str) -> None:
        """Count an attempt to log in; say so where it failed."""
        self._ledger.login_ended(mechanism, fault)
        if fault:
            peer_log.warn(
                CONNECTION + ": login failed ({mechanism}, user {user}): {reason}",
                **self.log_fields(),
                mechanism=mechanism,
                user=user[:LONGEST_USER] or "not named",
                reason=fault,
            )

    def log_fields(self) -> dict[str, Any]:
        """Return what a line of the log about this connection says of it."""
        return self.entry.log_fields()

    def note_error(self, reason: str) -> None:
        """Remember why the owner is about to close; the first reason is kept.

        An owner that hears of the peer's loss says what that meant, which tells more than
        how the transport ended: a reset, a connection without goodbye.
        """
        if not self._notable and (not self.entry.reason or self._ended_by is Event.PEER_LOST):
            self.entry.reason = reason
            self._notable = True
