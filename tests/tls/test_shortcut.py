"""The shortest way of a request: when it is open, and that nothing is lost or overtaken on it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.interfaces import IAnswers
from kvproto.testing.contexts import TLS12, TLS13
from kvproto.tls import _handles
from kvproto.tls._handles import CffiEngine, NativeEngine
from kvproto.tls.records import leading_records
from kvproto.tls.shortcut import Shortcut
from tests.examples import examples
from tests.tls.test_handles import require_native
from tests.tls.wired import App, Wired

RECORD = 16384


class Clear:
    """An engine whose records are not encrypted, and an owner that writes down what it is told."""

    def __init__(self) -> None:
        self.odd: list[int] = []
        self.finished: list[tuple[list[bytes], bytes]] = []
        self.fails = False

    def open(self, data: bytes) -> bytes:
        if self.fails:
            raise SSL.Error([])
        return data[5:]

    def seal(self, data: bytes) -> bytes:
        return b"sealed " + data

    def take_odd_record(self, error: SSL.Error, size: int) -> None:
        self.odd.append(size)

    def finish_read(self, replies: list[bytes], rest: bytes) -> None:
        self.finished.append((replies, rest))


def raise_error(data: bytes) -> bytes:
    """Refuse."""
    raise SSL.Error([])


def whole(size: int, kind: int = 23) -> bytes:
    """Return a record with a body of so many bytes."""
    return bytes((kind, 3, 3)) + size.to_bytes(2) + b"x" * size


class ReadTests(SynchronousTestCase):
    """Which reads are taken, and what is said to them."""

    def setUp(self) -> None:
        self.clear = Clear()
        self.replies = [b"reply"]
        self.taken: int | None = None
        self.queued: list[bytes] = []
        self.written: list[bytes] = []
        self.shortcut = Shortcut(
            self.clear,  # type: ignore[arg-type]
            self.clear,
            self.answer,
            self.queued,
            self.written.append,
        )

    def answer(self, data: bytes, replies: list[bytes]) -> int:
        replies += self.replies
        return len(data) if self.taken is None else self.taken

    def test_one_whole_record(self) -> None:
        """A read that is one record of application data, of any size, is taken."""
        for size in (0, 1, 255, 256, 300, 16384):
            self.assertEqual(self.shortcut(whole(size)), b"sealed reply", size)

    def test_sent(self) -> None:
        """What nothing waits before is sent, and nothing is done otherwise."""
        self.assertTrue(self.shortcut.send(b"open"))
        for refused in (b"", bytes(4 * RECORD + 1)):
            self.assertFalse(self.shortcut.send(refused))
        self.queued.append(b"waits")
        self.assertFalse(self.shortcut.send(b"behind"))
        self.queued.clear()
        self.clear.seal = raise_error  # type: ignore[method-assign]
        self.assertFalse(self.shortcut.send(b"refused"))
        self.assertEqual(self.written, [b"sealed open"])

    def test_anything_else(self) -> None:
        """Parts of records, several, and records of another kind are left alone."""
        for read in (
            b"",
            whole(300)[:4],
            whole(300)[:5],
            whole(300)[:-1],
            # Its lower byte of the length fits what is there.
            whole(300)[: 5 + 300 - 256],
            whole(256)[:5],
            whole(3) + b"x",
            whole(3) + whole(3),
            whole(3, kind=22),
        ):
            self.assertIsNone(self.shortcut(read), read[:5])

    def test_record_without_data(self) -> None:
        """A record that OpenSSL takes otherwise goes its usual way, with its size."""
        self.clear.fails = True
        self.assertEqual(self.shortcut(whole(300)), b"")
        self.assertEqual(self.clear.odd, [305])

    def test_replies(self) -> None:
        """Several replies leave in one record, none in none; what is too long goes as usual."""
        for replies, sent, finished in (
            ([], b"", []),
            ([b"one", b"two"], b"sealed onetwo", []),
            ([b"x" * RECORD], b"sealed " + b"x" * RECORD, []),
            ([b"x" * RECORD, b"y"], b"", [([b"x" * RECORD, b"y"], b"")]),
        ):
            self.replies = replies
            self.clear.finished = []
            self.assertEqual(self.shortcut(whole(3)), sent)
            self.assertEqual(self.clear.finished, finished)

    def test_rest(self) -> None:
        """What was not answered in place follows the replies to what was."""
        self.taken = 1
        self.assertEqual(self.shortcut(whole(3)), b"")
        self.assertEqual(self.clear.finished, [([b"reply"], b"xx")])


@implementer(IAnswers)
class Upper(App):
    """Answers each letter with its upper case: an ``a`` at once, any other in the usual way.

    Attributes:
        answered: Letters that were answered in place.
        repeat: How often a letter is answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answered = 0
        self.repeat = 1

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.tls.write(data.upper() * self.repeat)

    def answer(self, data: bytes, replies: list[bytes]) -> int:
        count = len(data) - len(data.lstrip(b"a"))
        replies.extend([b"A" * self.repeat] * count)
        self.answered += count
        return count

    # a producer, as key-value servers are

    def pauseProducing(self) -> None:
        """Nothing is produced without being asked."""

    resumeProducing = stopProducing = pauseProducing


