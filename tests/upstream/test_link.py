"""A connection that is made again: every event in every state."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.backoff import Backoff
from kvproto.upstream import link as module
from kvproto.upstream.connection import Call
from kvproto.upstream.link import Link, LinkState
from kvproto.upstream.resp import EngineFailure, Fate, command
from tests.upstream.fakes import FakeEndpoint

PING = command(b"PING")
AUTH = command(b"AUTH", b"secret")
S = LinkState


class LinkTests(SynchronousTestCase):
    """The table in the module, row by row."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = FakeEndpoint(self.clock)
        self.changes: list[LinkState] = []
        self.replies: dict[str, Any] = {}
        self.greeting: list[bytes] = [AUTH, PING]
        self.link = Link(
            self.clock,
            lambda: self.endpoint,
            lambda: self.greeting,
            2.0,
            5.0,
            lambda link: self.changes.append(link.state),
            backoff=Backoff(1.0, 4.0, lambda: 0.0),
        )

    def tearDown(self) -> None:
        """Once it is stopped, nothing is left."""
        self.link.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.endpoint.attempts, [])

    def send(self, name: str, *, write: bool = True) -> None:
        def answered(reply: Any, call: Call) -> None:
            self.assertNotIn(name, self.replies)
            self.replies[name] = reply

        self.link.send(Call(PING, answered, write))

    def failure(self, name: str) -> tuple[Fate, str]:
        reply = self.replies[name]
        self.assertIsInstance(reply, EngineFailure)
        return reply.fate, reply.reason

    def become(self, state: LinkState) -> None:
        """Bring the link into a state."""
        if state is not S.STOPPED:
            self.link.start()
        if state is S.WAITING:
            self.endpoint.fail()
        if state in {S.GREETING, S.READY}:
            self.endpoint.succeed()
        if state is S.READY:
            self.endpoint.say(b"+OK\r\n+PONG\r\n")
        self.assertIs(self.link.state, state)
        self.changes.clear()

    # start

    def test_start(self) -> None:
        """Start connects; a link that is started already goes on."""
        self.become(S.STOPPED)
        self.link.start()
        self.assertEqual((self.link.state, self.endpoint.made), (S.CONNECTING, 1))
        for state in (S.CONNECTING, S.GREETING, S.READY, S.WAITING):
            self.setUp()
            self.become(state)
            self.link.start()
            self.assertEqual((self.link.state, self.endpoint.made), (state, 1))
            self.link.stop()

    # send

    def test_send_refused(self) -> None:
        """While nobody is there, commands are refused with the reason."""
        self.become(S.STOPPED)
        self.send("a")
        self.assertEqual(self.failure("a"), (Fate.NOT_PERFORMED, "unreachable"))
        self.become(S.WAITING)
        self.send("b")
        self.assertEqual(self.failure("b"), (Fate.NOT_PERFORMED, "unreachable"))
        self.assertIn("refused", self.replies["b"].text)

    def test_send_kept(self) -> None:
        """While a connection is being made, commands wait for it, in order."""
        self.become(S.CONNECTING)
        self.send("a")
        self.endpoint.succeed()
        self.send("b")
        self.assertEqual(
            (self.link.pending, self.endpoint.server.commands),
            (4, [[b"AUTH", b"secret"], [b"PING"]]),
        )
        self.endpoint.say(b"+OK\r\n+PONG\r\n")
        self.assertEqual(len(self.endpoint.server.commands), 4)
        self.endpoint.say(b"+1\r\n+2\r\n")
        self.assertEqual(self.replies, {"a": b"1", "b": b"2"})

    def test_send_kept_is_bounded(self) -> None:
        """Only so many wait."""
        self.patch(module, "MAX_KEPT", 1)
        self.become(S.CONNECTING)
        self.send("a")
        self.send("b")
        self.assertEqual(self.failure("b"), (Fate.NOT_PERFORMED, "overload"))
        self.assertNotIn("a", self.replies)

    def test_send_ready(self) -> None:
        """On a good connection commands are sent."""
        self.become(S.READY)
        self.send("a")
        self.endpoint.pair.flush()
        self.endpoint.say(b"+x\r\n")
        self.assertEqual(self.replies, {"a": b"x"})

    # attempts

    def test_failed(self) -> None:
        """A failed attempt is repeated, after a time that grows."""
        self.become(S.CONNECTING)
        self.send("a")
        for wait in (1, 2, 4, 4):
            self.endpoint.fail()
            self.assertIs(self.link.state, S.WAITING)
            self.clock.advance(wait - 0.01)
            self.assertIs(self.link.state, S.WAITING)
            self.clock.advance(0.01)
            self.assertIs(self.link.state, S.CONNECTING)
        self.assertEqual(self.failure("a"), (Fate.NOT_PERFORMED, "unreachable"))
        self.assertEqual(self.changes, [S.WAITING] * 4)

    def test_no_endpoint(self) -> None:
        """An endpoint that cannot be made is a failed attempt."""
        self.link._endpoint = lambda: 1 // 0  # type: ignore[assignment,return-value]
        self.link.start()
        self.assertEqual((self.link.state, self.link.reason), (S.WAITING, "unreachable"))

    def test_greeted(self) -> None:
        """With the last answer of the greeting the link is ready, and waits are short again."""
        self.become(S.CONNECTING)
        self.endpoint.fail()
        self.clock.advance(1)
        self.endpoint.succeed()
        self.endpoint.say(b"+OK\r\n")
        self.assertIs(self.link.state, S.GREETING)
        self.endpoint.say(b"+PONG\r\n")
        self.assertEqual((self.link.state, self.link.reason), (S.READY, ""))
        self.assertEqual(self.changes, [S.WAITING, S.READY])
        self.endpoint.server.transport.loseConnection()
        self.endpoint.pair.flush()
        self.endpoint.fail()
        self.clock.advance(1)
        self.assertIs(self.link.state, S.CONNECTING)

    def test_refused(self) -> None:
        """A greeting that is answered with an error is a failed attempt with that reason."""
        for error, reason in (
            (b"-WRONGPASS invalid username-password pair\r\n", "login"),
            (b"-NOAUTH Authentication required.\r\n", "login"),
            (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
            (b"-ERR max number of clients reached\r\n", "overload"),
            (b"-ERR DB index is out of range\r\n", "refused"),
        ):
            self.setUp()
            self.become(S.GREETING)
            self.send("a")
            self.endpoint.say(b"+OK\r\n" + error)
            self.assertEqual((self.link.state, self.link.reason), (S.WAITING, reason))
            self.assertEqual(self.failure("a"), (Fate.NOT_PERFORMED, reason))
            self.assertIsNotNone(self.endpoint.server.lost)
            self.tearDown()

    def test_no_password(self) -> None:
        """A greeting that cannot be made is a failed attempt."""
        self.link._greeting = lambda: open("/nonexistent/password")  # type: ignore[assignment,return-value]  # noqa: SIM115
        self.link.start()
        self.endpoint.succeed()
        self.assertEqual((self.link.state, self.link.reason), (S.WAITING, "login"))

    def test_deadline(self) -> None:
        """Connecting and greeting share one deadline."""
        self.become(S.CONNECTING)
        self.send("a")
        self.clock.advance(2)
        self.assertEqual(self.endpoint.attempts, [])
        self.assertEqual(self.failure("a"), (Fate.NOT_PERFORMED, "timeout"))
        self.clock.advance(1)
        self.clock.advance(1.5)
        self.endpoint.succeed()
        self.clock.advance(0.5)
        self.assertEqual((self.link.state, self.link.reason), (S.WAITING, "timeout"))
        self.endpoint.pair.flush()
        self.assertIsNotNone(self.endpoint.server.lost)

    def test_no_deadline_when_ready(self) -> None:
        """An idle connection has no deadline."""
        self.become(S.READY)
        self.clock.advance(1000)
        self.assertEqual((self.link.state, self.changes), (S.READY, []))

    # loss

    def test_lost_during_the_greeting(self) -> None:
        """A connection that is lost before it is good is a failed attempt."""
        self.become(S.GREETING)
        self.endpoint.server.transport.loseConnection()
        self.endpoint.pair.flush()
        self.assertEqual((self.link.state, self.link.reason), (S.WAITING, "disconnected"))

    def test_lost_when_ready(self) -> None:
        """A good connection that is lost is made again at once; commands wait for it."""
        self.become(S.READY)
        self.send("sent")
        self.endpoint.pair.flush()
        self.endpoint.server.transport.loseConnection()
        self.endpoint.pair.flush()
        self.send("kept")
        self.assertEqual((self.link.state, self.changes), (S.CONNECTING, [S.CONNECTING]))
        self.assertEqual(self.failure("sent"), (Fate.UNKNOWN, "disconnected"))
        self.endpoint.succeed()
        self.endpoint.say(b"+OK\r\n+PONG\r\n")
        self.endpoint.say(b"+x\r\n")
        self.assertEqual(self.replies["kept"], b"x")

    def test_an_engine_that_does_not_answer(self) -> None:
        """A command that takes too long costs the connection, which is made again."""
        self.become(S.READY)
        self.send("a", write=False)
        self.endpoint.pair.flush()
        self.clock.advance(5)
        self.assertEqual(self.failure("a"), (Fate.UNANSWERED, "timeout"))
        self.assertIs(self.link.state, S.CONNECTING)

    def test_companions_end_with_the_connection(self) -> None:
        """What is noted as travelling with commands is forgotten when these have not left."""
        self.become(S.READY)
        self.link.companions.add("x")
        self.endpoint.server.transport.loseConnection()
        self.endpoint.pair.flush()
        self.assertEqual(self.link.companions, set())
        self.link.companions.add("x")
        self.endpoint.fail()
        self.assertEqual(self.link.companions, set())

    # renew

    def test_renew(self) -> None:
        """A new connection is made in every state but STOPPED; the old one answers what it has."""
        for state in (S.CONNECTING, S.GREETING, S.WAITING):
            self.setUp()
            self.become(state)
            self.link.renew()
            self.assertEqual((self.link.state, len(self.endpoint.attempts)), (S.CONNECTING, 1))
            self.link.stop()
        self.setUp()
        self.link.renew()
        self.assertIs(self.link.state, S.STOPPED)
        self.become(S.READY)
        self.send("old")
        self.endpoint.pair.flush()
        old, pair = self.endpoint.server, self.endpoint.pair
        self.link.renew()
        self.send("new")
        old.say(b"+1\r\n")
        pair.flush()
        self.assertEqual((self.replies, old.lost is not None), ({"old": b"1"}, True))
        self.endpoint.succeed()
        self.endpoint.say(b"+OK\r\n+PONG\r\n")
        self.endpoint.say(b"+2\r\n")
        self.assertEqual(self.replies["new"], b"2")

    # stop

    def test_stop(self) -> None:
        """Stop ends everything in every state; what was under way is told."""
        for state in S:
            self.setUp()
            self.become(state)
            self.send("a")
            if state is S.READY:
                self.clock.advance(0)
            self.link.stop()
            self.link.stop()
            expected = Fate.UNKNOWN if state is S.READY else Fate.NOT_PERFORMED
            self.assertEqual(self.failure("a")[0], expected)
            self.assertIs(self.link.state, S.STOPPED)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertEqual(self.endpoint.attempts, [])

    def test_stop_while_an_old_connection_answers(self) -> None:
        """A connection that a renewal has left behind is closed as well."""
        self.become(S.READY)
        self.send("old")
        self.endpoint.pair.flush()
        self.link.renew()
        self.link.stop()
        self.assertEqual(self.failure("old")[0], Fate.UNKNOWN)
