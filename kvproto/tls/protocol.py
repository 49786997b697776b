"""`KVTLSProtocol`: TLS for any Twisted protocol, in place of Twisted's own.

The names by which transports, applications and Twisted's own code know a connection's TLS, and what
they may ask about it.  What is done is done by its `kvproto.tls.shell.Shell`; nothing that a read
or a write needs is kept here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from OpenSSL.SSL import Connection
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.interfaces import ISecuredTransport
from kvproto.tls.machine import HANDSHAKING
from kvproto.tls.peer import peer_chain, tls_version
from kvproto.tls.shell import Shell

__all__ = ["LIMITS", "KVTLSProtocol"]

LIMITS: Final = (
    "handshake_timeout",
    "close_timeout",
    "half_close_timeout",
    "answer_pause",
    "allow_renegotiation",
    "renegotiation_limit",
    "junk_budget",
)
"""Attributes of the protocol class that a factory's attribute of the same name replaces."""

_INHERIT: Final = object()


@implementer(ISecuredTransport, IHalfCloseableProtocol)
class KVTLSProtocol(TLSMemoryBIOProtocol):
    """TLS between a transport and a wrapped protocol, in place of Twisted's own.

    The attributes below can be changed on a subclass, or per factory: a factory that has an
    attribute of the same name (``factory.handshake_timeout = 5``) gives its value to each
    connection that it builds.

    Attributes:
        handshake_timeout: Seconds from the connection to the end of the handshake; a
            renegotiation that blocks our writes gets the same.  None for no limit.
        close_timeout: Seconds that a closing peer may take without progress; None for ever,
            and then the next two are off as well.
        half_close_timeout: Seconds that answers to a peer that has ended its side may take
            without progress, the application's time included; None for ever.
        answer_pause: Seconds of silence after which an application that is no
            `IHalfCloseableProtocol` is taken to have answered such a peer; 0 to close at once.
        allow_renegotiation: Whether TLS 1.2 peers may renegotiate.  The context must not
            forbid it (``OP_NO_RENEGOTIATION``).
        renegotiation_limit: How often, per connection.
        junk_budget: Bytes of ciphertext that may arrive without any application data in
            them, and bytes of TLS answers kept for a peer that does not read them.
        generation: Number of the credentials in use, set by who creates the connection.
        close_reason: Why the connection ended, for people; ``""`` while it has not.
    """

    handshake_timeout: float | None = 10
    close_timeout: float | None = 3
    half_close_timeout: float | None = 30
    answer_pause: float = 1.0
    allow_renegotiation = False
    renegotiation_limit = 3
    junk_budget = 256 * 1024
    generation = 0
    close_reason = ""

    transport: Any

    __conform__ = None
    """Asked at each adaptation; looked for in the transport otherwise, and not found there."""

    def __init__(
        self, factory: TLSMemoryBIOFactory, wrappedProtocol: IProtocol, _connectWrapped: bool = True
    ) -> None:
        self.transport = None
        self._shell = Shell(factory, wrappedProtocol)
        super().__init__(factory, wrappedProtocol, _connectWrapped)
        for name in LIMITS:
            value = getattr(factory, name, _INHERIT)
            if value is not _INHERIT and value != getattr(self, name):
                setattr(self, name, value)

    # --- who is there ---------------------------------------------------------------------

    @property
    def _tlsConnection(self) -> Any:
        """The OpenSSL connection under the name that Twisted's code and tests use."""
        machine = self._shell.machine
        return None if machine is None else machine.engine.connection

    @_tlsConnection.setter
    def _tlsConnection(self, connection: Connection) -> None:
        self._shell.use(connection)

    @property
    def _negotiated(self) -> Any:
        """The OpenSSL connection once its handshake has ended, None before that."""
        machine = self._shell.machine
        if machine is None or machine.last is HANDSHAKING:
            return None
        return machine.engine.connection

    def getPeerCertificate(self) -> Any:
        """Return the peer's certificate as pyOpenSSL's X509; None without one or at the end."""
        connection = self._tlsConnection
        return None if connection is None else connection.get_peer_certificate()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol chosen by ALPN, None when there was no choice."""
        connection = self._tlsConnection
        return None if connection is None else connection.get_alpn_proto_negotiated() or None

    def peer_chain(self) -> tuple[bytes, ...]:
        """Return the peer's certificates as DER, leaf first; empty before the handshake's end."""
        connection = self._negotiated
        return () if connection is None else peer_chain(connection)

    def tls_version(self) -> str:
        """Return ``"TLSv1.2"`` or ``"TLSv1.3"``; ``""`` while nothing is negotiated."""
        connection = self._negotiated
        return "" if connection is None else tls_version(connection)

    @property
    def wrappedProtocol(self) -> Any:
        """The application's protocol, None once it has been told of the end."""
        return self._shell.wrappedProtocol

    @wrappedProtocol.setter
    def wrappedProtocol(self, protocol: Any) -> None:
        self._shell.wrappedProtocol = protocol

    @property
    def stage(self) -> str:
        """``"handshake"``, ``"established"`` or ``"closing"``."""
        return self._shell.stage

    @property
    def disconnecting(self) -> bool:  # type: ignore[override]  # nobody else may set it
        """Whether the connection has been asked to close."""
        return self._shell.disconnecting

    # --- for the transport ----------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Begin TLS on a transport, and connect the wrapped protocol to us."""
        self._shell.begin(self, transport, connect=self._connectWrapped)

    def dataReceived(self, data: bytes) -> None:
        """Take ciphertext from the transport, and do all that follows from it."""
        self._shell.dataReceived(data)

    def readConnectionLost(self) -> None:
        """Take the end of the transport's input: what came before it is answered."""
        self._shell.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Nothing to do: it is us who close the transport for writing, and all of it."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Notify the application that the transport is gone, once."""
        self._shell.connectionLost(reason)

    # --- for the application --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue application bytes; dropped when the connection is closing or gone.

        Raises:
            TypeError: `data` is no bytes-like object.
        """
        self._shell.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Queue several writes without joining them: large values are not copied.

        Raises:
            TypeError: One of them is no bytes-like object; then none is queued.
        """
        self._shell.writeSequence(iovec)

    @property
    def write_alone(self) -> Any:
        """Writes what nothing more will follow in this turn of the reactor; as `write`."""
        return self._shell.write_alone

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write as fast as the peer reads; pull producers are driven.

        Raises:
            RuntimeError: Another producer is registered.
        """
        self._shell.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Let the producer go; a connection that waited for it to close does so now."""
        self._shell.unregisterProducer()

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`; TLS itself reads on where it has to."""
        self._shell.pauseProducing()

    def resumeProducing(self) -> None:
        """Deliver what has waited, then read on."""
        self._shell.resumeProducing()

    def stopProducing(self) -> None:
        """Close: there is nobody to deliver to."""
        self.loseConnection()

    def loseConnection(self) -> None:
        """Send what is queued and close; nothing received from now on is delivered.

        With a producer registered, closing begins when it unregisters.
        """
        self._shell.loseConnection()

    def lose_when_answered(self) -> None:
        """Close when the application has written nothing for ``answer_pause`` seconds.

        For whoever stands between this and an application that cannot be told that the peer has
        ended its side.  Where there is nothing to wait for it closes at once.
        """
        self._shell.lose_when_answered()

    def loseWriteConnection(self) -> None:
        """Send what is queued and close_notify; go on receiving until the peer closes.

        TLS 1.2 peers answer by closing at once (RFC 5246, 7.2.1); TLS 1.3 peers need not.
        """
        self._shell.loseWriteConnection()

    def abortConnection(self) -> None:
        """Drop the connection and all that is queued, at once."""
        self._shell.abortConnection()

    def failVerification(self, reason: Failure) -> None:
        """Abort the handshake because of the peer's certificate.

        Args:
            reason: What the application's ``connectionLost`` gets.
        """
        self._shell.failVerification(reason)

    # --- for Twisted ----------------------------------------------------------------------

    @property
    def _producer(self) -> Any:  # type: ignore[override]
        """The gate of the application's producer, under Twisted's name."""
        return self._shell.producer

    def _shutdownTLS(self) -> None:
        """Send close_notify, under the name that Twisted has for it."""
        self._shell.shut_down()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        """Close the transport, since nothing more can come, under Twisted's name for it."""
        self._shell.finish(reason)
