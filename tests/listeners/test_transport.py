"""Accepted sockets that send at once, on socket pairs and on sockets that answer as we like."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import error, main, tcp, unix
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kvproto.interfaces import IShortcutTransport
from kvproto.listeners import transport as under_test
from kvproto.listeners.transport import (
    MAX_PARTS,
    READ_SIZE,
    DirectServer,
    DirectUNIXServer,
    server_transport,
    unix_server_transport,
)
from kvproto.testing.contexts import Creator, server_context

MUCH = bytes(range(256)) * 8192
"""2 MiB: more than a socket pair with small buffers takes."""


class Poller(Clock):
    """A reactor's part that knows who wants to read and write, and lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def turn(self) -> None:
        """Let everybody write who wants to, and end whom that ends, as the reactor does."""
        for writer in list(self.writers):
            why = writer.doWrite()
            if why is not None:
                self.readers.discard(writer)
                self.writers.discard(writer)
                writer.connectionLost(Failure(why))


@implementer(IHalfCloseableProtocol)
class Listening(Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.lost: list[Failure] = []
        self.write_closed = False

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason)

    def readConnectionLost(self) -> None:
        raise AssertionError("nobody asked for that here")

    def writeConnectionLost(self) -> None:
        self.write_closed = True


class Producer:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.paused = 0
        self.resumed = 0

    def pauseProducing(self) -> None:
        self.paused += 1

    def resumeProducing(self) -> None:
        self.resumed += 1

    def stopProducing(self) -> None:
        """Nothing to stop."""


class BrokenSocket:
    """A socket whose sends fail and whose reads end."""

    def __init__(self, number: int) -> None:
        self.number = number

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def fileno(self) -> int:
        return 99

    def send(self, data: bytes) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def sendmsg(self, parts: list[bytes]) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def recv_into(self, buffer: bytearray) -> int:
        return 0

    def recvmsg(self, *sizes: int) -> tuple[bytes, list[Any], int, None]:
        return b"", [], 0, None

    def shutdown(self, how: int) -> None:
        """Nothing to shut down."""

    def close(self) -> None:
        """Nothing to close."""


class _Transports(SynchronousTestCase):
    """One transport on one end of a socket pair, the other end in our hands."""

    make: type[DirectServer] | type[DirectUNIXServer] = DirectServer

    def setUp(self) -> None:
        self.reactor = Poller()
        self.protocol = Listening()
        ours, self.peer = socket.socketpair()
        self.addCleanup(self.peer.close)
        self.addCleanup(ours.close)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.peer.setblocking(False)
        self.transport = self._transport(ours)

    def _transport(self, ours: Any) -> Any:
        made = cast("Any", self.make)(ours, self.protocol, ("127.0.0.1", 7), None, 0, self.reactor)
        self.protocol.makeConnection(made)
        return made

    def _broken(self, number: int) -> Any:
        return self._transport(BrokenSocket(number))

    def _received(self) -> bytes:
        """Read everything that the transport sends, letting it write."""
        got = []
        for _ in range(10_000):
            try:
                piece = self.peer.recv(1 << 20)
            except BlockingIOError:
                if not self.reactor.writers:
                    break
                self.reactor.turn()
                continue
            if not piece:
                break
            got.append(piece)
        return b"".join(got)