class Shortcuts(SynchronousTestCase):
    """A server that answers in place, and a client."""

    engine: type[CffiEngine] = CffiEngine
    version = TLS13

    def setUp(self) -> None:
        self.patch(_handles, "_best_engine", self.engine)
        self.begin()

    def begin(self, *, producer: bool = True, **options: Any) -> None:
        """Connect a client, with a first request that has been answered."""
        self.wired = Wired(version=self.version, **options)
        # `Wired` holds its applications weakly through factories: put ours in their place.
        self.app = Upper()
        self.wired.server_app = self.app
        self.wired.server.wrappedProtocol = self.app
        self.wired.handshake()
        if producer:
            self.wired.server.registerProducer(self.app, True)
        self.expected = b""
        self.ask(b"a")

    @property
    def open(self) -> bool:
        """Whether the transport has been offered the shortcut."""
        return self.wired.pair.server.shortcut is not None

    def ask(self, letters: bytes) -> int:
        """Send letters in one write; return how many of them were answered in place."""
        before = self.app.answered
        self.wired.client.write(letters)
        self.wired.flush()
        for letter in letters:
            self.expected += bytes([letter]).upper() * self.app.repeat
        self.assertEqual(bytes(self.wired.client_app.received), self.expected)
        return self.app.answered - before

    def in_order(self, steps: list[Any], chunk: int) -> None:
        """Take steps one after the other: each answer comes once, in order."""
        self.begin()
        wired, app = self.wired, self.app
        said = [b"A"]
        extra = 0
        for step in steps:
            if isinstance(step, bytes):
                wired.client.write(step)
                wired.pair.pump()
                said.append(step.upper())
            elif step in {"write", "write alone"}:
                (app.tls.write if step == "write" else app.tls.write_alone)(b"!")
                extra += 1
            elif step == "pause":
                app.tls.pauseProducing()
            elif step == "resume":
                app.tls.resumeProducing()
            elif step == "chunk":
                wired.pair.chunk = chunk
            else:
                wired.flush()
        app.tls.resumeProducing()
        wired.flush()
        received = bytes(wired.client_app.received)
        self.assertEqual(received.replace(b"!", b""), b"".join(said))
        self.assertEqual(received.count(b"!"), extra)


