"""`KVTLSProtocol` and `KVTLSFactory`: TLS for any Twisted protocol, on OpenSSL's memory BIOs.

Puts the parts together (``incoming``, ``outgoing``, ``closing``) and owns the beginning:
limits, the OpenSSL connection, the handshake; and the answers to "who is there?".

The defects of Twisted's own TLS that this class avoids are
told in ``docs/explanation/stock-twisted-tls.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL.SSL import (
    OP_NO_RENEGOTIATION,
    TLS1_2_VERSION,
    TLS1_3_VERSION,
    Connection,
    Error,
    WantWriteError,
)
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import BaseProtocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementedBy, implementer, providedBy

from kvproto.base.log import make_logger
from kvproto.base.turn import Turn
from kvproto.interfaces import ISecuredTransport
from kvproto.tls._handles import engine_for
from kvproto.tls.contexts import ClientContext, CurrentContext
from kvproto.tls.incoming import IncomingTLS
from kvproto.tls.outbox import Outbox
from kvproto.tls.records import RecordCounter

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IProtocol


__all__ = ["LIMITS", "KVTLSFactory", "KVTLSProtocol"]

log = make_logger()

OP_ALLOW_CLIENT_RENEGOTIATION: Final = 0x100
"""OpenSSL 3 refuses renegotiation begun by a client unless told; pyOpenSSL has no name for it."""

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

OWN_CREATORS: Final = (ClientContext, CurrentContext)

_INHERIT: Final = object()

_VERSIONS: Final = {TLS1_2_VERSION: "TLSv1.2", TLS1_3_VERSION: "TLSv1.3"}
"""OpenSSL's own names, which it gives out as C strings."""

_DECLARATIONS: dict[tuple[type, type], Any] = {}
"""What a protocol of one class provides on a transport of another: declared once for each pair."""