class SendingTests(_Transports):
    """What happens with what is written."""

    def test_a_small_write_leaves_at_once(self) -> None:
        """The peer has it before any turn of the reactor, which is asked for nothing."""
        self.transport.write(b"hello")
        self.assertEqual(self.peer.recv(100), b"hello")
        self.assertEqual(self.reactor.writers, set())

    def test_an_empty_write_does_nothing(self) -> None:
        """Nothing is sent and nothing waits."""
        self.transport.write(b"")
        self.assertEqual(self.reactor.writers, set())
        self.assertRaises(BlockingIOError, self.peer.recv, 1)

    def test_what_the_socket_does_not_take_waits(self) -> None:
        """A large write is sent in part, the rest in the reactor's turns, every byte once."""
        self.transport.write(MUCH)
        self.assertIn(self.transport, self.reactor.writers)
        self.assertEqual(self._received(), MUCH)
        self.assertEqual(self.reactor.writers, set())

    def test_order_stays_when_something_waits(self) -> None:
        """What is written behind a queue is sent behind it."""
        self.transport.write(MUCH)
        self.transport.write(b"second")
        self.transport.writeSequence([b"third", b"fourth"])
        self.assertEqual(self._received(), MUCH + b"secondthirdfourth")

    def test_a_sequence_behind_one_write_that_waits(self) -> None:
        """A sequence goes behind the rest of the only write before it."""
        self.transport.write(MUCH)
        self.transport.writeSequence([b"second", b"third"])
        self.assertEqual(self._received(), MUCH + b"secondthird")

    def test_a_sequence_of_a_pull_producer(self) -> None:
        """Several pieces of a pull producer are queued as one is; a streaming one's leave."""
        for streaming in (False, True):
            self.transport.registerProducer(Producer(), streaming)
            self.transport.writeSequence([b"one", b"two"])
            self.assertIs(self.transport in self.reactor.writers, not streaming)
            self.assertEqual(self._received(), b"onetwo")
            self.transport.unregisterProducer()

    def test_a_sequence_leaves_at_once(self) -> None:
        """Several pieces go out in one call, in their order."""
        self.transport.writeSequence(iter([b"a", b"", b"bc"]))
        self.assertEqual(self.peer.recv(100), b"abc")
        self.assertEqual(self.reactor.writers, set())

    def test_the_rest_of_a_sequence_waits(self) -> None:
        """A sequence that is cut in the middle of a piece goes on exactly there."""
        pieces = [b"head", MUCH, b"tail"]
        self.transport.writeSequence(pieces)
        self.assertIn(self.transport, self.reactor.writers)
        self.assertEqual(self._received(), b"".join(pieces))

    def test_an_empty_sequence_does_nothing(self) -> None:
        """Nothing is sent and nothing waits."""
        self.transport.writeSequence([])
        self.assertEqual(self.reactor.writers, set())

    def test_a_sequence_of_too_many_pieces_is_queued(self) -> None:
        """More pieces than the kernel takes at once arrive all the same."""
        pieces = [b"%d," % number for number in range(MAX_PARTS + 1)]
        self.transport.writeSequence(pieces)
        self.assertEqual(self._received(), b"".join(pieces))

    def test_only_bytes_are_taken(self) -> None:
        """Text is refused as by any transport; nothing of it is sent."""
        self.assertRaises(TypeError, self.transport.write, "text")
        self.assertRaises(TypeError, self.transport.writeSequence, [b"a", "text"])
        self.assertRaises(BlockingIOError, self.peer.recv, 1)

    def test_a_full_socket_is_no_error(self) -> None:
        """A socket that takes nothing for the moment gets everything later."""
        while True:
            try:
                self.transport.socket.send(MUCH)
            except BlockingIOError:
                break
        self.transport.write(b"later")
        self.transport.writeSequence([b", in", b" order"])
        self.assertTrue(self._received().endswith(b"later, in order"))

    def test_a_producer_is_paused_by_what_waits_only(self) -> None:
        """Bytes that the kernel has taken do not count; once all is sent it resumes."""
        producer = Producer()
        self.transport.registerProducer(producer, True)
        self.transport.bufferSize = 1 << 20
        self.transport.write(MUCH[: (1 << 20) + 100])
        self.assertEqual(producer.paused, 0)
        self.transport.write(MUCH)
        self.assertEqual(producer.paused, 1)
        self._received()
        self.assertEqual(producer.resumed, 1)

    def test_a_pull_producer_is_asked_for_more(self) -> None:
        """What a pull producer writes is queued, because an empty queue asks for the next."""
        producer = Producer()
        self.transport.registerProducer(producer, False)
        before = producer.resumed
        self.transport.write(b"one")
        self.assertIn(self.transport, self.reactor.writers)
        self.reactor.turn()
        self.assertEqual(self.peer.recv(10), b"one")
        self.assertEqual(producer.resumed, before + 1)
        self.transport.unregisterProducer()


def _write_one(transport: Any) -> None:
    transport.write(b"x")


def _write_two(transport: Any) -> None:
    transport.writeSequence([b"x", b"y"])


