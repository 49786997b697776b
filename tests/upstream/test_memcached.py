"""One connection to a memcached server: which protocol it is, and the same promises in both."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.transport import MemoryPair
from kvproto.upstream.memcached import FrameCall, MemcachedConnection, greeting
from kvproto.upstream.resp import EngineFailure, Fate
from kvproto.wire.binary import encode_request, encode_response
from kvproto.wire.constants import Opcode
from tests.examples import examples

NOOP = encode_request(Opcode.NOOP)
QUESTION = b"\r\nmn\r\nversion\r\n"
TEXT = b"ERROR\r\nERROR\r\nMN\r\nVERSION 1.6.18\r\n"


class Server(Protocol):
    """The server's end, which keeps what it reads."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        self.heard += data


class MemcachedCase(SynchronousTestCase):
    """A connection that has sent its greeting."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ends: list[tuple[str, str]] = []
        self.replies: dict[Any, Any] = {}
        self.server = Server()
        self.connection = MemcachedConnection(
            self.clock, 2.0, lambda connection, reason, text: self.ends.append((reason, text))
        )
        self.pair = MemoryPair(self.server, self.connection, clock=self.clock)
        self.pair.connect()
        (hello,) = greeting()
        hello.answered, hello.context = self.answered, "hello"
        self.connection.send(hello)
        self.turn()
        self.assertEqual(self.server.heard, NOOP)
        self.server.heard = b""

    def tearDown(self) -> None:
        self.connection.abort("disconnected", "the test is over")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def turn(self) -> None:
        """Let a turn of the reactor end, and what was written arrive."""
        self.clock.advance(0)
        self.pair.flush()

    def call(self, opcode: int, name: str, opaque: int, *, write: bool = False) -> None:
        data = encode_request(opcode, key=name.encode(), opaque=opaque)
        self.connection.send(FrameCall(data, self.answered, opaque, write, name))

    def answered(self, reply: Any, call: Any) -> None:
        self.assertNotIn(call.context, self.replies)
        self.replies[call.context] = reply

    def say(self, data: bytes) -> None:
        self.server.transport.write(data)
        self.pair.flush()

    def fates(self) -> dict[str, Fate]:
        return {
            name: reply.fate
            for name, reply in self.replies.items()
            if isinstance(reply, EngineFailure)
        }


class RecognitionTests(MemcachedCase):
    """What a server says to our greeting."""

    def test_binary(self) -> None:
        """One that answers a frame is sent frames."""
        self.say(encode_response(Opcode.NOOP))
        self.assertEqual(self.replies, {"hello": encode_response(Opcode.NOOP)})
        self.assertFalse(self.connection.text)
        self.call(Opcode.GET, "k", 7)
        self.turn()
        self.assertEqual(self.server.heard, encode_request(Opcode.GET, key=b"k", opaque=7))

    def test_text(self) -> None:
        """One that speaks text alone is asked for meta commands, and sent those."""
        self.say(b"ERROR\r\n")
        self.assertEqual((self.server.heard, self.replies), (QUESTION, {}))
        self.say(b"ERROR\r\nMN\r\nVERSION 1.6.18\r\n")
        self.assertEqual(self.replies, {"hello": encode_response(Opcode.NOOP)})
        self.assertTrue(self.connection.text)
        self.server.heard = b""
        self.call(Opcode.GET, "k", 7)
        self.turn()
        self.assertEqual(self.server.heard, b"mg k f c v O7\r\n")

    @given(st.data())
    @examples(50)
    def test_text_cut_anywhere(self, data: st.DataObject) -> None:
        """However its answers come in, it is asked once."""
        self.setUp()
        answer = data.draw(st.sampled_from((TEXT, b"CLIENT_ERROR bad\r\n" + TEXT)))
        while answer:
            size = data.draw(st.integers(1, len(answer)))
            self.say(answer[:size])
            answer = answer[size:]
        self.assertEqual(self.server.heard, QUESTION)
        self.assertTrue(self.connection.text)
        self.assertEqual(self.replies, {"hello": encode_response(Opcode.NOOP)})

    def test_neither(self) -> None:
        """One that is of no use is left at once, with a reason that says what to do."""
        for said, word in (
            (b"ERROR\r\nERROR\r\nERROR\r\nVERSION 1.4.0\r\n", "-B auto"),
            (b"-ERR unknown command\r\n", "-ERR unknown"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400"),
            (b"EHLO\r\n", "EHLO"),
            (b"\x15\x03\x01\x00\x02\x02\x0a", "\\x15\\x03"),
            (b"ERROR" * 1000, "ERROR"),
            (b"ERROR\r\n" * 1000, "ERROR"),
        ):
            self.setUp()
            self.say(said)
            ((reason, text),) = self.ends
            self.assertEqual(reason, "protocol")
            self.assertIn(word, text)
            self.assertEqual(self.fates(), {"hello": Fate.UNANSWERED})

    def test_silent(self) -> None:
        """One that says nothing, or stops in the middle, ends by the timeout."""
        for said in (b"", b"ERR", b"ERROR\r\n"):
            self.setUp()
            self.say(said)
            self.clock.advance(2.0)
            self.assertEqual([reason for reason, _ in self.ends], ["timeout"])

    def test_lost(self) -> None:
        """One that leaves in the middle is lost."""
        self.say(b"ERROR\r\n")
        self.server.transport.loseConnection()
        self.pair.flush()
        self.assertEqual([reason for reason, _ in self.ends], ["disconnected"])

    def test_closed(self) -> None:
        """One that closes in place of an answer is said to have done so."""
        self.server.transport.loseConnection()
        self.pair.flush()
        self.assertEqual(
            self.ends, [("disconnected", "it closed the connection in place of an answer")]
        )


class TextTests(MemcachedCase):
    """A connection that speaks text keeps the promises of any other."""

    def setUp(self) -> None:
        super().setUp()
        self.say(TEXT)
        self.replies.clear()
        self.server.heard = b""

    def test_order(self) -> None:
        """Answers go to the oldest request, however they come in."""
        for number, name in enumerate(("a", "b", "c")):
            self.call(Opcode.GET, name, number)
        self.turn()
        self.assertEqual(self.server.heard.count(b"\r\n"), 3)
        answer = b"EN\r\nVA 3 f0 c9 O1\r\nxyz\r\nEN\r\n"
        for at in range(len(answer)):
            self.say(answer[at : at + 1])
        self.assertEqual(list(self.replies), ["a", "b", "c"])
        self.assertEqual(bytes(self.replies["b"][-3:]), b"xyz")
        self.assertEqual(self.ends, [])

    def test_lost(self) -> None:
        """What was sent is unknown or unanswered, what was not is not performed."""
        self.call(Opcode.GET, "answered", 1)
        self.call(Opcode.DELETE, "write", 2, write=True)
        self.call(Opcode.GET, "read", 3)
        self.turn()
        self.say(b"EN\r\nH")
        self.call(Opcode.DELETE, "unsent", 4, write=True)
        self.connection.abort("disconnected", "the peer is gone")
        self.assertEqual(
            self.fates(),
            {"write": Fate.UNKNOWN, "read": Fate.UNANSWERED, "unsent": Fate.NOT_PERFORMED},
        )

    def test_timeout(self) -> None:
        """A server that has stopped answering ends the connection."""
        self.call(Opcode.DELETE, "write", 2, write=True)
        self.turn()
        self.clock.advance(2.0)
        self.assertEqual(self.fates(), {"write": Fate.UNKNOWN})
        self.assertEqual([reason for reason, _ in self.ends], ["timeout"])

    def test_nonsense(self) -> None:
        """An answer that cannot be one ends the connection, and reaches nobody."""
        for said in (b"EN\r\n", b"HD O3\r\n", b"ERROR\r\n", b"what\r\n"):
            self.setUp()
            self.call(Opcode.DELETE, "write", 2, write=True)
            self.turn()
            self.say(said)
            self.assertEqual([reason for reason, _ in self.ends], ["protocol"], said)
            self.assertEqual(self.fates(), {"write": Fate.UNKNOWN})

    def test_unasked(self) -> None:
        """An answer to nothing ends the connection."""
        self.say(b"EN\r\n")
        self.assertEqual([reason for reason, _ in self.ends], ["protocol"])
