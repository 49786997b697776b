"""Reads and answers that go past the protocols, on real sockets, with each engine alike."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
from typing import Any

from twisted.internet import main
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners.transport import DirectServer
from kvproto.testing.contexts import TLS13, server_context
from kvproto.tls import KVTLSFactory, _handles
from kvproto.tls._handles import CffiEngine, NativeEngine
from tests.listeners.test_transport import Poller
from tests.tls.test_handles import require_native
from tests.tls.test_shortcut import Upper
from tests.tls.wired import creator


class CffiTests(SynchronousTestCase):
    """Reads in Python."""

    engine: type[CffiEngine] = CffiEngine
    tls: Any

    def setUp(self) -> None:
        self.patch(_handles, "_best_engine", self.engine)
        self.reactor = Poller()
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        self.peer = socket.create_connection(listening.getsockname(), timeout=30)
        self.addCleanup(self.peer.close)
        ours, _ = listening.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.app = Upper()
        factory = KVTLSFactory(
            creator(server_context(TLS13)),
            False,
            Factory.forProtocol(lambda: self.app),
            self.reactor,
        )
        self.tls = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 7))
        self.transport = DirectServer(
            ours,
            self.tls,
            ("127.0.0.1", 7),
            None,
            7,
            self.reactor,
        )
        self.tls.makeConnection(self.transport)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self.incoming, self.outgoing)
        self.shake_hands()
        self.tls.registerProducer(self.app, True)
        # The first is answered the usual way, and offers the shortcut.
        self.assertEqual(self.ask(b"a"), b"A")
        self.assertIsNotNone(self.transport.shortcut)

    def shake_hands(self) -> None:
        """Go through the handshake."""
        while True:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.say()
                self.incoming.write(self.peer.recv(1 << 16))
            else:
                self.say()
                return

    def say(self, ciphertext: bytes = b"") -> None:
        """Let the server read what the client has sealed."""
        ciphertext = ciphertext or self.outgoing.read()
        self.peer.sendall(ciphertext)
        while ciphertext:
            self.wait_for_input()
            waiting = len(self.transport.socket.recv(len(ciphertext), socket.MSG_PEEK))
            self.assertIsNone(self.transport.doRead())
            ciphertext = ciphertext[waiting:]

    def wait_for_input(self) -> None:
        """Return when the server's socket can be read."""
        self.assertTrue(select.select([self.transport.socket], [], [], 30)[0])

    def hear(self, size: int) -> bytes:
        """Return so many bytes of answers."""
        heard = b""
        while len(heard) < size:
            try:
                heard += self.client.read(size)
            except ssl.SSLWantReadError:
                self.reactor.turn()
                self.incoming.write(self.peer.recv(1 << 16))
        return heard

    def ask(self, letters: bytes) -> bytes:
        """Ask for the upper case of letters, and return it."""
        self.client.write(letters)
        self.say()
        self.reactor.advance(0)
        return self.hear(len(letters) * self.app.repeat)

    def test_answered_in_place(self) -> None:
        """One record is answered without the protocols, one after the other."""
        for letters in (b"a", b"aaa", b"a" * 16_384):
            before = self.app.answered
            self.assertEqual(self.ask(letters), letters.upper())
            self.assertEqual(self.app.answered, before + len(letters))

    def test_answered_otherwise(self) -> None:
        """What the application does not answer in place comes to it."""
        self.assertEqual(self.ask(b"aab"), b"AAB")
        self.assertEqual(bytes(self.app.received), b"ab")

    def test_cut(self) -> None:
        """A record that comes in parts is answered when it is all there."""
        for at in (1, 4, 5, 6, -1):
            self.client.write(b"a")
            record = self.outgoing.read()
            self.say(record[:at])
            self.say(record[at:])
            self.assertEqual(self.hear(1), b"A")

    def test_several(self) -> None:
        """Records that are read together are all answered, in order."""
        for letters in (b"a", b"b", b"aa"):
            self.client.write(letters)
        self.say()
        self.assertEqual(self.hear(4), b"ABAA")

    def test_nothing_to_read(self) -> None:
        """Where nothing is there after all, nothing happens."""
        self.assertIsNone(self.transport.doRead())
        self.assertEqual(self.ask(b"a"), b"A")

    def test_written_alone(self) -> None:
        """What is written outside a read leaves at once."""
        self.tls.write_alone(b"news")
        self.incoming.write(self.peer.recv(1 << 16))
        self.assertEqual(self.client.read(100), b"news")

    def test_more_than_the_socket_takes(self) -> None:
        """Answers wait for who does not read, and come in order when he does."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.app.repeat = 16_000
        sent = 0
        while not self.transport.dataBuffer:
            self.client.write(b"a")
            self.say()
            sent += 1
        self.tls.write_alone(b"last")
        sent += 1
        self.client.write(b"a")
        self.say()
        heard = self.hear(16_000 * sent + 4)
        self.assertEqual(heard, b"A" * 16_000 * (sent - 1) + b"last" + b"A" * 16_000)

    def test_end(self) -> None:
        """The peer's end is what it is without a shortcut."""
        self.peer.close()
        self.wait_for_input()
        self.assertIs(self.transport.doRead(), main.CONNECTION_DONE)

    def test_reset(self) -> None:
        """So is a connection that the peer has broken."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        self.wait_for_input()
        self.assertIs(self.transport.doRead(), main.CONNECTION_LOST)

    def test_written_to_nobody(self) -> None:
        """An answer that cannot be sent ends the connection in a later turn, once."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        self.wait_for_input()
        self.tls.write_alone(b"x")
        self.assertEqual(self.app.reasons, [])
        self.assertIs(self.transport.doRead(), main.CONNECTION_LOST)
        self.transport.connectionLost(Failure(main.CONNECTION_LOST))
        self.assertEqual(len(self.app.reasons), 1)

    def test_after_the_end(self) -> None:
        """Nothing is sent to whoever has got the number of a socket that was closed."""
        number = self.transport.socket.fileno()
        kept = self.transport.shortcut
        assert kept is not None

        def say_goodbye() -> None:
            self.tls.write_alone(b"goodbye")
            kept.send(b"goodbye")  # type: ignore[attr-defined]

        self.app.on_lost = say_goodbye
        left, right = socket.socketpair()
        self.addCleanup(left.close)
        self.addCleanup(right.close)
        right.setblocking(False)
        close = self.transport.socket.close

        def close_and_reuse() -> None:
            close()
            os.dup2(left.fileno(), number)
            self.addCleanup(os.close, number)

        self.patch(self.transport, "_closeSocket", lambda orderly: close_and_reuse())
        self.transport.connectionLost(Failure(main.CONNECTION_LOST))
        self.assertEqual(len(self.app.reasons), 1)
        self.assertRaises(BlockingIOError, right.recv, 1)

    def test_aborted(self) -> None:
        """After abortConnection of the transport nothing is sent."""
        self.transport.abortConnection()
        self.tls.write_alone(b"x")
        self.reactor.advance(0)
        self.assertEqual(len(self.app.reasons), 1)
        self.assertRaises(ConnectionResetError, self.peer.recv, 1)


class CompiledTests(CffiTests):
    """Reads and sends that are compiled."""

    engine = NativeEngine

    def setUp(self) -> None:
        require_native(self)
        super().setUp()
        self.assertIsNotNone(self.transport._read)