class EndingTests(_Transports):
    """How connections end."""

    def test_written_then_closed(self) -> None:
        """Everything written before a close arrives, then the end."""
        self.transport.write(MUCH)
        self.transport.loseConnection()
        self.assertEqual(self._received(), MUCH)
        self.assertEqual(self.peer.recv(1), b"")
        self.assertIsInstance(self.protocol.lost[0].value, error.ConnectionDone)

    def test_written_after_a_close_was_asked_for(self) -> None:
        """As with Twisted's transport, it is still sent."""
        self.transport.loseConnection()
        self.transport.write(b"late")
        self.reactor.turn()
        self.assertEqual(self.peer.recv(10), b"late")

    def test_nothing_is_sent_after_an_abort(self) -> None:
        """Aborting is at once, even before the protocol hears of it."""
        self.transport.abortConnection()
        self.transport.write(b"lost")
        self.transport.writeSequence([b"lost", b"too"])
        self.assertRaises(BlockingIOError, self.peer.recv, 1)
        self.reactor.advance(0)
        self.assertIsInstance(self.protocol.lost[0].value, error.ConnectionAborted)

    def test_nothing_is_sent_after_the_end(self) -> None:
        """Writes to a lost connection are dropped."""
        self.transport.connectionLost(Failure(main.CONNECTION_DONE))
        self.transport.write(b"lost")
        self.transport.writeSequence([b"lost"])
        self.assertEqual(self.peer.recv(1), b"")

    def test_half_closing_waits_for_what_is_queued(self) -> None:
        """The write side closes behind the last byte; later writes are dropped."""
        self.transport.write(MUCH)
        self.transport.loseWriteConnection()
        self.assertEqual(self._received(), MUCH)
        self.transport.write(b"late")
        self.transport.writeSequence([b"too", b"late"])
        self.assertEqual(self.peer.recv(1), b"")
        self.assertTrue(self.protocol.write_closed)
        self.assertEqual(self.protocol.lost, [])

    def test_a_failed_send_ends_the_connection_later(self) -> None:
        """Not within write(): the next read says so, and says that it was lost."""
        for number in (errno.ECONNRESET, errno.EPIPE):
            for write in (_write_one, _write_two):
                transport = self._broken(number)
                write(transport)
                self.assertEqual(self.protocol.lost, [])
                self.assertIn(transport, self.reactor.readers)
                self.assertNotIn(transport, self.reactor.writers)
                self.assertIs(transport.doRead(), main.CONNECTION_LOST)

    def test_a_failed_send_ends_a_connection_that_does_not_read(self) -> None:
        """Who has paused before or afterwards hears of it as a writer."""
        for write in (_write_one, _write_two):
            for before in (True, False):
                transport = self._broken(errno.EPIPE)
                if before:
                    transport.pauseProducing()
                write(transport)
                if not before:
                    transport.pauseProducing()
                self.assertEqual(self.protocol.lost, [])
                self.reactor.turn()
                self.assertIsInstance(self.protocol.lost.pop().value, error.ConnectionLost)

    def test_other_failures_to_send_need_no_read(self) -> None:
        """The kernel may go on receiving after them: the reactor's next turn ends it."""
        for write in (_write_one, _write_two):
            transport = self._broken(errno.EHOSTUNREACH)
            write(transport)
            self.assertEqual(self.protocol.lost, [])
            self.reactor.turn()
            self.assertIsInstance(self.protocol.lost.pop().value, error.ConnectionLost)

    def test_who_is_lost_is_not_watched(self) -> None:
        """After the end nothing waits in the reactor."""
        transport = self._broken(errno.EPIPE)
        transport.write(b"x")
        transport.connectionLost(Failure(main.CONNECTION_LOST))
        self.assertNotIn(transport, self.reactor.readers)
        self.assertNotIn(transport, self.reactor.writers)

    def test_the_end_after_a_failed_send_is_no_goodbye(self) -> None:
        """The kernel told the send about the reset; the read that follows sees an orderly end."""
        transport = self._broken(errno.ECONNRESET)
        self.assertIs(transport.doRead(), main.CONNECTION_DONE)
        transport.write(b"x")
        self.assertIs(transport.doRead(), main.CONNECTION_LOST)

    def test_full_buffers_are_no_failure(self) -> None:
        """A socket without room, or a machine without, may end orderly afterwards."""
        for number in (errno.EAGAIN, errno.ENOBUFS):
            transport = self._broken(number)
            transport.write(b"x")
            self.assertIs(transport.doRead(), main.CONNECTION_DONE)


