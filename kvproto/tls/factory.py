"""`KVTLSFactory`: TLS on the connections of another factory, in place of Twisted's.

The defects of Twisted's own TLS that this avoids are told in
``docs/explanation/stock-twisted-tls.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.protocols.tls import TLSMemoryBIOFactory

from kvproto.tls.contexts import ClientContext, CurrentContext
from kvproto.tls.protocol import KVTLSProtocol

if TYPE_CHECKING:
    from OpenSSL.SSL import Connection
    from twisted.internet.interfaces import IAddress

    from kvproto.base.turn import Pieces, Turn

__all__ = ["KVTLSFactory"]

OWN_CREATORS: Final = (ClientContext, CurrentContext)


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

    pieces: Pieces[KVTLSProtocol] | None = None
    """Lets connections with much to send do it in turns; made by the first that needs it."""
