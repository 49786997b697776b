"""One port for TLS and, where that is allowed, plain HTTP: the first byte of a connection tells.

So the management port has one number, which clients of both kinds find in the cluster map.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocolFactory, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from kvproto.base.http import BoundedSite

__all__ = ["FIRST_BYTE_SECONDS", "ManagementFactory"]

FIRST_BYTE_SECONDS = 10.0
"""After which a connection is closed that has sent nothing."""

_HANDSHAKE = b"\x16"
"""First byte of TLS (RFC 8446 section 5.1); no HTTP method begins with it."""

_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_WHY = b"This port speaks TLS: use https://. (Plain HTTP is served on loopback with --plain.)\n"


class _FirstByte(ProtocolWrapper):
    """Waits for the first byte, then steps aside: what follows is only handed on."""

    _deadline: IDelayedCall | None = None
    transport: Any

    def makeConnection(self, transport: Any) -> None:
        """Wait."""
        self.transport = transport
        self.factory.open.add(self)
        self._deadline = self.factory.clock.callLater(FIRST_BYTE_SECONDS, self._silent)

    def _silent(self) -> None:
        self._deadline = None
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Choose who speaks to this client."""
        self._stop_waiting()
        secured = data[:1] == _HANDSHAKE
        factory = self.factory.secured if secured else self.factory.site
        if not secured and not self.factory.plain:
            self.transport.write(_REFUSAL % (len(_WHY), _WHY))
            self.transport.loseConnection()
            return
        protocol: Any = factory.buildProtocol(self.transport.getPeer())
        self.wrappedProtocol = protocol
        self.dataReceived = protocol.dataReceived  # type: ignore[method-assign]
        protocol.makeConnection(self)
        protocol.dataReceived(data)

    def _stop_waiting(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hand on the end of the connection."""
        self._stop_waiting()
        self.factory.open.discard(self)
        if self.wrappedProtocol is not None:
            self.wrappedProtocol.connectionLost(reason)


class ManagementFactory(WrappingFactory):
    """Gives each connection to who speaks its language.

    Args:
        site: Speaks HTTP.
        secured: Speaks TLS, and HTTP in it.
        plain: Whether a client may do without TLS; if not, it is told so.
        clock: For deadlines.
        most: Connections that may be open at once.

    Attributes:
        open: The connections that are open.
    """

    protocol = _FirstByte
    noisy = False

    def __init__(
        self,
        site: BoundedSite,
        secured: IProtocolFactory,
        plain: bool,
        clock: IReactorTime,
        most: int = 256,
    ) -> None:
        super().__init__(site)
        self.site = site
        self.secured = secured
        self.plain = plain
        self.clock = clock
        self.open: set[_FirstByte] = set()
        self._most = most

    def close(self) -> None:
        """End every connection."""
        self.site.close()
        for waiting in [one for one in self.open if one.wrappedProtocol is None]:
            waiting.loseConnection()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make what waits for the first byte; None when too many do."""
        if len(self.open) >= self._most:
            return None
        return _FirstByte(self, None)  # type: ignore[arg-type]
