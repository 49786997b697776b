"""The conversation on the control socket, in memory."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.errors import CommandError, ConfigError
from kvproto.ops.commands import COMMANDS, MAX_REQUEST
from kvproto.ops.control import (
    CLOSE_SECONDS,
    IDLE_SECONDS,
    MAX_SESSIONS,
    UNREAD_SECONDS,
    ControlFactory,
    ControlProtocol,
)
from kvproto.ops.interfaces import IControl
from kvproto.testing.scripted import ScriptedTransport
from tests.ops.material import FakeControl, verdict
from tests.turns import one_turn

STATUS = b'{"command":"status"}\n'
RELOAD = b'{"command":"reload","arguments":{"wait":true}}\n'


class ControlTests(SynchronousTestCase):
    """One connection."""

    def setUp(self) -> None:
        self.control = FakeControl()
        self.clock = Clock()
        self.factory = ControlFactory(self.control, self.clock)
        self.protocol, self.wire = self.connect()

    def connect(self) -> tuple[ControlProtocol, ScriptedTransport]:
        protocol, wire = self.factory.buildProtocol(None), ScriptedTransport()
        wire.connect(protocol)
        return protocol, wire

    def answers(self) -> list[dict[str, Any]]:
        """What has been answered since this was asked last."""
        lines = bytes(self.wire.received).split(b"\n")
        self.wire.received.clear()
        self.assertEqual(lines.pop(), b"")
        return [json.loads(line) for line in lines]

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send one request that is answered at once."""
        self.protocol.dataReceived(line)
        (answer,) = self.answers()
        return answer

    def lose(self) -> None:
        self.wire.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # requests

    def test_fake_keeps_the_contract(self) -> None:
        """The fake that these tests command provides the interface."""
        verifyObject(IControl, self.control)

    def test_answers(self) -> None:
        """A request is answered with what the verb returned."""
        answer = self.ask(b'{"id":1,"command":"connections","arguments":{"limit":2}}\n')
        self.assertEqual((answer["ok"], answer["id"], answer["shown"]), (True, 1, 2))
        self.assertEqual(self.control.asked, [("connections", {"listener": None, "limit": 2})])

    def test_byte_by_byte(self) -> None:
        """A request may arrive in any pieces; blank lines between requests are skipped."""
        for byte in b"\n \r\n" + STATUS.replace(b"\n", b"\r\n") + STATUS:
            self.protocol.dataReceived(bytes([byte]))
        self.assertEqual([answer["ok"] for answer in self.answers()], [True, True])

    def test_many_at_once(self) -> None:
        """Thousands of requests in one read are answered in order, without recursion."""
        lines = [b'{"id":%d,"command":"rollback"}\n' % number for number in range(3000)]
        for start in range(0, 3000, 1000):
            self.protocol.dataReceived(b"".join(lines[start : start + 1000]))
        self.assertEqual([answer["id"] for answer in self.answers()], list(range(3000)))

    def test_one_after_the_other(self) -> None:
        """While a command runs, the next request waits."""
        self.control.pending = True
        self.protocol.dataReceived(RELOAD + STATUS)
        self.assertEqual(self.answers(), [])
        self.control.waiting[0].callback(verdict(generation=4))
        first, second = self.answers()
        self.assertEqual((first["generation"], second["service"]["pid"]), (4, 4242))

    def test_bad_requests(self) -> None:
        """A request that makes no sense is answered, and the connection goes on."""
        self.assertEqual(self.ask(b"hello\n")["error"]["code"], "bad-request")
        self.assertEqual(self.ask(b'{"command":"x"}\n')["error"]["code"], "unknown-command")
        self.assertTrue(self.ask(STATUS)["ok"])

    def test_refused_by_the_service(self) -> None:
        """What the service refuses is told with its code."""
        answer = self.ask(b'{"command":"connections","arguments":{"listener":"x"}}\n')
        self.assertEqual(answer["error"]["code"], "unknown-listener")
        self.assertIn("'x'", answer["error"]["message"])

    def test_failed_outcome(self) -> None:
        """A verb that did not succeed says so in the place where all errors are."""
        self.control.reply = verdict(ok=False, stage="check", reason="the key does not fit")
        answer = self.ask(RELOAD)
        self.assertEqual((answer["ok"], answer["stage"]), (False, "check"))
        self.assertEqual(answer["error"], {"code": "failed", "message": "the key does not fit"})

    def test_failures(self) -> None:
        """Errors that are meant for people are told; others are logged and not told."""
        self.control.reply = ConfigError("--crl", "does not parse")
        answer = self.ask(RELOAD)
        self.assertEqual(answer["error"], {"code": "failed", "message": "--crl: does not parse"})
        self.control.reply = ValueError("secret")
        answer = self.ask(RELOAD)
        self.assertEqual(answer["error"]["code"], "internal")
        self.assertNotIn("secret", answer["error"]["message"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_no_json(self) -> None:
        """A verb that returns what JSON cannot say is a bug that is logged, and answered."""
        for reply in (object(), {"x": object()}, {"x": float("nan")}, None):
            self.control.reply = reply
            self.assertEqual(self.ask(RELOAD)["error"]["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(TypeError, ValueError)), 4)

    # long answers

    def test_pieces(self) -> None:
        """A long answer goes out in pieces, one a turn; the next request waits for its end."""
        self.many(10_000)
        self.protocol.dataReceived(RELOAD + STATUS)
        sent = [len(self.wire.received)]
        while self.wire.received.count(b"\n") < 2:
            one_turn(self.clock)
            sent.append(len(self.wire.received))
        pieces = [later - earlier for earlier, later in pairwise([0, *sent])]
        self.assertLess(max(pieces), sent[-1] / 40)
        first, second = self.answers()
        self.assertEqual([row["id"] for row in first["rows"]], list(range(10_000)))
        self.assertEqual((first["ok"], first["total"]), (True, 10_000))
        self.assertEqual(second["service"]["pid"], 4242)
        self.lose()

    def many(self, count: int) -> None:
        rows = [{"id": number, "text": "x" * 20} for number in range(count)]
        self.control.reply = {"ok": True, "rows": rows, "total": count}

    def test_pieces_unread(self) -> None:
        """A client that does not read gets no more; once it does, the rest comes."""
        self.many(1000)
        self.protocol.dataReceived(RELOAD)
        self.protocol.pauseProducing()
        self.clock.advance(0)
        held = len(self.wire.received)
        self.clock.pump([1.0] * int(UNREAD_SECONDS - 2))
        self.assertEqual(len(self.wire.received), held)
        self.protocol.resumeProducing()
        self.clock.pump([0.0] * 10)
        (answer,) = self.answers()
        self.assertEqual(len(answer["rows"]), 1000)
        self.lose()

    def test_pieces_never_read(self) -> None:
        """A client that never reads the rest is dropped, with all that waits for it."""
        self.many(1000)
        self.protocol.dataReceived(RELOAD)
        self.protocol.pauseProducing()
        self.clock.pump([1.0] * int(UNREAD_SECONDS + 2))
        self.assertTrue(self.wire.aborted)
        self.lose()

    def test_pieces_and_gone(self) -> None:
        """A client that leaves in the middle, or a service that ends, leaves nothing behind."""
        self.many(1000)
        self.protocol.dataReceived(RELOAD)
        self.lose()
        self.setUp()
        self.many(1000)
        self.protocol.dataReceived(RELOAD)
        self.protocol.close()
        self.assertTrue(self.wire.aborted)
        self.lose()

    def test_pieces_no_json(self) -> None:
        """What turns out late to be no JSON is logged; nobody takes half of it for an answer."""
        self.many(1000)
        self.control.reply["rows"][900] = {"x": object()}
        self.protocol.dataReceived(RELOAD)
        self.clock.pump([0.0] * 10)
        self.assertTrue(self.wire.aborted)
        self.assertNotIn(b"\n", self.wire.received)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.lose()

    # waiting

    def test_not_waiting(self) -> None:
        """Without ``wait`` the answer comes at once, and the work goes on."""
        self.control.pending = True
        self.assertIs(self.ask(b'{"command":"reload"}\n')["started"], True)
        self.assertTrue(self.ask(STATUS)["ok"])
        self.lose()
        self.control.waiting[0].callback(verdict())
        self.assertEqual(self.control.asked[0][0], "reload")

    def test_not_waiting_fails_at_once(self) -> None:
        """What fails at once is told even to those who do not wait."""
        self.control.reply = CommandError("stopping", "the service is stopping")
        self.assertEqual(self.ask(b'{"command":"drain"}\n')["error"]["code"], "stopping")

    def test_not_waiting_fails_later(self) -> None:
        """What fails later goes to the log; a bug with its traceback."""
        self.control.pending = True
        for _ in range(2):
            self.assertTrue(self.ask(b'{"command":"reload"}\n')["started"])
        self.control.waiting[0].errback(CommandError("stopping", "the service is stopping"))
        self.assertEqual(self.flushLoggedErrors(), [])
        self.control.waiting[1].errback(ValueError())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_time_limit(self) -> None:
        """A command that takes too long is answered in time, and the next one carried out."""
        self.control.pending = True
        self.protocol.dataReceived(RELOAD + STATUS)
        self.clock.advance(COMMANDS["reload"].seconds - 0.1)
        self.assertEqual(self.answers(), [])
        self.clock.advance(0.2)
        late, status = self.answers()
        self.assertEqual((late["error"]["code"], status["ok"]), ("timed-out", True))
        self.control.waiting[0].callback(verdict())
        self.assertEqual(self.answers(), [])

    def test_time_limit_of_the_client(self) -> None:
        """The client may choose the limit."""
        self.control.pending = True
        self.protocol.dataReceived(b'{"command":"rollback","timeout":0.5}\n')
        self.clock.advance(0.6)
        self.assertIn("0.5 s", self.answers()[0]["error"]["message"])

    def test_late_end(self) -> None:
        """How a command ended that nobody waits for is told to the log, not to the next one."""
        self.control.pending = True
        for _ in range(2):
            self.protocol.dataReceived(b'{"command":"rollback"}\n')
            self.clock.advance(COMMANDS["rollback"].seconds)
        self.protocol.dataReceived(b'{"id":3,"command":"rollback"}\n')
        first, second, third = self.control.waiting
        first.callback(verdict())
        second.errback(ValueError())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        third.callback(verdict())
        self.assertEqual([answer.get("id") for answer in self.answers()], [None, None, 3])

    def test_client_leaves(self) -> None:
        """A client that leaves while its command runs leaves nothing behind."""
        self.control.pending = True
        self.protocol.dataReceived(RELOAD + STATUS)
        self.lose()
        self.assertEqual(len(self.factory.sessions), 0)
        self.control.waiting[0].callback(verdict())
        self.assertEqual(self.wire.received, b"")
        self.assertEqual(self.control.asked, [("reload", {"allow_fewer_names": False})])

    # bounds

    def test_long_line(self) -> None:
        """A line without end is refused and the connection closed."""
        self.protocol.dataReceived(b"x" * (MAX_REQUEST + 1))
        self.assertEqual(self.answers()[0]["error"]["code"], "bad-request")
        self.assertTrue(self.wire.disconnecting)
        self.protocol.dataReceived(STATUS)
        self.assertEqual(self.wire.received, b"")
        self.lose()

    def test_too_much_waiting(self) -> None:
        """What a client sends ahead while a command runs is bounded too."""
        self.control.pending = True
        self.protocol.dataReceived(RELOAD)
        for _ in range(MAX_REQUEST // len(STATUS) + 1):
            self.protocol.dataReceived(STATUS)
        self.assertTrue(self.wire.disconnecting)
        self.lose()

    def test_idle(self) -> None:
        """A connection without a request is closed after a while; each request begins it anew."""
        self.clock.advance(IDLE_SECONDS - 1)
        self.ask(STATUS)
        self.clock.advance(IDLE_SECONDS - 1)
        self.assertFalse(self.wire.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.wire.disconnecting)
        self.lose()

    def test_unread_answers(self) -> None:
        """A client that does not read is asked for nothing more, and dropped after a while."""
        self.protocol.pauseProducing()
        self.protocol.dataReceived(STATUS)
        self.assertEqual(self.control.asked, [])
        self.protocol.resumeProducing()
        self.assertEqual(len(self.answers()), 1)
        self.protocol.pauseProducing()
        self.clock.advance(UNREAD_SECONDS)
        self.assertTrue(self.wire.aborted)
        self.lose()

    def test_too_many(self) -> None:
        """One connection too many is told so and closed."""
        for _ in range(MAX_SESSIONS - 1):
            self.connect()
        protocol, wire = self.connect()
        self.assertEqual(json.loads(wire.received)["error"]["code"], "busy")
        self.assertTrue(wire.disconnecting)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(len(self.factory.sessions), MAX_SESSIONS)

    # the end

    def test_close_all(self) -> None:
        """Closing waits until every client has what was answered, and is gone."""
        self.wire.peer_reads = False
        self.protocol.dataReceived(STATUS)
        done = self.factory.close_all()
        self.assertTrue(self.wire.disconnecting)
        self.assertNoResult(done)
        self.wire.read()
        self.successResultOf(done)
        self.successResultOf(self.factory.close_all())

    def test_close_all_gives_up(self) -> None:
        """A client that does not take its answer does not hold up the end."""
        self.wire.peer_reads = False
        self.protocol.dataReceived(STATUS)
        self.factory.close_all()
        self.assertFalse(self.wire.aborted)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(self.wire.aborted)
        self.lose()
