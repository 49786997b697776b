"""One port for TLS and plain HTTP."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from kvproto.base.http import BoundedSite
from kvproto.management.port import FIRST_BYTE_SECONDS, ManagementFactory
from kvproto.testing.scripted import ScriptedTransport

LOST = Failure(ConnectionDone())


class _Recorder(Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.said.append(data)

    def connectionLost(self, reason: Failure = LOST) -> None:
        self.said.append("lost")


class PortTests(SynchronousTestCase):
    """The first byte of a connection tells."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.spoken: list[_Recorder] = []

    def connect(self, *, plain: bool = False, most: int = 9) -> tuple[Any, ScriptedTransport]:
        """Connect to a port of its own, or, once there is one, to that."""
        if not hasattr(self, "factory"):
            secured = Factory()
            secured.buildProtocol = self._speak  # type: ignore[method-assign, assignment]
            site = BoundedSite(Resource(), self.clock)
            self.factory = ManagementFactory(site, secured, plain, self.clock, most)
        protocol = self.factory.buildProtocol(None)
        transport = ScriptedTransport()
        if protocol is not None:
            transport.connect(protocol)
        return protocol, transport

    def _speak(self, _address: Any) -> _Recorder:
        self.spoken.append(_Recorder())
        return self.spoken[-1]

    def test_tls(self) -> None:
        """A handshake is handed on whole, and so is what follows."""
        protocol, _ = self.connect()
        protocol.dataReceived(b"\x16\x03\x01")
        protocol.dataReceived(b"more")
        self.clock.advance(FIRST_BYTE_SECONDS + 1)
        protocol.connectionLost(LOST)
        self.assertEqual(self.spoken[0].said, [b"\x16\x03\x01", b"more", "lost"])
        self.assertEqual((self.factory.open, self.clock.getDelayedCalls()), (set(), []))

    def test_plain(self) -> None:
        """HTTP is answered where it may be, by a sentence where not."""
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        protocol, transport = self.connect()
        protocol.dataReceived(request)
        self.assertTrue(transport.received.startswith(b"HTTP/1.1 400 "))
        self.assertIn(b"This port speaks TLS", transport.received)
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(LOST)
        del self.factory
        protocol, transport = self.connect(plain=True)
        protocol.dataReceived(request)
        self.assertTrue(transport.received.startswith(b"HTTP/1.1 404 "))
        self.assertEqual(self.spoken, [])

    def test_silence(self) -> None:
        """A connection that says nothing is closed; one that is lost leaves no timer."""
        protocol, transport = self.connect()
        self.clock.advance(FIRST_BYTE_SECONDS)
        self.assertTrue(transport.closed)
        protocol.connectionLost(LOST)
        protocol, _ = self.connect()
        protocol.connectionLost(LOST)
        self.assertEqual((self.factory.open, self.clock.getDelayedCalls()), (set(), []))

    def test_most(self) -> None:
        """So many at once, and places are given back."""
        first, _ = self.connect(most=2)
        self.connect()
        self.assertIsNone(self.connect()[0])
        first.connectionLost(LOST)
        self.assertIsNotNone(self.connect()[0])

    def test_close(self) -> None:
        """The end of the service is the end of those that still wait."""
        _, transport = self.connect()
        self.factory.close()
        self.assertTrue(transport.disconnecting)
