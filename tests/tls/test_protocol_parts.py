"""The parts of the TLS protocol that have rules of their own."""

from __future__ import annotations

import socket
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL.SSL import Error, SysCallError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.tls.gate import ProducerGate
from kvproto.tls.outbox import PIECE_SIZE, RECORD_SIZE, Outbox
from kvproto.tls.progress import ProgressDeadline, unsent_bytes
from kvproto.tls.reasons import describe_error, explained, explanation, represents_eof
from kvproto.tls.records import BATCH_SIZE, UNKNOWN, RecordCounter, leading_records
from tests.examples import examples
from tests.producers import Producer


def record(size: int, kind: int = 23) -> bytes:
    """Return a TLS record with a body of `size` bytes."""
    return bytes((kind, 3, 3)) + size.to_bytes(2, "big") + bytes(size)


class RecordCounterTests(SynchronousTestCase):
    """Record boundaries are found in pieces of any size."""

    def test_each_split(self) -> None:
        """However a stream is cut into two pieces, the same records end in it."""
        stream = record(10) + record(0) + record(300, 20) + record(7, 22)
        for cut in range(len(stream) + 1):
            counter = RecordCounter()
            self.assertEqual(counter.count(stream[:cut]) + counter.count(stream[cut:]), 4, cut)
            self.assertTrue(counter.aligned)
            self.assertEqual(counter.cipher_changes, 1)

    @examples()
    @given(st.lists(st.integers(0, 17_000), max_size=6), st.lists(st.integers(0, 60_000)))
    def test_any_split(self, sizes: list[int], cuts: list[int]) -> None:
        """However a stream is cut, each record is counted in the piece that it ends in."""
        stream = b"".join(record(size) for size in sizes)
        places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        counter = RecordCounter()
        counted = [counter.count(stream[a:b]) for a, b in pairwise(places)]
        self.assertEqual(sum(counted), len(sizes))
        self.assertTrue(counter.aligned)

    def test_nonsense(self) -> None:
        """At a header that is none it gives up for good."""
        for header in (b"GET / HTTP", b"\x17\x02\x03\x00\x01x", b"\x17\x03\x03\xff\xffx"):
            counter = RecordCounter()
            self.assertEqual(counter.count(header), UNKNOWN)
            self.assertEqual(counter.count(record(1)), UNKNOWN)
            self.assertFalse(counter.aligned)

    def test_unaligned(self) -> None:
        """Inside a record and inside a header it says so."""
        counter = RecordCounter()
        self.assertEqual(counter.count(record(5)[:3]), 0)
        self.assertFalse(counter.aligned)
        self.assertEqual(counter.count(record(5)[3:9]), 0)
        self.assertFalse(counter.aligned)
        self.assertEqual(counter.count(record(5)[9:]), 1)
        self.assertTrue(counter.aligned)


class LeadingRecordsTests(SynchronousTestCase):
    """Which records can be taken at once."""

    def test_whole_ones(self) -> None:
        """Whole records of application data, up to the first that is anything else."""
        one = b"\x17\x03\x03\0\x02ab"
        self.assertEqual(leading_records(b""), [])
        self.assertEqual(leading_records(one[:4]), [])
        self.assertEqual(leading_records(one), [7])
        self.assertEqual(leading_records(one * 3), [7, 14, 21])
        self.assertEqual(leading_records(one + one[:6]), [7])
        self.assertEqual(leading_records(one + b"\x15" + one[1:]), [7])
        self.assertEqual(leading_records(one + b"\x17\x02" + one[2:]), [7])

    def test_bounded(self) -> None:
        """Not more than a batch, however much is there."""
        one = b"\x17\x03\x03\x40\0" + bytes(16384)
        self.assertLessEqual(leading_records(one * 20)[-1], BATCH_SIZE + len(one))
        self.assertEqual(leading_records(one * 20)[:2], [len(one), 2 * len(one)])


