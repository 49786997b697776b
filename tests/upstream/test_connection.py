"""One connection: replies to their commands, and what is known of those without."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.transport import MemoryPair
from kvproto.upstream import connection as module
from kvproto.upstream.connection import Call, EngineConnection
from kvproto.upstream.resp import EngineFailure, Fate, ReplyError, command
from tests.upstream.fakes import FakeServer

PING = command(b"PING")


class ConnectionTests(SynchronousTestCase):
    """Every event in both states; see the table in the module."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.replies: dict[Any, Any] = {}
        self.ends: list[tuple[str, str]] = []
        self.observed: list[tuple[float, int]] = []
        self.companions: set[object] = set()
        self.connect()

    def connect(self, **options: Any) -> None:
        self.engine = FakeServer()
        self.connection = EngineConnection(
            self.clock,
            2.0,
            lambda connection, reason, text: self.ends.append((reason, text)),
            lambda seconds, count: self.observed.append((seconds, count)),
            self.companions,
        )
        self.pair = MemoryPair(self.engine, self.connection, clock=self.clock, **options)
        self.pair.connect()

    def call(self, name: str, *, write: bool = False, data: bytes = PING) -> None:
        self.connection.send(Call(data, self.answered, write, context=name))

    def answered(self, reply: Any, call: Call) -> None:
        self.assertNotIn(call.context, self.replies)
        self.replies[call.context] = reply

    def say(self, data: bytes) -> None:
        self.engine.say(data)
        self.pair.flush()

    def fates(self) -> dict[str, tuple[Fate, str]]:
        return {
            name: (reply.fate, reply.reason)
            for name, reply in self.replies.items()
            if isinstance(reply, EngineFailure)
        }

    def test_replies_go_to_their_commands(self) -> None:
        """Replies of all kinds go to the commands in the order in which these were sent."""
        for name in "abcdefg":
            self.call(name)
        self.pair.flush()
        self.say(b"$1\r\nx\r\n+OK\r\n:7\r\n$-1\r\n*2\r\n:1\r\n$-1\r\n-ERR no\r\n")
        self.assertEqual(len(self.replies), 6)
        self.assertIsInstance(self.replies.pop("f"), ReplyError)
        self.assertEqual(self.replies, {"a": b"x", "b": b"OK", "c": 7, "d": None, "e": [1, None]})
        self.assertEqual(self.connection.pending, 1)

    def test_replies_in_pieces(self) -> None:
        """A reply may come in pieces of any size."""
        for name in "ab":
            self.call(name)
        self.pair.flush()
        for byte in b"$5\r\nab\r\nc\r\n$0\r\n\r\n":
            self.say(bytes((byte,)))
        self.assertEqual(self.replies, {"a": b"ab\r\nc", "b": b""})

    def test_one_write_for_each_turn(self) -> None:
        """Everything that is sent within a turn is written together, at its end."""
        writes: list[bytes] = []
        self.connection._send_bytes = writes.append
        self.companions.add("x")
        for name in "abc":
            self.call(name)
        self.assertEqual((writes, self.companions), ([], {"x"}))
        self.clock.advance(0)
        self.assertEqual((writes, self.companions), ([PING * 3], set()))
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)

    def test_commands_sent_by_an_answer(self) -> None:
        """A command that an answer leads to waits for the end of the turn as any other."""
        self.connection.send(Call(PING, lambda reply, call: self.call("second")))
        self.pair.flush()
        self.say(b"+PONG\r\n")
        self.assertEqual(len(self.engine.commands), 2)
        self.say(b"+PONG\r\n")
        self.assertEqual(self.replies, {"second": b"PONG"})

    def test_a_handler_that_fails(self) -> None:
        """What goes wrong with one reply is logged, and is nobody else's business."""
        self.connection.send(Call(PING, lambda reply, call: 1 // 0))
        self.call("a")
        self.pair.flush()
        self.say(b"+x\r\n+y\r\n")
        self.assertEqual(self.replies, {"a": b"y"})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_lost(self) -> None:
        """What was sent is a read without answer, or a write of unknown fate."""
        self.call("read")
        self.call("write", write=True)
        self.pair.flush()
        self.engine.transport.loseConnection()
        self.pair.flush()
        self.assertEqual(
            self.fates(),
            {
                "read": (Fate.UNANSWERED, "disconnected"),
                "write": (Fate.UNKNOWN, "disconnected"),
            },
        )
        self.assertEqual([reason for reason, _ in self.ends], ["disconnected"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lost_before_anything_was_written(self) -> None:
        """What has not been written is known not to have been performed."""
        self.call("sent", write=True)
        self.pair.flush()
        self.call("not sent", write=True)
        self.connection.abort("disconnected", "a test")
        self.assertEqual(self.fates()["sent"][0], Fate.UNKNOWN)
        self.assertEqual(self.fates()["not sent"][0], Fate.NOT_PERFORMED)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_full_transport(self) -> None:
        """While the transport is full nothing is written, and that is known when it is lost."""
        self.connect(high_water=1, window=1)
        self.call("sent", write=True)
        self.clock.advance(0)
        self.call("kept", write=True)
        self.clock.advance(0)
        self.assertEqual(bytes(self.pair.client.unsent), PING)
        self.connection.abort("disconnected", "a test")
        self.assertEqual(
            [fate for fate, _ in self.fates().values()], [Fate.UNKNOWN, Fate.NOT_PERFORMED]
        )

    def test_a_transport_with_room_again(self) -> None:
        """What has come together is written when the transport has room."""
        self.connect(high_water=1, window=1)
        self.call("a")
        self.clock.advance(0)
        self.call("b")
        self.pair.flush()
        self.assertEqual(len(self.engine.commands), 2)

    def test_too_late(self) -> None:
        """A command that is not answered in time costs the connection."""
        self.call("a", write=True)
        self.clock.advance(0)
        self.clock.advance(1)
        self.call("b")
        self.clock.advance(0.9)
        self.assertEqual(self.replies, {})
        self.clock.advance(0.1)
        self.assertEqual(
            self.fates(), {"a": (Fate.UNKNOWN, "timeout"), "b": (Fate.UNANSWERED, "timeout")}
        )
        self.assertEqual([reason for reason, _ in self.ends], ["timeout"])

    def test_a_late_reply_goes_to_nobody(self) -> None:
        """What comes after the timeout is not taken for an answer to something else."""
        self.call("a")
        self.pair.flush()
        self.engine.transport.write(b"+late\r\n")
        self.clock.advance(2)
        self.connection.dataReceived(b"+late\r\n")
        self.assertEqual(self.fates(), {"a": (Fate.UNANSWERED, "timeout")})

    def test_we_are_late(self) -> None:
        """Where our own process was held up, an answer that is there already still counts."""
        for _ in range(2):
            self.call("a")
            self.pair.flush()
            # The reactor's order after a pause: timers first, then what sockets have.
            self.clock.callLater(5, self.connection.dataReceived, b"+there\r\n")
            self.clock.advance(5)
            self.assertEqual(self.replies.pop("a"), b"there")
        self.assertEqual(self.ends, [])
        self.call("a")
        self.pair.flush()
        self.clock.advance(5)
        self.assertEqual(self.fates(), {"a": (Fate.UNANSWERED, "timeout")})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_the_oldest_counts(self) -> None:
        """As long as the oldest command is younger than the timeout the connection stays."""
        for _ in range(10):
            self.call("a")
            self.pair.flush()
            self.clock.advance(1.5)
            self.say(b"+x\r\n")
            self.assertEqual(self.replies.pop("a"), b"x")
        self.assertEqual(self.ends, [])
        self.clock.advance(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_reply_to_nothing(self) -> None:
        """A reply that nobody waits for ends the connection: what follows cannot be trusted."""
        self.say(b"+x\r\n")
        self.assertEqual(self.ends, [("protocol", "a reply to no command")])

    def test_a_reply_to_what_was_not_sent(self) -> None:
        """A reply is not given to a command that has not left yet."""
        self.call("a")
        self.connection.dataReceived(b"+x\r\n")
        self.assertEqual(self.fates(), {"a": (Fate.NOT_PERFORMED, "protocol")})

    def test_no_resp(self) -> None:
        """What is not RESP ends the connection."""
        self.call("a")
        self.pair.flush()
        self.say(b"HTTP/1.1 400 Bad Request\r\n")
        self.assertEqual(self.fates(), {"a": (Fate.UNANSWERED, "protocol")})

    def test_ended(self) -> None:
        """After the end, everything is refused or ignored."""
        self.connection.abort("disconnected", "first")
        self.connection.abort("timeout", "second")
        self.call("a")
        self.connection.dataReceived(b"+x\r\n")
        self.connection.resumeProducing()
        self.connection.close_when_idle()
        self.connection.connectionLost()
        self.assertEqual(self.fates(), {"a": (Fate.NOT_PERFORMED, "disconnected")})
        self.assertEqual(self.ends, [("disconnected", "first")])

    def test_close_when_idle(self) -> None:
        """What has been asked is answered before the connection closes."""
        self.call("a")
        self.pair.flush()
        self.connection.close_when_idle()
        self.assertEqual(self.ends, [])
        self.say(b"+x\r\n")
        self.assertEqual((self.replies, len(self.ends)), ({"a": b"x"}, 1))

    def test_close_when_idle_at_once(self) -> None:
        """A connection that has nothing to do closes at once."""
        self.connection.close_when_idle()
        self.assertEqual(len(self.ends), 1)

    def test_too_many(self) -> None:
        """Commands above the limit are refused, and the others are not touched."""
        self.patch(module, "MAX_PENDING", 2)
        self.connect()
        for name in "abc":
            self.call(name)
        self.assertEqual(self.fates(), {"c": (Fate.NOT_PERFORMED, "overload")})

    def test_too_much(self) -> None:
        """So are those above the limit of bytes that wait for a full transport."""
        self.patch(module.EngineConnection, "MAX_UNSENT", 150)
        self.connect(high_water=1, window=1)
        self.call("a")
        self.clock.advance(0)
        for name in "bcd":
            self.call(name, data=command(b"x" * 100))
        self.call("e")
        self.assertEqual(self.fates(), {"e": (Fate.NOT_PERFORMED, "overload")})
        self.pair.flush()
        self.call("f")
        self.pair.flush()
        self.assertEqual(len(self.engine.commands), 5)

    def test_how_long_replies_took(self) -> None:
        """The time from a write to its replies is told, each reply once."""
        for name in "abc":
            self.call(name)
        self.pair.flush()
        self.clock.advance(0.25)
        self.say(b"+x\r\n+x\r\n")
        self.call("d")
        self.pair.flush()
        self.clock.advance(0.25)
        self.say(b"+x\r\n+x\r\n")
        self.assertEqual(self.observed, [(0.25, 2), (0.5, 1), (0.25, 1)])
