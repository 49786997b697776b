"""Sending at once: what the socket takes, what it does not, and when it is not asked."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.scripted import ScriptedTransport
from kvproto.upstream.direct import DirectSender, sender_of


class DirectSenderTests(SynchronousTestCase):
    """A connection of Twisted's, on one end of a pair of sockets."""

    def setUp(self) -> None:
        ours, self.peer = socket.socketpair()
        self.addCleanup(self.peer.close)
        self.addCleanup(ours.close)
        ours.setblocking(False)
        self.peer.settimeout(10)
        self.reactor: Any = MemoryReactorClock()
        self.transport: Any = tcp.Connection(ours, Protocol(), self.reactor)
        self.transport.connected = True
        self.sender = DirectSender(self.transport)

    def test_at_once(self) -> None:
        """What the socket takes needs no turn of the reactor."""
        self.sender.write(b"now")
        self.assertEqual(self.peer.recv(100), b"now")
        self.assertEqual(self.reactor.getWriters(), [])

    def test_in_order(self) -> None:
        """What the socket does not take is queued, and what comes later waits behind it."""
        sent = bytes(range(256)) * 20_000
        self.sender.write(sent)
        self.assertEqual(self.reactor.getWriters(), [self.transport])
        self.sender.write(b"last")
        received = b""
        while len(received) < len(sent) + 4:
            if self.transport in self.reactor.getWriters():
                self.transport.doWrite()
            received += self.peer.recv(1 << 20)
        self.assertTrue(received == sent + b"last")

    def test_peer_gone(self) -> None:
        """An error is the transport's to tell: nothing is raised here."""
        self.peer.close()
        self.sender.write(b"nobody")
        self.assertEqual(self.reactor.getWriters(), [self.transport])
        self.assertIsNotNone(self.transport.doWrite())

    def test_closing(self) -> None:
        """A connection that is being closed is written to as ever: not at all."""
        self.transport.disconnecting = True
        self.sender.write(b"late")
        self.transport.connected = False
        self.sender.write(b"later")
        self.peer.setblocking(False)
        self.assertRaises(BlockingIOError, self.peer.recv, 100)

    def test_others(self) -> None:
        """A transport of another kind, which may be TLS, is only written to."""
        transport: Any = ScriptedTransport()
        sender_of(transport)(b"text")
        self.assertEqual(transport.received, b"text")
        self.assertEqual(sender_of(self.transport), self.transport.write)