class PeerEndedTests(_Transports):
    """What follows when the peer has ended its side."""

    def ends(self, *answers: bytes, close: bool = True) -> list[object]:
        """Let it end; return who waited to write while the protocol heard so, and closed."""
        waited: list[object] = []

        def answer() -> None:
            for piece in answers:
                self.transport.write(piece)
            if close:
                self.transport.loseConnection()
            waited.extend(self.reactor.writers)
            self.assertEqual(self.protocol.lost, [])

        self.protocol.readConnectionLost = answer  # type: ignore[method-assign]
        self.transport.readConnectionLost(Failure(main.CONNECTION_DONE))
        return waited

    def test_closed_at_once(self) -> None:
        """A protocol that has nothing more to say is told of the end as soon as it has returned."""
        self.assertEqual(self.ends(b"last"), [])
        (reason,) = self.protocol.lost
        self.assertIsInstance(reason.value, error.ConnectionDone)
        self.assertEqual(self.peer.recv(10), b"last")
        self.assertEqual(self.peer.recv(10), b"")
        self.assertEqual((self.reactor.readers, self.reactor.writers), (set(), set()))

    def test_closed_after_what_is_queued(self) -> None:
        """What the socket does not take at once is sent before the end."""
        self.ends(MUCH)
        self.assertEqual(self.protocol.lost, [])
        self.assertEqual(self.reactor.writers, {self.transport})
        self.assertEqual(self._received(), MUCH)
        self.assertEqual(len(self.protocol.lost), 1)

    def test_still_open(self) -> None:
        """A protocol that goes on is left alone, and may write and close later."""
        self.ends(close=False)
        self.assertEqual((self.protocol.lost, self.reactor.writers), ([], set()))
        self.transport.write(b"later")
        self.transport.loseConnection()
        self.assertEqual(self.reactor.writers, {self.transport})
        self.reactor.turn()
        self.assertEqual(self.peer.recv(10), b"later")
        self.assertEqual(len(self.protocol.lost), 1)

    def test_a_protocol_that_fails(self) -> None:
        """It is told of the end, once."""
        self.protocol.readConnectionLost = lambda: 1 // 0  # type: ignore[method-assign, assignment]
        self.transport.readConnectionLost(Failure(main.CONNECTION_DONE))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        (reason,) = self.protocol.lost
        self.assertIsInstance(reason.value, ZeroDivisionError)


class ReadingTests(_Transports):
    """What happens with what arrives."""

    def test_one_read_is_given_as_it_came(self) -> None:
        """The protocol owns what it is given: the next read does not change it."""
        self.peer.send(b"first")
        self.transport.doRead()
        self.peer.send(b"other")
        self.transport.doRead()
        self.assertEqual(self.protocol.heard, [b"first", b"other"])
        self.assertIs(self.protocol.heard[0].__class__, bytes)

    def test_nothing_to_read(self) -> None:
        """A wake-up for nothing is nothing."""
        self.assertIsNone(self.transport.doRead())
        self.assertEqual(self.protocol.heard, [])

    def test_the_end_of_the_stream(self) -> None:
        """The peer's orderly end is one."""
        self.peer.close()
        self.assertIs(self.transport.doRead(), main.CONNECTION_DONE)

    def test_acknowledging(self) -> None:
        """It can be asked for at any time, whatever the socket is."""
        self.transport.acknowledge()
        self.transport.connectionLost(Failure(main.CONNECTION_DONE))
        self.transport.acknowledge()
        self.assertEqual(len(self.protocol.lost), 1)

    def test_a_reset(self) -> None:
        """A reset is a lost connection."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        transport = self._transport(ours)
        self.addCleanup(ours.close)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        self.assertIs(transport.doRead(), main.CONNECTION_LOST)


class ShortcutTests(_Transports):
    """Reads that a shortcut takes past the protocol."""

    def ask(self, shortcut: Callable[[bytes], bytes | None]) -> None:
        """Let a request arrive while the transport has this shortcut."""
        self.assertTrue(verifyObject(IShortcutTransport, self.transport))
        self.transport.shortcut = shortcut
        self.peer.sendall(b"request")
        self.assertIsNone(self.transport.doRead())

    def test_answer(self) -> None:
        """What it returns is sent; the protocol hears nothing."""
        self.ask(bytes.upper)
        self.assertEqual(self.peer.recv(100), b"REQUEST")
        self.assertEqual(self.protocol.heard, [])

    def test_no_answer(self) -> None:
        """Nothing to send sends nothing."""
        self.ask(lambda _: b"")
        self.assertRaises(BlockingIOError, self.peer.recv, 1)
        self.assertEqual(self.protocol.heard, [])

    def test_not_for_it(self) -> None:
        """The protocol gets what it leaves."""
        self.ask(lambda _: None)
        self.assertEqual(self.protocol.heard, [b"request"])

    def test_behind_a_queue(self) -> None:
        """An answer does not overtake what waits."""
        self.transport.write(MUCH)
        self.ask(bytes.upper)
        self.assertEqual(self._received(), MUCH + b"REQUEST")


class UNIXSendingTests(SendingTests):
    """The same for Unix sockets."""

    make = DirectUNIXServer


class UNIXEndingTests(EndingTests):
    """The same for Unix sockets, whose reads are Twisted's."""

    make = DirectUNIXServer