class OpenTests(Shortcuts):
    """What goes through it, and what goes on beside it."""

    def test_offered_by_an_answer(self) -> None:
        """The first read takes the usual way; when it is answered whole, the others need not."""
        self.assertEqual((self.app.answered, self.open), (0, True))
        self.assertEqual(self.ask(b"a"), 1)
        self.assertEqual(self.ask(b"aaa"), 3)
        self.assertEqual(self.app.pieces, [1])
        self.assertTrue(self.open)

    def test_the_rest_of_a_read(self) -> None:
        """What cannot be answered in place follows what was, in order."""
        self.assertEqual(self.ask(b"aabab"), 2)
        self.assertEqual(bytes(self.app.received), b"a" + b"bab")
        self.assertEqual(self.ask(b"b"), 0)
        self.assertTrue(self.open)
        self.assertEqual(self.ask(b"a"), 1)

    def test_no_answer(self) -> None:
        """A request that has no answer sends nothing."""
        self.app.repeat = 0
        self.assertEqual(self.ask(b"aa"), 2)
        self.assertTrue(self.open)

    def test_long_answers(self) -> None:
        """What does not fit into one record goes out the usual way."""
        for repeat in (RECORD, RECORD + 1, 300_000):
            self.app.repeat = repeat
            self.assertEqual(self.ask(b"a"), 1)
        self.app.repeat = 1
        self.ask(b"a")
        self.assertTrue(self.open)

    def test_long_answers_to_who_does_not_read(self) -> None:
        """They are encrypted as the transport takes them, not all at once."""
        self.app.repeat = 3_000_000
        self.wired.client.write(b"a")
        self.wired.pair.client.paused = True
        self.wired.flush()
        self.assertLess(self.wired.pair.server.most_unsent, 300_000)
        self.wired.pair.client.paused = False
        self.wired.flush()
        self.assertEqual(len(self.wired.client_app.received), 3_000_001)

    def test_many_records_in_a_read(self) -> None:
        """Reads of several records are not for it, and change nothing."""
        for _ in range(3):
            self.wired.client.write(b"a")
            self.wired.clock.advance(0)
        self.expected += b"AAA"
        self.ask(b"a")
        self.assertEqual(self.app.answered, 0)
        self.assertEqual(self.ask(b"a"), 1)

    def test_written_alone(self) -> None:
        """What nothing follows is sent at once, and the shortcut stays; all else goes as usual."""
        tls, received = self.wired.server, self.wired.client_app.received
        tls.write_alone(b"first ")
        self.assertTrue(self.open)
        self.wired.pair.pump()
        self.expected += b"first "
        self.assertEqual(bytes(received), self.expected)
        tls.write(b"one ")
        tls.write_alone(b"two ")
        tls.write_alone(b"")
        self.expected += b"one two "
        self.ask(b"a")
        tls.pauseProducing()
        tls.write_alone(b"paused ")
        tls.resumeProducing()
        self.expected += b"paused "
        self.ask(b"a")
        long = b"x" * (RECORD + 1)
        tls.write_alone(long)
        self.expected += long
        self.ask(b"a")
        self.assertEqual(self.ask(b"a"), 1)

    def test_written_alone_while_answered(self) -> None:
        """It is not sent before the answers to a read that it is written in."""
        self.app.dataReceived = self.app.tls.write_alone  # type: ignore[method-assign]
        self.wired.client.write(b"aab")
        self.wired.flush()
        self.expected += b"AAb"
        self.assertEqual(bytes(self.wired.client_app.received), self.expected)

    def test_written_alone_to_who_does_not_read(self) -> None:
        """A transport that is full is given no more than it takes, and all of it arrives."""
        tls = self.wired.server
        self.wired.pair.client.paused = True
        for _ in range(300):
            tls.write_alone(b"y" * 4000)
        self.assertFalse(self.open)
        self.assertLess(self.wired.pair.server.most_unsent, 300_000)
        self.wired.pair.client.paused = False
        self.wired.flush()
        self.expected += b"y" * 4000 * 300
        self.ask(b"a")

    def test_pieces(self) -> None:
        """Reads that hold no whole record are not for it; the next whole one is."""
        for chunk in (1, 3, 7, 23):
            self.wired.pair.chunk = chunk
            self.ask(b"ab")
        self.wired.pair.chunk = 1 << 16
        self.ask(b"b")
        self.assertEqual(self.ask(b"a"), 1)

    def test_nobody_who_answers(self) -> None:
        """An application that cannot is left alone."""
        wired = Wired(version=self.version)
        wired.server_app.echo()
        wired.handshake()
        wired.server.registerProducer(self.app, True)
        wired.client.write(b"hello")
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"hello")
        self.assertIsNone(wired.pair.server.shortcut)

    def test_nobody_who_can_be_stopped(self) -> None:
        """Without a producer nobody would hear that the peer does not read."""
        self.begin(producer=False)
        self.assertFalse(self.open)
        self.assertEqual(self.ask(b"a"), 0)