@implementer(ISecuredTransport, IHalfCloseableProtocol)
class KVTLSProtocol(IncomingTLS):
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
    """

    handshake_timeout: float | None = 10
    close_timeout: float | None = 3
    half_close_timeout: float | None = 30
    answer_pause: float = 1.0
    allow_renegotiation = False
    renegotiation_limit = 3
    junk_budget = 256 * 1024
    generation = 0

    def __init__(
        self, factory: TLSMemoryBIOFactory, wrappedProtocol: IProtocol, _connectWrapped: bool = True
    ) -> None:
        # CPython keeps up to 30 attributes side by side, without a dictionary for each instance,
        # if it has seen all of their names while there were few instances.  So everything that
        # most connections set while they live is set here, what a request needs first, since that
        # then shares lines of the processor's cache; what few connections change is the class's.
        self._fast = self._reading = self._flushing = self._full = False
        self._engine = None  # type: ignore[assignment]  # from makeConnection on
        self.wrappedProtocol = wrappedProtocol
        self._unfed = []
        self._outbox = Outbox()
        self._junk = self._given = 0
        self._mute = self._watching = False
        self.transport = None
        self._gate = self._producer = None
        super().__init__(factory, wrappedProtocol, _connectWrapped)
        self._records = RecordCounter()
        self._held = []
        self.connected = self._handshakeDone = self._lostTLSConnection = self._ended = False
        self._dirty = False
        self._first_bytes = b""
        self.close_reason = ""
        for name in LIMITS:
            value = getattr(factory, name, _INHERIT)
            if value is not _INHERIT and value != getattr(self, name):
                setattr(self, name, value)

    # --- who is there ---------------------------------------------------------------------

    @property
    def _tlsConnection(self) -> Any:
        """The OpenSSL connection under the name that Twisted's code and tests use."""
        engine = self._engine
        return None if engine is None else engine.connection

    @_tlsConnection.setter
    def _tlsConnection(self, connection: Connection) -> None:
        self._engine = engine_for(connection)

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
        connection = self._tlsConnection
        if connection is None or not self._handshakeDone:
            return ()
        leaf = connection.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        chain: list[x509.Certificate] = connection.get_peer_cert_chain(as_cryptography=True) or []
        if leaf not in chain[:1]:
            # On servers OpenSSL leaves the leaf out of the chain.
            chain.insert(0, leaf)
        return tuple(one.public_bytes(Encoding.DER) for one in chain)

    def tls_version(self) -> str:
        """Return ``"TLSv1.2"`` or ``"TLSv1.3"``; ``""`` while nothing is negotiated."""
        connection = self._tlsConnection
        if connection is None or not self._handshakeDone:
            return ""
        number = connection.get_protocol_version()
        return _VERSIONS.get(number) or str(connection.get_protocol_version_name())

    # --- the beginning --------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Begin TLS on a transport, and connect the wrapped protocol to us."""
        self._provide_what(transport)
        self.transport = transport
        failure = self._create_connection()
        BaseProtocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        if failure is None:
            self._arm_handshake()
        else:
            self._reason = failure
            self._aborted = self._lostTLSConnection = self._mute = True
        if self._connectWrapped:
            try:
                self.wrappedProtocol.makeConnection(self)
            except BaseException:
                self._app_failed = True
                self.abortConnection()
                raise
        if failure is not None:
            self._abort_transport()
            return
        if not getattr(self.factory, "serves", False):
            self._reading = True
            try:
                self._handshake(first=True)
            finally:
                self._reading = False
            self._is_client = self._given > 0
        if self._unfed or self._outbox.pieces:
            self._drive()

    def _provide_what(self, transport: Any) -> None:
        """Provide what the transport provides, as Twisted's own TLS does."""
        provided = providedBy(transport)
        kind = self.__class__, transport.__class__
        if provided is not implementedBy(transport.__class__):
            directlyProvides(self, provided)
        elif kind in _DECLARATIONS:
            self.__provides__ = _DECLARATIONS[kind]
        else:
            directlyProvides(self, provided)
            _DECLARATIONS[kind] = self.__provides__

    def _create_connection(self) -> Failure | None:
        """Make the OpenSSL connection; return why that failed."""
        factory: Any = self.factory
        try:
            # Twisted 26 has a callable, 24 and 25 a method.
            create = getattr(factory, "_creatorCallable", None) or factory._createConnection
            connection = create(self)
        except Exception:
            failure = Failure()
            log.failure("no TLS connection could be made for {peer}", peer=self._peer_name())
            return failure
        # Absent in older pyOpenSSL; then OpenSSL's own default, to refuse clients, holds.
        set_options = getattr(connection, "set_options", None)
        if set_options is not None:
            allowed = self.allow_renegotiation
            set_options(OP_ALLOW_CLIENT_RENEGOTIATION if allowed else OP_NO_RENEGOTIATION)
        self._tlsConnection = connection
        return None

    def _this_turn(self) -> Turn[Any]:
        factory: Any = self.factory
        clock = self._clock
        turn: Turn[Any] | None = getattr(factory, "turn", None)
        if turn is None or turn.clock is not clock:
            turn = factory.turn = Turn(clock, KVTLSProtocol.turn_ended)
        return turn

    def _handshake(self, *, first: bool = False) -> bool:
        if self._deaf():
            return False
        engine = self._engine
        done = False
        engine.busy = True
        try:
            while True:
                try:
                    done = engine.handshake()
                    break
                except WantWriteError:
                    if not self._make_room():
                        break
        except Error as error:
            engine.busy = False
            self._openssl_failed(error)
            return False
        finally:
            engine.busy = False
        # Stand-ins that are done at once may have nothing to fetch from.
        spoke = (done and first) or self._drain()
        if self._deaf():
            self._abort_transport()
        elif done:
            self._handshake_ended()
            if not spoke:
                self._acknowledge()
        return self._handshakeDone

    def _acknowledge(self) -> None:
        """Let the peer's kernel know that its last message has arrived, where nothing else does.

        A client's first request follows its last message of a TLS 1.3 handshake.  Until that is
        acknowledged Nagle's algorithm holds the request back, and where no session ticket goes the
        other way, our kernel takes 40 ms to acknowledge what it expects to be answered.
        """
        acknowledge = None if self._ended else getattr(self.transport, "acknowledge", None)
        if acknowledge is not None:
            acknowledge()

    def _handshake_ended(self) -> None:
        self._handshakeDone = True
        self._records.cipher_changes = 0
        self._disarm_handshake()
        self._input_rules_changed()
        if not self.disconnecting and IHandshakeListener.providedBy(self.wrappedProtocol):
            try:
                self.wrappedProtocol.handshakeCompleted()
            except BaseException:
                self._app_failed = True
                self._fast = False
                raise


class KVTLSFactory(TLSMemoryBIOFactory):
    """Adds TLS to connections, in place of Twisted's ``TLSMemoryBIOFactory``.

    Takes the same arguments: ``contextFactory, isClient, wrappedFactory, clock=None``.
    Deadlines run on `clock`, the global reactor when it is None.

    Limits are those of `KVTLSProtocol`; an attribute of the same name set on a factory (or
    on a subclass) replaces the protocol's for the connections it builds from then on::

        factory = KVTLSFactory(contexts, False, inner)
        factory.handshake_timeout = 5  # seconds; None for no limit
    """

    protocol = KVTLSProtocol

    serves = False
    """Whether all its connections are a server's; set by who knows.  Then OpenSSL is not asked
    before the peer's first bytes whether they are there."""

    def buildProtocol(self, addr: IAddress) -> KVTLSProtocol | None:  # type: ignore[override]
        """Wrap the inner factory's protocol; None, to refuse the connection, stays None."""
        inner = self.wrappedFactory.buildProtocol(addr)
        if inner is None:
            return None
        return self.protocol(self, inner)

    def _applyProtocolNegotiation(self, connection: Connection) -> None:
        """Leave our own contexts alone, where Twisted up to 25 would change them.

        They negotiate by themselves (`kvproto.tls.contexts`), and are shared by connections.
        """
        negotiate = getattr(super(), "_applyProtocolNegotiation", None)
        creator = getattr(self, "_connectionCreator", None)
        if negotiate is not None and not isinstance(creator, OWN_CREATORS):
            negotiate(connection)

    turn: Turn[KVTLSProtocol] | None = None
    """At whose end connections send what was not written in answer to a read; made by the first
    that needs it."""