class UNIXTests(_Transports):
    """What only Unix sockets do."""

    make = DirectUNIXServer

    def test_descriptors_go_with_the_bytes(self) -> None:
        """A descriptor that is queued leaves with the next bytes, which therefore wait."""
        self.transport.sendFileDescriptor(self.peer.fileno())
        self.transport.write(b"x")
        self.assertRaises(BlockingIOError, self.peer.recv, 1)
        self.reactor.turn()
        data, passed, *_ = socket.recv_fds(self.peer, 10, 1)
        self.assertEqual(data, b"x")
        os.close(passed[0])

    def test_reading(self) -> None:
        """What arrives is given to the protocol."""
        self.peer.send(b"x")
        self.assertIsNone(self.transport.doRead())
        self.assertEqual(self.protocol.heard, [b"x"])


class PeerTests(_Transports):
    """Where a connection comes from."""

    def test_one_object_for_all_who_ask(self) -> None:
        """It is made once; who was told by the port is told nothing else."""
        first = self.transport.getPeer()
        self.assertEqual((first.host, first.port), ("127.0.0.1", 7))
        self.assertIs(self.transport.getPeer(), first)
        known = IPv4Address("TCP", "192.0.2.1", 4711)
        self.transport.came_from(known)
        self.assertIs(self.transport.getPeer(), known)


class LargeReadTests(_Transports):
    """Reads are bounded."""

    def test_no_read_is_larger_than_promised(self) -> None:
        """More than one read's worth comes in several."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_SIZE)
        data = os.urandom(READ_SIZE + 1000)
        sent = 0
        while sent < len(data):
            sent += self.peer.send(data[sent:])
            self.transport.doRead()
        self.transport.doRead()
        self.assertEqual(b"".join(self.protocol.heard), data)
        self.assertLessEqual(max(map(len, self.protocol.heard)), READ_SIZE)


class StartTLSTests(_Transports):
    """Twisted's startTLS goes through the usual way."""

    def test_bytes_written_after_start_tls_are_encrypted(self) -> None:
        """Nothing that is written after startTLS leaves in the clear."""
        self.transport.startTLS(Creator(server_context()))
        self.assertIsInstance(self.transport.protocol, TLSMemoryBIOProtocol)
        self.transport.write(b"secret")
        self.transport.writeSequence([b"secret"])
        self.reactor.turn()
        self.assertRaises(BlockingIOError, self.peer.recv, 1)
        self.transport.abortConnection()
        self.reactor.advance(1)


class ChoiceTests(SynchronousTestCase):
    """Which transport a port uses."""

    def test_ours_where_it_can_be(self) -> None:
        """This Twisted has what they need."""
        self.assertIs(server_transport(), DirectServer)
        self.assertIs(unix_server_transport(), DirectUNIXServer)

    def test_twisteds_elsewhere(self) -> None:
        """Another Twisted's own transports do."""
        self.patch(under_test, "DIRECT", False)
        self.assertIs(server_transport(), tcp.Server)
        self.assertIs(unix_server_transport(), unix.Server)