class OutsideTests(Shortcuts):
    """Answers that are written outside a read."""

    def records(self) -> int:
        """Return how many records the server has sent since this was last asked."""
        sent, self.wired.pair.server.sent = self.wired.pair.server.sent or b"", bytearray()
        return len(leading_records(bytes(sent)))

    def test_one_record_for_a_turn(self) -> None:
        """All that is written in one turn is sealed and sent together."""
        self.records()
        for letter in (b"x", b"y", b"z"):
            self.app.tls.write(letter)
        self.app.tls.writeSequence([b"1", b"2"])
        self.expected += b"xyz12"
        self.wired.flush()
        self.assertEqual(self.records(), 1)
        self.assertEqual(bytes(self.wired.client_app.received), self.expected)

    def test_open_again(self) -> None:
        """After that turn reads go past the protocol again, the very next one too."""
        self.app.tls.write(b"x")
        self.assertFalse(self.open)
        self.wired.clock.advance(0)
        self.assertTrue(self.open)
        self.expected += b"x"
        self.assertEqual(self.ask(b"a"), 1)

    def test_read_in_the_same_turn(self) -> None:
        """It is answered after what was written before it, and before what is written after it."""
        wired = self.wired
        wired.client.write(b"a")
        wired.clock.advance(0)
        record = bytes(wired.pair.client.unsent)
        wired.pair.client.unsent.clear()
        self.app.tls.write(b"before ")
        wired.server.dataReceived(record)
        self.app.tls.write(b" after")
        self.assertFalse(self.open)
        self.expected += b"before A after"
        self.assertEqual(self.ask(b"a"), 1)

    def test_much(self) -> None:
        """What does not fit into a record is sent whole, and reads go past again."""
        for size in (RECORD + 1, 60_000, 300_000):
            self.app.tls.write(b"x" * size)
            self.expected += b"x" * size
            self.wired.flush()
            self.assertTrue(self.open)
            self.assertEqual(self.ask(b"a"), 1)

    def test_one_call_for_many(self) -> None:
        """Connections of one listener share the delayed call, and one that ends leaves it."""
        others = []
        for _ in range(2):
            other = Wired(version=self.version)
            other.server_factory = self.wired.server_factory
            other.server.factory = self.wired.server_factory
            others.append(other.handshake().server)
        self.app.tls.write(b"x")
        for server in others:
            server.write(b"y")
        self.assertEqual(len(self.wired.clock.getDelayedCalls()), 1)
        self.expected += b"x"
        for server in others:
            server.connectionLost(Failure(ConnectionLost()))
        self.wired.flush()
        self.ask(b"a")
        self.app.tls.write(b"x")
        self.wired.server.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.wired.clock.getDelayedCalls(), [])


class CompiledOutsideTests(OutsideTests):
    """The same with the compiled engine."""

    engine = NativeEngine

    def setUp(self) -> None:
        require_native(self)
        super().setUp()


class ClosedTests(Shortcuts):
    """Whatever may make the TLS protocol keep something back closes the shortcut."""

    def check(self, event: Callable[[], object]) -> None:
        """Let something happen; the shortcut is closed the moment it has."""
        self.assertTrue(self.open)
        event()
        self.assertFalse(self.open)

    def test_write(self) -> None:
        """A write that waits for the next turn is not overtaken."""
        self.check(lambda: self.app.tls.write(b"first "))
        self.expected += b"first "
        self.ask(b"a")
        self.assertEqual(self.ask(b"a"), 1)

    def test_write_sequence(self) -> None:
        """The same with several."""
        self.check(lambda: self.app.tls.writeSequence([b"fir", b"st "]))
        self.expected += b"first "
        self.ask(b"a")

    def test_pause(self) -> None:
        """An application that has paused is asked nothing."""
        self.check(self.app.tls.pauseProducing)
        self.wired.client.write(b"aa")
        self.wired.flush()
        self.assertEqual((self.app.answered, bytes(self.app.received)), (0, b"a"))
        self.app.tls.resumeProducing()
        self.expected += b"AA"
        self.ask(b"a")

    def test_full(self) -> None:
        """A transport that is full gets no more."""
        gate = self.wired.pair.server.producer
        self.check(gate.pauseProducing)
        gate.resumeProducing()
        self.ask(b"a")
        self.assertEqual(self.ask(b"a"), 1)

    def test_a_client_that_does_not_read(self) -> None:
        """What waits for it is bounded all the same, and arrives when it reads."""
        self.app.repeat = 4000
        self.wired.client.transport.pauseProducing()
        for _ in range(200):
            self.wired.client.write(b"a")
            self.wired.pair.pump()
        self.assertLess(self.wired.pair.server.most_unsent, 256 * 1024)
        self.wired.client.transport.resumeProducing()
        self.expected += b"A" * 4000 * 200
        self.ask(b"a")

    def test_producer_leaves(self) -> None:
        """Nobody would hear of a full transport any more."""
        self.check(self.app.tls.unregisterProducer)
        self.assertEqual(self.ask(b"a"), 0)
        self.assertFalse(self.open)

    def test_close(self) -> None:
        """After loseConnection nothing is answered in place."""
        self.check(self.app.tls.loseConnection)
        self.app.tls.unregisterProducer()
        self.wired.flush()
        self.assertEqual(len(self.app.reasons), 1)

    def test_half_close(self) -> None:
        """After loseWriteConnection neither."""
        self.check(self.app.tls.loseWriteConnection)

    def test_abort(self) -> None:
        """After abortConnection neither."""
        self.check(self.app.tls.abortConnection)

    def test_peer_closes(self) -> None:
        """After the peer's goodbye neither."""
        self.wired.client.loseConnection()
        self.check(self.wired.flush)

    def test_connection_lost(self) -> None:
        """The transport of a connection that is lost keeps nobody alive."""
        self.check(lambda: self.wired.pair.server.lose(Failure(ConnectionLost())))
        self.assertEqual(len(self.app.reasons), 1)
        protocol = weakref.ref(self.wired.server)
        gc.disable()
        self.addCleanup(gc.enable)
        transport = self.wired.pair.server
        del self.wired, self.app
        self.assertIsNone(protocol())
        self.assertIsNone(transport.shortcut)


