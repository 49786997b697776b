"""One link: its deadlines, its ticks, its end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.dist import Atom, BuiltinProcess, LinkState, NodeController, encode
from kvproto.dist.backlog import WATCH_FROM
from kvproto.dist.control import reg_send
from kvproto.dist.framing import TICK, frame
from kvproto.dist.handshake import Status, digest
from kvproto.interfaces import IController, IDrainable
from tests.dist.pairs import COOKIE, Connection, Pair, Wire, frames_in, make_node
from tests.dist.test_handshake import name_message


class LinkCase(SynchronousTestCase):
    """A node on a clock; at the end no timer is left."""

    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.clock = Clock()
        self.kv = make_node(self.clock, **self.settings)
        self.erl = make_node(self.clock, "erl@host")

    def pair(self) -> Pair:
        """Return a link from erl to kv that is up."""
        pair = Pair(self.erl, self.kv)
        pair.flush()
        self.assertEqual((pair.near.state, pair.far.state), (LinkState.UP, LinkState.UP))
        return pair

    def assert_no_timers(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HandshakeTests(LinkCase):
    """How a link comes up, or does not."""

    def test_up(self) -> None:
        """Both nodes hear of each other once, and the listener that the peer is somebody."""
        pair = self.pair()
        self.assertEqual(self.kv.ups(), [("erl@host", True)])
        self.assertEqual(self.erl.ups(), [("kv@host", True)])
        self.assertEqual(pair.connection.users, ["erl@host"])
        self.assertEqual((self.kv.node.nodes(), self.erl.node.nodes()), (["erl@host"], ["kv@host"]))

    def test_byte_by_byte(self) -> None:
        """A handshake may come in pieces of one byte."""
        link, wire = self.kv.accept()
        for byte in frame(name_message()):
            wire.say(bytes([byte]))
        status, challenge = frames_in(wire.read())
        self.assertEqual(status, b"sok")
        proof = digest(COOKIE, int.from_bytes(challenge[9:13], "big"))
        for byte in frame(b"r" + bytes(4) + proof):
            wire.say(bytes([byte]))
        self.assertIs(link.state, LinkState.UP)

    def test_first_message_with_the_reply(self) -> None:
        """What follows the last message of the handshake in the same read is not lost."""
        self.kv.node.register("kvtls", BuiltinProcess(self.clock))
        link, wire = self.kv.accept()
        wire.say(frame(name_message()))
        challenge = frames_in(wire.read())[1]
        proof = digest(COOKIE, int.from_bytes(challenge[9:13], "big"))
        caller = self.erl.node.pid
        request = (Atom("$gen_call"), (caller, self.erl.node.new_reference()), Atom("ping"))
        wire.say(frame(b"r" + bytes(4) + proof) + frame(reg_send(caller, "kvtls", request)))
        self.assertIs(link.state, LinkState.UP)
        ack, answer = frames_in(wire.read())
        self.assertEqual(ack[:1], b"a")
        self.assertIn(b"pong", answer)

    def test_wrong_cookie(self) -> None:
        """A peer with another cookie is cut off, and the listener hears why."""
        stranger = make_node(self.clock, "erl@host", cookie=b"other")
        pair = Pair(stranger, self.kv)
        pair.flush()
        self.assertIs(pair.far.state, LinkState.CLOSED)
        self.assertTrue(pair.far_wire.aborted)
        self.assertEqual(pair.connection.errors, ["peer has another cookie"])
        self.assertEqual(self.kv.ups() + stranger.ups(), [])
        self.assert_no_timers()

    def test_garbage(self) -> None:
        """Anything else than a handshake is cut off at once."""
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", frame(b"x"), TICK, frame(bytes(4096))):
            link, wire = self.kv.accept()
            wire.say(garbage)
            self.assertTrue(wire.aborted)
            self.assertIs(link.state, LinkState.CLOSED)
        self.assert_no_timers()

    def test_refused(self) -> None:
        """A refused peer is told, and let go gently."""
        link, wire = self.kv.accept()
        wire.say(frame(name_message(flags=0)))
        self.assertEqual(frames_in(wire.read()), [b"snot_allowed"])
        self.assertTrue(wire.disconnecting)
        self.assertIs(link.state, LinkState.CLOSING)
        self.clock.advance(1)
        self.assertTrue(wire.aborted)
        self.assert_no_timers()

    def test_silence(self) -> None:
        """A peer that says nothing is cut off after the setup time."""
        link, wire = self.kv.accept()
        self.clock.advance(6.9)
        self.assertFalse(wire.aborted)
        self.clock.advance(0.1)
        self.assertTrue(wire.aborted)
        self.assertIn("waiting for the peer's name: no answer in time", link.reason)
        self.assert_no_timers()

    def test_each_step_has_its_time(self) -> None:
        """A completed step begins a new time; what is only half said does not."""
        link, wire = self.kv.accept()
        self.clock.advance(6)
        wire.say(frame(name_message()))
        self.clock.advance(6)
        wire.say(b"\x00")
        self.assertFalse(wire.aborted)
        self.clock.advance(1)
        self.assertTrue(wire.aborted)
        self.assertIn("answer to the challenge", link.reason)

    def test_all_steps_together(self) -> None:
        """Steps that each come late enough do not add up beyond the total."""
        self.kv.node.decide = lambda name: (Status.ALIVE, "")  # type: ignore[method-assign]
        _, wire = self.kv.accept()
        self.clock.advance(6)
        wire.say(frame(name_message()))
        self.clock.advance(6)
        wire.say(frame(b"strue"))
        self.clock.advance(2.9)
        self.assertFalse(wire.aborted)
        self.clock.advance(0.1)
        self.assertTrue(wire.aborted)
        self.assert_no_timers()

    def test_closed_by_the_listener_meanwhile(self) -> None:
        """A connection that its listener is closing does not come up any more."""
        pair = Pair(self.erl, self.kv)
        pair.near_wire.deliver()
        pair.far_wire.deliver()
        pair.far_wire.loseConnection()
        pair.near_wire.deliver()
        self.assertEqual(self.kv.ups(), [])
        pair.flush()
        self.assertIs(pair.far.state, LinkState.CLOSED)
        self.assert_no_timers()

    def test_lost_in_each_step(self) -> None:
        """A peer that goes away at any step leaves nothing behind, and no nodedown."""
        for steps in range(4):
            pair = Pair(self.erl, self.kv)
            for step in range(steps):
                (pair.near_wire if step % 2 == 0 else pair.far_wire).deliver()
            pair.far_wire.lose()
            pair.near_wire.lose()
            self.assertEqual(len(self.kv.events) % 2, 0)
            self.assert_no_timers()
            self.assertEqual(self.kv.node.status()["links"], [])


class AdmissionTests(LinkCase):
    """The program's own word on who may come in."""

    def admit_by(self, answer: Any) -> tuple[Any, Wire]:
        self.asked: list[Any] = []

        def admit(name: str, connection: Any) -> Any:
            self.asked.append((name, connection))
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.kv = make_node(self.clock, admit=admit)
        self.connection = Connection()
        link, wire = self.kv.accept(self.connection)
        wire.say(frame(name_message()))
        return link, wire

    def test_yes_and_no(self) -> None:
        """It is asked by name and connection; both answers count."""
        _, wire = self.admit_by(True)
        self.assertEqual(self.asked, [("erl@host", self.connection)])
        self.assertEqual(frames_in(wire.read())[0], b"sok")
        _, wire = self.admit_by(False)
        self.assertEqual(frames_in(wire.read()), [b"snot_allowed"])

    def test_failure_is_no(self) -> None:
        """An admission that fails lets nobody in."""
        _, wire = self.admit_by(ZeroDivisionError())
        self.assertEqual(frames_in(wire.read()), [b"snot_allowed"])
        later = Deferred[bool]()
        _, wire = self.admit_by(later)
        later.errback(ZeroDivisionError())
        self.assertEqual(frames_in(wire.read()), [b"snot_allowed"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_later(self) -> None:
        """It may take its time, within the time of a step."""
        answer = Deferred[bool]()
        link, wire = self.admit_by(answer)
        self.assertEqual(wire.read(), b"")
        answer.callback(True)
        self.assertEqual(frames_in(wire.read())[0], b"sok")
        self.assertIs(link.state, LinkState.HANDSHAKING)

    def test_at_once_by_deferred(self) -> None:
        """A Deferred that has its result already is the same as the result."""
        answer = Deferred[bool]()
        answer.callback(False)
        _, wire = self.admit_by(answer)
        self.assertEqual(frames_in(wire.read()), [b"snot_allowed"])

    def test_end_cancels_it(self) -> None:
        """Loss, deadline and close cancel an admission that is under way; its answer is void."""
        for end in ("lose", "deadline", "close", "insist"):
            cancelled: list[Any] = []
            answer = Deferred[bool](cancelled.append)
            link, wire = self.admit_by(answer)
            if end == "lose":
                wire.lose()
            elif end == "deadline":
                self.clock.advance(7)
            elif end == "close":
                link.close("rotation")
            else:
                wire.say(frame(b"r"))
            with self.subTest(end=end):
                self.assertEqual(cancelled, [answer])
                self.assertIs(link.state, LinkState.CLOSED)
                self.assertEqual(self.kv.ups(), [])
                self.assert_no_timers()

    def test_answer_in_spite_of_the_cancel(self) -> None:
        """An admission that answers yes when it is cancelled lets nobody in."""
        answer = Deferred[bool](lambda waiting: waiting.callback(True))
        link, wire = self.admit_by(answer)
        link.close("rotation")
        self.assertEqual(wire.read(), b"")
        self.assertIs(link.state, LinkState.CLOSED)


class TickTests(LinkCase):
    """Ticks: we are here; are you?"""

    settings = {"ticktime": 60.0}

    def up(self) -> tuple[Any, Wire]:
        """Return an accepted link that is up and has said nothing more."""
        pair = self.pair()
        pair.far_wire.read()
        pair.far_wire.other = None
        return pair.far, pair.far_wire

    def test_we_tick(self) -> None:
        """A quarter of the ticktime without a word of ours is followed by a tick."""
        _, wire = self.up()
        # The first period has the handshake in it.
        self.clock.advance(15)
        self.assertEqual(wire.read(), b"")
        self.clock.advance(15)
        self.assertEqual(wire.read(), TICK)

    def test_no_tick_while_we_talk(self) -> None:
        """Who has said something need not tick."""
        _, wire = self.up()
        self.clock.advance(15)
        self.kv.node.send("erl@host", "x", 1)
        wire.read()
        self.clock.advance(15)
        self.assertEqual(wire.read(), b"")

    def test_answer(self) -> None:
        """A tick is answered, unless we wrote within the last half second."""
        _, wire = self.up()
        self.clock.advance(0.4)
        wire.say(TICK)
        self.assertEqual(wire.read(), b"")
        self.clock.advance(0.1)
        wire.say(TICK)
        self.assertEqual(wire.read(), TICK)
        self.clock.advance(0.4)
        wire.say(TICK)
        self.assertEqual(wire.read(), b"")

    def test_no_ping_pong(self) -> None:
        """Two nodes of ours do not answer each other for ever: one answer, and peace."""
        pair = self.pair()
        self.clock.advance(1)
        before = pair.near.status()["bytes_in"], pair.far.status()["bytes_in"]
        pair.near_wire.write(TICK)
        # Without the pause this would not end.
        pair.flush()
        after = pair.near.status()["bytes_in"], pair.far.status()["bytes_in"]
        # The tick was not the near link's own: it answers the answer, once.
        self.assertEqual((after[0] - before[0], after[1] - before[1]), (4, 8))

    def test_silent_peer(self) -> None:
        """Four periods without a byte end the link."""
        link, wire = self.up()
        # The first period has the peer's handshake in it.
        self.clock.pump([15] * 4)
        self.assertFalse(wire.aborted)
        self.clock.advance(15)
        self.assertTrue(wire.aborted)
        self.assertEqual(link.reason, "net_tick_timeout")
        self.assertEqual(self.kv.ups(), [("erl@host", True), ("erl@host", False)])

    def test_any_byte_counts(self) -> None:
        """A large message that is still coming in is a sign of life."""
        _, wire = self.up()
        wire.say(b"\x00\x01\x00\x00")
        for _ in range(20):
            self.clock.advance(15)
            wire.say(b"x")
        self.assertFalse(wire.aborted)

    def test_two_nodes_stay_linked(self) -> None:
        """An idle link between two of ours lasts."""
        pair = self.pair()
        for _ in range(100):
            self.clock.advance(15)
            pair.flush()
        self.assertEqual((pair.near.state, pair.far.state), (LinkState.UP, LinkState.UP))


class EndTests(LinkCase):
    """How a link ends."""

    def test_close(self) -> None:
        """A close says goodbye; nodedown is told once, at once."""
        pair = self.pair()
        self.assertTrue(verifyObject(IDrainable, pair.far))
        drained = pair.far.drain()
        self.assertEqual(self.kv.ups(), [("erl@host", True), ("erl@host", False)])
        self.assertNoResult(drained)
        pair.flush()
        self.assertIsNone(self.successResultOf(drained))
        self.assertIsNone(self.successResultOf(pair.far.drain()))
        self.assertEqual(self.erl.ups(), [("kv@host", True), ("kv@host", False)])
        self.assertEqual(self.kv.ups(), [("erl@host", True), ("erl@host", False)])
        self.assert_no_timers()

    def test_frozen_peer(self) -> None:
        """A peer that does not answer the goodbye is cut after a second."""
        pair = self.pair()
        pair.near_wire.deaf = True
        drained = pair.far.drain()
        pair.flush()
        self.clock.advance(0.9)
        self.assertNoResult(drained)
        self.clock.advance(0.1)
        self.assertTrue(pair.far_wire.aborted)
        self.successResultOf(drained)
        pair.near_wire.lose()
        self.assert_no_timers()

    def test_data_after_close(self) -> None:
        """What the transport still delivers after a close is not looked at."""
        pair = self.pair()
        pair.far.close("rotation")
        pair.far_wire.say(b"garbage")
        self.assertFalse(pair.far_wire.aborted)
        pair.flush()

    def test_bad_message(self) -> None:
        """A message that is none ends the link, with the reason for the listener."""
        for data in (frame(b"x"), frame(b"p" + encode((99,))), b"\xff\xff\xff\xff"):
            pair = self.pair()
            pair.far_wire.say(data)
            self.assertTrue(pair.far_wire.aborted)
            self.assertEqual(len(pair.connection.errors), 1)
            pair.flush()
        self.assert_no_timers()

    def test_lost(self) -> None:
        """A lost connection is one nodedown; hearing it twice changes nothing."""
        pair = self.pair()
        pair.far_wire.lose()
        pair.far.connectionLost()
        self.assertEqual(self.kv.ups(), [("erl@host", True), ("erl@host", False)])
        self.assertIn("connection lost", self.kv.events[-1].reason)
        pair.flush()
        self.assert_no_timers()

    def test_call_in_flight(self) -> None:
        """A call in flight fails on the peer's side, and leaves no timer on ours."""
        self.kv.node.register("kvtls", BuiltinProcess(self.clock))
        pair = self.pair()
        answer = self.erl.node.call("kv@host", "kvtls", (Atom("sleep"), 60_000), None)
        pair.flush()
        pair.far.close("rotation")
        pair.flush()
        self.failureResultOf(answer)
        self.assert_no_timers()


class SlowReaderTests(LinkCase):
    """A peer that does not read."""

    settings = {"max_unsent": 1_000_000, "ticktime": 60.0}

    def setUp(self) -> None:
        super().setUp()
        self.link_pair = self.pair()
        self.wire = self.link_pair.far_wire
        self.wire.other = None
        self.node = self.kv.node

    def write(self, size: int) -> None:
        self.node.send("erl@host", "x", bytes(size))

    def test_looks_now_and_then(self) -> None:
        """The transport is watched only for a moment, so that a listener's close is not held up."""
        self.write(1000)
        self.assertIsNone(self.wire.producer)
        self.write(WATCH_FROM)
        self.assertIsNotNone(self.wire.producer)
        self.clock.advance(0)
        self.assertIsNone(self.wire.producer)

    def test_full_and_drained(self) -> None:
        """A full transport is watched until it has room."""
        self.write(WATCH_FROM)
        self.wire.producer.pauseProducing()
        self.clock.advance(0)
        self.assertIsNotNone(self.wire.producer)
        self.write(500_000)
        self.wire.producer.resumeProducing()
        self.assertIsNone(self.wire.producer)
        self.write(600_000)
        self.assertFalse(self.wire.aborted)

    def test_resumed_within_the_moment(self) -> None:
        """Full and drained within one turn ends the watch at the end of the turn."""
        self.write(WATCH_FROM)
        self.wire.producer.pauseProducing()
        self.wire.producer.resumeProducing()
        self.assertIsNotNone(self.wire.producer)
        self.clock.advance(0)
        self.assertIsNone(self.wire.producer)

    def test_too_much(self) -> None:
        """More than the limit ends the link."""
        self.write(WATCH_FROM)
        self.wire.producer.pauseProducing()
        self.write(900_000)
        self.assertTrue(self.wire.aborted)
        self.assertIn("does not read", self.kv.events[-1].reason)
        self.link_pair.near_wire.lose()
        self.assert_no_timers()

    def test_too_long(self) -> None:
        """A transport that stays full for a ticktime ends the link, ticks or not."""
        self.write(WATCH_FROM)
        self.wire.producer.pauseProducing()
        for _ in range(5):
            self.wire.say(TICK)
            self.clock.advance(15)
        self.assertTrue(self.wire.aborted)
        self.assertEqual(self.kv.events[-1].reason, "peer does not read")

    def test_transport_gone(self) -> None:
        """A transport that is gone when we look at it changes nothing."""
        self.write(WATCH_FROM)
        self.wire.producer.stopProducing()
        self.assertIsNone(self.wire.producer)
        self.link_pair.near_wire.lose()
        self.wire.lose()
        self.assert_no_timers()


class ControllerTests(LinkCase):
    """What the listener sees."""

    def test_claim(self) -> None:
        """A connection is claimed at once, by a link of this node."""
        controller = NodeController(self.kv.node)
        self.assertTrue(verifyObject(IController, controller))
        connection = Connection(generation=4)
        link = controller.claim(connection)
        wire = Wire()
        wire.connect(link)
        wire.say(frame(name_message()))
        self.assertEqual(frames_in(wire.read())[0], b"sok")
        self.assertEqual(self.kv.node.status()["links"][0]["generation"], 4)
        controller.too_late(connection)

    def test_refuse(self) -> None:
        """Where there is no room the peer hears it in its own protocol."""
        wire = Wire()
        wire.connect(NodeController(self.kv.node).refuse(Connection(), "too many"))
        self.assertEqual(frames_in(wire.read()), [b"snot_allowed"])
        self.assertTrue(wire.disconnecting)
        self.assert_no_timers()


class UnusedTests(LinkCase):
    """Writes after the end."""

    def test_nothing_is_written(self) -> None:
        """A session that still holds the link writes into the void."""
        pair = self.pair()
        session = pair.far.session
        assert session is not None
        pair.far.close("rotation")
        pair.far_wire.read()
        session.send("x", 1)
        self.assertEqual(pair.far_wire.read(), b"")
        pair.flush()