class OutboxTests(SynchronousTestCase):
    """Order is kept, small writes travel together, large ones are not copied."""

    def drained(self, *writes: bytes) -> list[bytes | memoryview]:
        outbox = Outbox()
        for data in writes:
            outbox.put(data)
        pieces = []
        while outbox.pieces:
            pieces.append(outbox.take())
        self.assertEqual(outbox.size, 0)
        return pieces

    def test_small_writes_join(self) -> None:
        """Writes that fit into one record leave as one piece."""
        self.assertEqual(self.drained(b"a", b"b" * 1000, b"c"), [b"a" + b"b" * 1000 + b"c"])

    def test_forgotten(self) -> None:
        """Nothing is left of what was forgotten, in pieces or in the count."""
        outbox = Outbox()
        outbox.put(b"forgotten")
        outbox.clear()
        self.assertEqual((outbox.size, len(outbox.pieces)), (0, 0))

    def test_large_writes_are_views(self) -> None:
        """A large value leaves as views of the object that was written."""
        value = bytes(1_000_000)
        pieces = self.drained(value)
        self.assertTrue(all(isinstance(p, memoryview) and p.obj is value for p in pieces))
        self.assertEqual(max(len(piece) for piece in pieces), PIECE_SIZE)

    def test_header_and_value(self) -> None:
        """A small header joins the beginning of the value behind it; the rest is a view."""
        value = bytes(100_000)
        first, *others = self.drained(b"header", value)
        self.assertEqual(len(first), RECORD_SIZE)
        self.assertTrue(all(isinstance(p, memoryview) and p.obj is value for p in others))

    @examples(100)
    @given(st.lists(st.integers(1, 200_000), max_size=12))
    def test_order(self, sizes: list[int]) -> None:
        """Whatever is written comes out, in order, in pieces of bounded size."""
        writes = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
        pieces = self.drained(*writes)
        self.assertEqual(b"".join(pieces), b"".join(writes))
        self.assertLessEqual(max(map(len, pieces), default=0), PIECE_SIZE)


class ReasonTests(SynchronousTestCase):
    """OpenSSL's errors in words."""

    def test_eof(self) -> None:
        """Every way in which OpenSSL says "unexpected EOF" is understood, and nothing else."""
        self.assertTrue(represents_eof(SysCallError(-1, "Unexpected EOF")))
        self.assertTrue(represents_eof(Error([("", "", "unexpected eof while reading")])))
        self.assertTrue(represents_eof(Error([])))
        self.assertFalse(represents_eof(Error()))
        self.assertFalse(represents_eof(SysCallError(104, "ECONNRESET")))
        self.assertFalse(represents_eof(Error([("", "", "bad record mac")])))
        self.assertFalse(represents_eof(ValueError("unexpected eof")))

    def test_words(self) -> None:
        """Known reasons get better words, others keep OpenSSL's."""
        error = Error([("SSL routines", "", "no shared cipher")])
        self.assertEqual(describe_error(error, b"\x16\x03", "handshake"), "no cipher in common")
        error = Error([("SSL routines", "", "bad record mac")])
        self.assertEqual(describe_error(error, b"", "established"), "bad record mac")
        self.assertEqual(describe_error(Error(), b"", "established"), "TLS failed without a reason")

    def test_no_tls(self) -> None:
        """What is no TLS is told by its first bytes, while there is a handshake."""
        unread = "record layer failure"
        for first, text, stage, expected in (
            (b"GET / HTTP", "http request", "handshake", "HTTP request on a TLS port"),
            (b"stats\r\n\t", unread, "handshake", "text protocol on a TLS port"),
            (b"\x80\x01", unread, "handshake", "no TLS on a TLS port (first byte 0x80)"),
            (b"\x80\x01", "wrong version number", "handshake", "no TLS on a TLS port"),
            (b"\x16\x07", "wrong version number", "handshake", "no TLS on a TLS port"),
            (b"\x80\x01", "another reason", "handshake", "another reason"),
            (b"\x16\x03", unread, "handshake", unread),
            (b"\x17\x03", unread, "handshake", unread),
            (b"\x80\x01", unread, "established", unread),
            (b"GET / HTTP", "another reason", "established", "another reason"),
        ):
            error = Error([("SSL routines", "", text)])
            found = describe_error(error, first, stage)
            self.assertTrue(found.startswith(expected), (first, text, stage, found))

    def test_explained(self) -> None:
        """An explained error is of the same class, with the same arguments, and was not raised."""
        error = Error([("SSL routines", "", "bad record mac")])
        said = explained(error, "words", "established")
        self.assertIs(type(said), Error)
        self.assertEqual(said.args, error.args)
        self.assertEqual(explanation(said), "words")
        self.assertIsNone(said.__traceback__)

    def test_explanation_of_others(self) -> None:
        """Other exceptions speak for themselves."""
        self.assertEqual(explanation(ValueError("plain")), "plain")