class OddTests(Shortcuts):
    """Records that are not what they look like."""

    def test_broken_record(self) -> None:
        """It ends the connection with OpenSSL's words, and the client is told."""
        self.wired.client.write(b"a")
        self.wired.clock.advance(0)
        wire = self.wired.pair.client
        wire.unsent[-1] ^= 1
        self.wired.flush()
        self.assertFalse(self.open)
        (reason,) = self.app.reasons
        self.assertIn("bad record mac", str(reason.value))
        (said,) = self.wired.client_app.reasons
        self.assertIn("alert", str(said.value))
        self.assertEqual(self.app.answered, 0)

    def test_a_write_that_openssl_refuses(self) -> None:
        """It ends the connection as it does on the usual way."""
        self.wired.server._shell.machine.engine.shutdown()
        self.wired.client.write(b"a")
        self.wired.flush()
        (reason,) = self.app.reasons
        self.assertIsInstance(reason.value, SSL.Error)
        self.assertEqual(self.app.answered, 1)
        self.assertFalse(self.open)

    def test_an_answer_that_is_none(self) -> None:
        """An application that gives back something else than bytes hears so."""

        def answer(data: bytes, replies: list[Any]) -> int:
            replies.append(None)
            return len(data)

        shortcut = self.wired.server._shell.machine.engine.shortcut(
            self.wired.server._shell, answer, [], self.wired.server.transport.write
        )
        self.wired.client.write(b"a")
        self.wired.clock.advance(0)
        self.assertRaises(TypeError, shortcut, bytes(self.wired.pair.client.unsent))

    def test_empty_record(self) -> None:
        """A record without a byte in it is no request, and no end."""
        shortcut = self.wired.pair.server.shortcut
        assert shortcut is not None
        self.assertIsNone(shortcut(b""))
        self.assertIsNone(shortcut(b"\x17\x03\x03\x00"))
        self.assertIsNone(shortcut(b"\x15\x03\x03\x00\x02\x01\x00"))
        self.assertIsNone(shortcut(b"\x17\x03\x03\x00\x05abcd"))
        self.assertEqual(self.ask(b"a"), 1)


class OpenTests12(OpenTests):
    """The same with TLS 1.2."""

    version = TLS12


class ClosedTests12(ClosedTests):
    """The same with TLS 1.2."""

    version = TLS12


class OddTests12(OddTests):
    """The same with TLS 1.2."""

    version = TLS12


class _Compiled(Shortcuts):
    """The same with the compiled twin."""

    engine = NativeEngine

    def setUp(self) -> None:
        require_native(self)
        super().setUp()


STEPS = st.lists(
    st.one_of(
        st.text("ab", min_size=1, max_size=20).map(str.encode),
        st.sampled_from(["write", "write alone", "pause", "resume", "chunk", "flush"]),
    ),
    max_size=25,
)
CHUNKS = st.integers(1, 400)


class InOrderTests(Shortcuts):
    """Whatever is asked, said, and stopped between: each answer comes once, in order."""

    @examples(60)
    @given(STEPS, CHUNKS)
    def test_python(self, steps: list[Any], chunk: int) -> None:
        """In Python."""
        self.in_order(steps, chunk)


class CompiledInOrderTests(_Compiled):
    """The same compiled."""

    @examples(60)
    @given(STEPS, CHUNKS)
    def test_compiled(self, steps: list[Any], chunk: int) -> None:
        """Compiled."""
        self.in_order(steps, chunk)


class CompiledOpenTests(_Compiled, OpenTests):
    """The same compiled."""


class CompiledClosedTests(_Compiled, ClosedTests):
    """The same compiled."""


class CompiledOddTests(_Compiled, OddTests):
    """The same compiled."""


class CompiledOddTests12(_Compiled, OddTests):
    """The same compiled, with TLS 1.2."""

    version = TLS12
