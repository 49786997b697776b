"""The seams where rooms meet, as zope interfaces.

``tls``, ``server``, ``client``, ``upstream`` and ``dist`` never import each
other: a secured transport, a controller and a store know one another only by
what is written here.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from zope.interface import Attribute, Interface

__all__ = [
    "IAnswers",
    "IController",
    "IDrainable",
    "ISecuredTransport",
    "IShortcutTransport",
    "IVerifiedConnection",
]


class ISecuredTransport(Interface):
    """A transport that can say how it was secured (``kvproto.tls.KVTLSProtocol`` can)."""

    generation = Attribute(
        "int: number of the credential generation that this connection's handshake used; "
        "0 when its context came from elsewhere."
    )

    def peer_chain() -> tuple[bytes, ...]:
        """Return the peer's certificates as a tuple of DER ``bytes``, leaf first.

        Empty when the peer showed none or the handshake has not ended.
        """

    def tls_version() -> str:
        """Return the negotiated version, ``"TLSv1.2"`` or ``"TLSv1.3"``; ``""`` before that."""


class IVerifiedConnection(Interface):
    """One accepted connection whose TLS handshake ended well, as a controller sees it."""

    id = Attribute("int: unique in this process, counted from 1 in the order of accept().")
    listener = Attribute("str: name of the listener that accepted it.")
    peer = Attribute("IAddress: where it comes from, the PROXY header's word where one is used.")
    generation = Attribute("int: credential generation of its handshake.")
    peer_chain = Attribute("tuple[bytes, ...]: the peer's DER certificates, leaf first.")

    ended_by = Attribute("str: what ended it, a `kvproto.listeners.Event`; the peer until then.")

    def authenticated(user: str) -> None:
        """Note that the peer has logged in: leave the pool of unauthenticated connections.

        Args:
            user: The name, ``""`` for an anonymous peer that may work here.
        """

    def login_ended(mechanism: str, user: str, fault: str) -> None:
        """Note how an attempt to log in ended, for the log and the count.

        Args:
            mechanism: One of a fixed set of names, e.g. ``"PLAIN"``, ``"certificate"``.
            user: The name that the peer gave; ``""`` for none.
            fault: Why it failed, ``""`` when it succeeded.
        """

    def log_fields() -> dict[str, Any]:
        """Return the fields that a line of the log about this connection has."""

    def note_error(reason: str) -> None:
        """Remember why this side is about to close, for the log and the ledger."""


class IController(Interface):
    """What connections of a listener are handed to."""

    def claim(connection: IVerifiedConnection) -> Any:
        """Take a verified connection.

        Args:
            connection: An `IVerifiedConnection`.

        Returns:
            The `IProtocol` that owns the connection from now on, or a Deferred of
            it.  The Deferred must support cancellation: after ``cancel()`` the
            controller lets go of whatever it prepared.
        """

    def too_late(connection: IVerifiedConnection) -> None:
        """Note that a claim was answered after it had been cancelled; the answer is not used."""

    def refuse(connection: IVerifiedConnection, reason: str) -> IProtocol:
        """Return an `IProtocol` that tells the peer "busy" in its own protocol and closes.

        Args:
            connection: An `IVerifiedConnection`.
            reason: A short text for the peer, e.g. ``"too many connections"``.
        """


class IDrainable(Interface):
    """A protocol that can end at a request boundary."""

    def drain() -> Deferred[None]:
        """Answer what has been asked, ask for nothing more, close.

        Returns:
            A Deferred that fires with None once the connection is closed.  The
            caller bounds the wait and aborts.
        """


class IAnswers(Interface):
    """A protocol that can give the answer to a read back, instead of writing it."""

    def answer(data: bytes, replies: list[bytes]) -> int:
        """Take a read, and answer what can be answered at once.

        It does not touch the transport, and does not raise.

        Args:
            data: What was read, as for ``dataReceived``.
            replies: Takes the replies, in order.

        Returns:
            ``len(data)`` if the replies are all that there is to do.  Less: ``dataReceived`` must
            be called at once when the replies were written, with the rest of `data`.  The
            protocol, which may have taken all of it already, then does to the transport what is
            left to do.
        """


class IShortcutTransport(Interface):
    """A transport that can take a read past its protocol (`kvproto.tls.shortcut`)."""

    shortcut = Attribute(
        "Callable[[bytes], bytes | None] or None: called with a read in place of the protocol's "
        "``dataReceived``; returns what to send.  When it returns None the protocol gets the "
        "read.  Set to None by whoever has set it, as soon as something else is under way."
    )