class GateOwner(Producer):
    """Writes down what happens to it and to its application's producer."""

    def transport_full(self) -> None:
        self.calls.append("full")

    def transport_ready(self) -> None:
        self.calls.append("ready")


class ProducerGateTests(SynchronousTestCase):
    """The application's producer is paused once, resumed once, and never after the end."""

    def setUp(self) -> None:
        self.owner = GateOwner()
        self.gate = ProducerGate(self.owner)

    def told(self) -> list[str]:
        """Return what was told since the last time."""
        calls, self.owner.calls[:] = self.owner.calls[:], []
        return calls

    def test_without_a_producer(self) -> None:
        """The owner alone is told."""
        self.assertIsNone(self.gate.producer)
        self.gate.pauseProducing()
        self.gate.resumeProducing()
        self.gate.release()
        self.gate.stopProducing()
        self.assertEqual(self.told(), ["full", "ready"])

    def test_paused_once(self) -> None:
        """Whatever holds it, a producer hears of it once, and of the release once."""
        self.gate.attach(self.owner)
        self.assertIs(self.gate.producer, self.owner)
        self.gate.release()
        self.assertEqual(self.told(), [])
        self.gate.hold()
        self.gate.pauseProducing()
        self.assertEqual(self.told(), ["pause", "full"])
        self.gate.resumeProducing()
        self.assertEqual(self.told(), ["ready"])
        self.gate.release()
        self.gate.release()
        self.assertEqual(self.told(), ["resume"])

    def test_paused_for_others(self) -> None:
        """A producer that can be told why is told, and again when the transport is full."""

        class Telling(Producer):
            def wait_for_others(self) -> None:
                self.calls.append("others")

        producer = Telling()
        self.gate.attach(producer)
        self.gate.hold_for_others()
        self.gate.hold_for_others()
        self.gate.pauseProducing()
        self.gate.hold_for_others()
        self.gate.hold()
        self.gate.release()
        self.gate.hold_for_others()
        self.gate.release()
        self.gate.hold()
        self.assertEqual(producer.calls, ["others", "pause", "resume", "others", "resume", "pause"])

    def test_paused_for_others_without_a_word(self) -> None:
        """A producer that cannot be told why is paused, once."""
        self.gate.hold_for_others()
        self.gate.attach(self.owner)
        self.gate.hold_for_others()
        self.gate.hold()
        self.gate.release()
        self.assertEqual(self.told(), ["pause", "resume"])

    def test_another_producer(self) -> None:
        """A producer that comes after a paused one is not paused."""
        for forget in (self.gate.detach, lambda: None):
            self.gate.attach(self.owner)
            self.gate.hold()
            forget()
            self.gate.attach(self.owner)
            self.told()
            self.gate.release()
            self.assertEqual(self.told(), [])
            self.gate.hold()
            self.assertEqual(self.told(), ["pause"])
        self.gate.detach()
        self.gate.release()
        self.assertEqual(self.told(), [])

    def test_stopped(self) -> None:
        """A producer is stopped once, and not paused any more."""
        self.gate.attach(self.owner)
        self.gate.stopProducing()
        self.gate.stopProducing()
        self.gate.hold()
        self.assertEqual(self.told(), ["stop"])

    def test_closed(self) -> None:
        """After the end nobody is told anything."""
        self.gate.attach(self.owner)
        self.gate.close()
        self.gate.pauseProducing()
        self.gate.resumeProducing()
        self.gate.stopProducing()
        self.assertEqual(self.told(), [])


