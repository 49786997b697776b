"""How connections become sessions: behind a listener, or behind any Twisted port.

`KVController` is what a listener of this package hands verified connections to.  `KVServerFactory`
is an ordinary factory, for TLS of your own, for plain TCP, for tests.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from zope.interface import implementer

from kvproto.interfaces import IController
from kvproto.server.binary import BinarySession
from kvproto.server.faults import FaultPlan, faulty
from kvproto.server.protocol import KVServerProtocol
from kvproto.server.refusal import RefusingProtocol
from kvproto.server.server import KVServer
from kvproto.server.text import TextSession

__all__ = ["KVController", "KVServerFactory"]


@implementer(IController)
class KVController:
    """Makes a session of each verified connection.

    Args:
        server: What the sessions share.
        faults: What shall go wrong with requests; None: nothing on purpose.
    """

    def __init__(self, server: KVServer, faults: FaultPlan | None = None) -> None:
        self.server = server
        self._dialects = (BinarySession, TextSession) if faults is None else faulty(faults)

    def claim(self, connection: Any) -> KVServerProtocol:
        """Take a connection; a session is ready at once."""
        binary, text = self._dialects
        return KVServerProtocol(self.server, connection, binary=binary, text=text)

    def too_late(self, connection: Any) -> None:
        """Note that a claim came too late; there is nothing to let go of."""

    def refuse(self, connection: Any, reason: str) -> RefusingProtocol:
        """Return a protocol that says "busy"."""
        self.server.counters.rejected_connections += 1
        return RefusingProtocol()


class KVServerFactory(ServerFactory):
    """Makes a session of each connection, on whatever transport.

    Over TLS, client certificates are logins if the transport provides
    `kvproto.interfaces.ISecuredTransport`, as `kvproto.tls` does.

    Args:
        server: What the sessions share.
    """

    noisy = False

    def __init__(self, server: KVServer) -> None:
        self.server = server

    def buildProtocol(self, addr: IAddress | None) -> KVServerProtocol:
        """Make a session."""
        protocol = KVServerProtocol(self.server)
        protocol.factory = self
        return protocol