class Buffering:
    """A transport over one end of a pair of sockets, with buffers as Twisted's have them."""

    offset = 0
    dataBuffer = b""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.ours, self.theirs = socket.socketpair()
        case.addCleanup(self.ours.close)
        case.addCleanup(self.theirs.close)
        self.fileno = self.ours.fileno

    def hold(self, size: int) -> None:
        """Hold so many bytes that the peer has not taken, none of them in the kernel."""
        self.dataBuffer = bytes(size)


class ProgressTests(SynchronousTestCase):
    """How much a peer has taken; what cannot be known is not guessed."""

    def deadline(self, transport: object, given: int) -> tuple[ProgressDeadline, list[object]]:
        """Return a period of 10 s and whom it told that it was over."""
        self.clock = Clock()
        over: list[object] = []
        return ProgressDeadline(self.clock, 10.0, transport, given, over.append), over

    def test_all_buffers_count(self) -> None:
        """What waits is in three places: not yet sent, to be sent next, and in the kernel."""
        transport = Buffering(self)
        self.assertEqual(unsent_bytes(transport), 0)
        transport.hold(100)
        transport.offset = 30
        self.assertEqual(unsent_bytes(transport), 70)
        setattr(transport, "_tempDataLen", 5)  # noqa: B010 - Twisted's, private
        self.assertEqual(unsent_bytes(transport), 75)
        transport.ours.send(b"in the kernel")
        # The kernel counts what it needs for the bytes, which may be more than they are.
        self.assertGreaterEqual(unsent_bytes(transport) or 0, 75 + len(b"in the kernel"))

    def test_enough_is_taken(self) -> None:
        """16 KiB in a period are progress, one byte less is none, whatever waited before."""
        for left, progress in ((4_000, True), (4_001, False)):
            transport = Buffering(self)
            transport.hold(20_384)
            deadline, _ = self.deadline(transport, 1_000_000)
            transport.hold(left)
            self.assertIs(deadline.made_progress(1_000_000), progress)

    def test_what_is_given_meanwhile(self) -> None:
        """Bytes that were given in the period and still wait are not taken."""
        transport = Buffering(self)
        deadline, _ = self.deadline(transport, 50_000)
        transport.hold(20_000)
        self.assertFalse(deadline.made_progress(70_000))
        self.assertTrue(deadline.made_progress(70_000 + 16_384))

    def test_unknown_is_no_progress(self) -> None:
        """Where nobody counts, only an empty transport is progress."""
        deadline, _ = self.deadline(object(), 50_000)
        self.assertIs(deadline.made_progress(1_000_000), False)
        deadline.drained = True
        self.assertIs(deadline.made_progress(50_000), True)

    def test_told_once(self) -> None:
        """The end of the period is told, to whoever asked, with the period itself."""
        deadline, over = self.deadline(object(), 0)
        self.assertEqual(deadline.period, 10.0)
        self.clock.advance(9.9)
        self.assertEqual(over, [])
        self.clock.advance(0.1)
        self.assertEqual(over, [deadline])
        deadline.cancel()

    def test_cancelled(self) -> None:
        """A cancelled period leaves no timer and tells nobody."""
        deadline, over = self.deadline(object(), 0)
        deadline.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        deadline.cancel()
        self.clock.advance(20)
        self.assertEqual(over, [])

    def test_not_a_socket(self) -> None:
        """Transports without a socket have no number."""
        self.assertIsNone(unsent_bytes(object()))
