"""The conversation on a link, seen from a peer that speaks in control messages."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.limited_log import LimitedLog
from kvproto.dist import (
    Atom,
    Caller,
    CallRefused,
    CallTimeoutError,
    Export,
    Fun,
    GenServer,
    ImproperList,
    NodeDownError,
    OversizedAnswerError,
    Pid,
    ProcessDownError,
    Reference,
    SessionLimits,
    control,
    encode,
    session,
)
from kvproto.dist.control import Control, Op, decode_control
from kvproto.dist.etf import MAX_DEPTH
from kvproto.dist.flags import MANDATORY, OURS
from kvproto.dist.handshake import Peer
from kvproto.dist.session import Session
from kvproto.errors import LocalProtocolError, RemoteProtocolError
from tests.dist.pairs import make_node

ERL = Atom("erl@host")
CALLER = Pid(ERL, 40, 0, 7)
REF = Reference(ERL, 7, (1, 2, 3))
ALIAS_TAG = ImproperList((Atom("alias"),), REF)
DEEP = b"\x68\x01" * 300 + b"j"
"""An element that is nested deeper than we read, without its version byte."""


class Recorder(GenServer):
    """A process that answers what the test tells it to, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.callers: list[Caller] = []
        self.answer: Any = None

    def handle_call(self, request: Any, caller: Caller) -> Any:
        self.callers.append(caller)
        self.heard.append(("call", request))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def handle_cast(self, message: Any) -> Any:
        self.heard.append(("cast", message))
        return self._maybe_fail()

    def handle_info(self, message: Any) -> Any:
        self.heard.append(("info", message))
        return self._maybe_fail()

    def _maybe_fail(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class SessionCase(SynchronousTestCase):
    """A session whose frames the test reads and writes."""

    flags = int(OURS)

    def setUp(self) -> None:
        self.clock = Clock()
        self.under_test = make_node(self.clock)
        self.node = self.under_test.node
        self.server = Recorder()
        self.process = self.node.register("kvtls", self.server)
        self.written: list[bytes] = []
        self.session = Session(
            self.node,
            Peer("erl@host", 7, self.flags),
            self.written.append,
            SessionLimits(calls=3, watches=4),
        )
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def say(self, *elements: Any, message: Any = None) -> None:
        """Let the peer say a control tuple, with a message where it has one."""
        tail = encode(message) if elements[0] in {2, 6, 22, 33} else b""
        self.session.receive(b"p" + encode(elements) + tail)

    def said(self) -> list[Control]:
        """Return what we said since the last time."""
        found = [decode_control(frame) for frame in self.written]
        self.written.clear()
        return found

    def gen_call(self, request: Any, tag: Any = ALIAS_TAG, *, monitor: bool = True) -> None:
        """Call as gen_server does."""
        if monitor:
            self.say(19, CALLER, Atom("kvtls"), REF)
        self.say(
            6, CALLER, Atom(""), Atom("kvtls"), message=(Atom("$gen_call"), (CALLER, tag), request)
        )


class CallsOfPeersTests(SessionCase):
    """gen_server calls that reach us."""

    def test_answer(self) -> None:
        """The answer goes to the alias, from the process that was called."""
        self.server.answer = b"reply"
        self.gen_call(b"request")
        self.assertEqual(self.server.heard, [("call", b"request")])
        self.assertEqual(self.server.callers, [Caller("erl@host", CALLER)])
        self.assertEqual(
            self.said(),
            [Control(Op.ALIAS_SEND, self.process.pid, REF, message=(ALIAS_TAG, b"reply"))],
        )

    def test_plain_tag(self) -> None:
        """A caller without an alias is answered by pid."""
        self.server.answer = 1
        self.gen_call(0, tag=REF)
        self.assertEqual(self.said(), [Control(Op.SEND, to=CALLER, message=(REF, 1))])

    def test_later(self) -> None:
        """A Deferred's result is the answer, whenever it comes."""
        self.server.answer = answer = Deferred[int]()
        self.gen_call(0)
        self.assertEqual(self.said(), [])
        answer.callback(5)
        self.assertEqual(self.said()[0].message, (ALIAS_TAG, 5))

    def test_process_to_a_pid(self) -> None:
        """A process is reached by its pid, too."""
        self.server.answer = 1
        self.say(2, Atom(""), self.process.pid, message=(Atom("$gen_call"), (CALLER, REF), 0))
        self.assertEqual(self.said()[0].message, (REF, 1))

    def test_refused(self) -> None:
        """A process that refuses a call lets the caller exit with its reason."""
        self.server.answer = CallRefused((Atom("no"), 1))
        self.gen_call(0)
        self.assertEqual(
            self.said(),
            [Control(Op.MONITOR_EXIT, Atom("kvtls"), CALLER, REF, (Atom("no"), 1))],
        )

    def test_failed(self) -> None:
        """A failure of ours is logged, and the caller hears at once that there is no answer."""
        self.server.answer = ZeroDivisionError()
        self.gen_call(0)
        self.assertEqual(self.said()[0].reason, (Atom("failed"), b"ZeroDivisionError"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_failed_later(self) -> None:
        """So it is when the failure comes by Deferred."""
        self.server.answer = answer = Deferred[int]()
        self.gen_call(0, tag=REF)
        answer.errback(ZeroDivisionError())
        self.assertEqual(self.said()[0].reason, (Atom("failed"), b"ZeroDivisionError"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_answer_that_is_no_term(self) -> None:
        """An answer that cannot be sent is a failure, not silence."""
        self.server.answer = object()
        self.gen_call(0)
        self.assertEqual(self.said()[0].reason, (Atom("failed"), b"LocalProtocolError"))
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_unmonitored_failure(self) -> None:
        """A caller that does not watch us cannot be told; nothing breaks."""
        self.server.answer = CallRefused(1)
        self.gen_call(0, monitor=False)
        self.gen_call(0, tag=b"odd", monitor=False)
        self.assertEqual(self.said(), [])

    def test_too_many(self) -> None:
        """Calls beyond the limit are refused at once."""
        waiting: list[Deferred[Any]] = []
        for _ in range(3):
            self.server.answer = Deferred()
            waiting.append(self.server.answer)
            self.gen_call(0)
        self.gen_call(0)
        self.assertEqual([message.reason for message in self.said()], [Atom("system_limit")])
        waiting[0].callback(1)
        self.gen_call(0)
        self.assertEqual(len(self.server.heard), 4)

    def test_caller_gone(self) -> None:
        """When the link is lost, the work is cancelled, and no answer is written."""
        cancelled: list[Any] = []
        self.server.answer = Deferred(cancelled.append)
        self.gen_call(0)
        self.session.closed()
        self.assertEqual(cancelled, [self.server.answer])
        self.assertEqual(self.said(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_late_answer(self) -> None:
        """An answer that comes after the end has no effect."""
        self.server.answer = answer = Deferred[int](lambda waiting: waiting.callback(1))
        self.gen_call(0)
        self.session.closed()
        self.assertEqual(self.said(), [])
        self.assertTrue(answer.called)

    def test_default_process_supports_nothing(self) -> None:
        """The base class refuses calls and ignores the rest."""
        self.node.register("empty", GenServer())
        self.say(19, CALLER, Atom("empty"), REF)
        self.say(6, CALLER, Atom(""), Atom("empty"), message=(Atom("$gen_call"), (CALLER, REF), 0))
        self.say(6, CALLER, Atom(""), Atom("empty"), message=(Atom("$gen_cast"), 0))
        self.say(6, CALLER, Atom(""), Atom("empty"), message=0)
        self.assertEqual([message.reason for message in self.said()], [Atom("notsup")])

    def test_call_without_an_address(self) -> None:
        """A call that says not whom to answer is any message, to one process."""
        for sender in (Atom("foo"), CALLER, (CALLER,), (1, 2), ()):
            message = (Atom("$gen_call"), sender, Atom("bar"))
            self.say(6, CALLER, Atom(""), Atom("kvtls"), message=message)
            self.assertEqual(self.server.heard.pop(), ("info", message))
        self.assertEqual(self.said(), [])

    def test_reasons_that_cannot_be_sent(self) -> None:
        """A call ends with its own DOWN, whatever the refusal holds, now or later."""
        deep: Any = 1
        for _ in range(300):
            deep = [deep]
        for reason in (object(), deep, Export(Atom("m"), Atom("f"), "x"), {"a": 1, b"a": 2}):  # type: ignore[arg-type]
            for later in (False, True):
                self.server.answer = refusal = CallRefused(reason)
                if later:
                    self.server.answer = Deferred()
                self.gen_call(0)
                if later:
                    self.server.answer.errback(refusal)
                (down,) = self.said()
                self.assertEqual((down.op, down.reference), (Op.MONITOR_EXIT, REF))
                self.assertEqual(down.reason, (Atom("failed"), b"LocalProtocolError"))
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 8)

    def test_answers_that_cannot_be_sent(self) -> None:
        """So it is with an answer, now or later."""
        for answer in (Export(Atom("m"), Atom("f"), "x"), [{1: object()}], Fun(b"noise")):  # type: ignore[arg-type]
            for value in (answer, succeed(answer)):
                self.server.answer = value
                self.gen_call(0)
                self.assertEqual(self.said()[0].reason, (Atom("failed"), b"LocalProtocolError"))
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 6)

    def test_deepest_reason(self) -> None:
        """A reason that fits alone, but not inside the message about it, is told as any other."""
        reason: Any = 1
        for _ in range(MAX_DEPTH):
            reason = (reason,)
        encode(reason)
        self.server.answer = CallRefused(reason)
        self.gen_call(0)
        self.assertEqual(self.said()[0].reason, (Atom("failed"), b"LocalProtocolError"))
        self.flushLoggedErrors(LocalProtocolError)
        self.assertRaises(LocalProtocolError, self.node.unregister, "kvtls", reason)
        self.assertIsNotNone(self.node.processes.find("kvtls"))

    def test_question_that_is_too_large(self) -> None:
        """A call that holds more than we read ends with a DOWN of its own."""
        self.say_raw(DEEP, head=(Atom("$gen_call"), (CALLER, ALIAS_TAG)), monitor=True)
        self.assertEqual(
            self.said(),
            [Control(Op.MONITOR_EXIT, Atom("kvtls"), CALLER, REF, Atom("system_limit"))],
        )
        self.assertEqual(self.server.heard, [])

    def say_raw(self, last: bytes, head: tuple[Any, ...], *, monitor: bool = False) -> None:
        """Send a tuple whose last element is given as bytes, to the process ``kvtls``."""
        if monitor:
            self.say(19, CALLER, Atom("kvtls"), REF)
        message = b"\x83" + bytes((104, len(head) + 1)) + b"".join(encode(t)[1:] for t in head)
        to = encode((6, CALLER, Atom(""), Atom("kvtls")))
        self.session.receive(b"p" + to + message + last)

    def test_messages_that_are_too_large(self) -> None:
        """Other messages that hold more than we read are dropped, and nothing else is."""
        self.say_raw(DEEP, head=())
        self.say_raw(DEEP, head=(Atom("$gen_cast"),))
        self.say_raw(DEEP, head=(Atom("$gen_call"), (CALLER, REF)))
        to = encode((6, CALLER, Atom(""), Atom("kvtls")))
        self.session.receive(b"p" + to + b"\x83" + DEEP)
        self.assertEqual((self.said(), self.server.heard), ([], []))

    def test_caller_on_a_third_node(self) -> None:
        """An answer for a node that is not linked is dropped."""
        self.server.answer = 1
        stranger = Pid(Atom("third@host"), 1, 0, 1)
        message = (Atom("$gen_call"), (stranger, REF), 0)
        self.say(6, CALLER, Atom(""), Atom("kvtls"), message=message)
        self.assertEqual(self.said(), [])


class WithoutAliasTests(SessionCase):
    """A peer without process aliases."""

    flags = int(MANDATORY)

    def test_alias_tag(self) -> None:
        """Even a tag with an alias is answered by pid."""
        self.server.answer = 1
        self.gen_call(0)
        self.assertEqual(self.said(), [Control(Op.SEND, to=CALLER, message=(ALIAS_TAG, 1))])


class MessagesTests(SessionCase):
    """Casts and other messages."""

    def test_cast_and_info(self) -> None:
        """A cast is a cast, everything else is information."""
        for message in (
            (Atom("$gen_cast"), 1),
            b"x",
            (),
            (Atom("$gen_cast"),),
            (Atom("$gen_call"), 1),
        ):
            self.say(6, CALLER, Atom(""), Atom("kvtls"), message=message)
        self.assertEqual(
            self.server.heard,
            [
                ("cast", 1),
                ("info", b"x"),
                ("info", ()),
                ("info", (Atom("$gen_cast"),)),
                ("info", (Atom("$gen_call"), 1)),
            ],
        )

    def test_binary_is_no_atom(self) -> None:
        """A binary that reads like a tag is information."""
        self.say(6, CALLER, Atom(""), Atom("kvtls"), message=(b"$gen_cast", 1))
        self.assertEqual(self.server.heard, [("info", (b"$gen_cast", 1))])

    def test_failure_is_logged(self) -> None:
        """A process that fails on a message is logged, and lives on."""
        # Other tests have provoked such lines as well.
        self.patch(session, "peer_log", LimitedLog(session.log))
        self.server.answer = ZeroDivisionError()
        self.say(6, CALLER, Atom(""), Atom("kvtls"), message=1)
        later = Deferred[None]()
        self.server.answer = later
        self.say(6, CALLER, Atom(""), Atom("kvtls"), message=(Atom("$gen_cast"), 1))
        later.errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_to_nobody(self) -> None:
        """Messages to nobody vanish."""
        self.say(6, CALLER, Atom(""), Atom("nobody"), message=1)
        self.say(2, Atom(""), Pid(Atom("kv@host"), 999, 0, 1), message=1)
        self.say(33, CALLER, REF, message=1)
        self.say(2, Atom(""), self.node.pid, message=(REF, 1))
        self.say(2, Atom(""), self.node.pid, message=1)
        self.assertEqual(self.said(), [])

    def test_send(self) -> None:
        """We send to names and pids."""
        self.session.send("name", 1)
        self.session.send(CALLER, 2)
        self.assertEqual(
            self.said(),
            [
                Control(Op.REG_SEND, self.node.pid, Atom("name"), message=1),
                Control(Op.SEND, to=CALLER, message=2),
            ],
        )


class WatchesOfPeersTests(SessionCase):
    """Monitors and links that peers have on our processes."""

    def test_monitor_nobody(self) -> None:
        """Who monitors nobody hears noproc at once, by name and by pid."""
        pid = Pid(Atom("kv@host"), 999, 0, 1)
        self.say(19, CALLER, Atom("nobody"), REF)
        self.say(19, CALLER, pid, REF)
        self.assertEqual(
            self.said(),
            [
                Control(Op.MONITOR_EXIT, Atom("nobody"), CALLER, REF, Atom("noproc")),
                Control(Op.MONITOR_EXIT, pid, CALLER, REF, Atom("noproc")),
            ],
        )

    def test_end_of_a_process(self) -> None:
        """Who monitors or is linked hears the reason, in the terms of the monitor."""
        other = Reference(ERL, 7, (9,))
        self.node.register("other", GenServer())
        self.say(19, CALLER, Atom("kvtls"), REF)
        self.say(19, CALLER, self.process.pid, other)
        self.say(19, CALLER, Atom("other"), Reference(ERL, 7, (10,)))
        self.say(1, CALLER, self.process.pid)
        self.node.processes.unregister("kvtls", Atom("done"))
        self.session.process_ended(self.process, Atom("done"))
        self.assertEqual(
            self.said(),
            [
                Control(Op.MONITOR_EXIT, Atom("kvtls"), CALLER, REF, Atom("done")),
                Control(Op.MONITOR_EXIT, self.process.pid, CALLER, other, Atom("done")),
                Control(Op.EXIT, self.process.pid, CALLER, reason=Atom("done")),
            ],
        )

    def test_demonitor(self) -> None:
        """Who has taken back a monitor hears nothing."""
        self.say(19, CALLER, Atom("kvtls"), REF)
        self.say(20, CALLER, Atom("kvtls"), REF)
        self.session.process_ended(self.process, Atom("done"))
        self.assertEqual(self.said(), [])

    def test_link_nobody(self) -> None:
        """Who links to nobody gets an exit signal."""
        pid = Pid(Atom("kv@host"), 999, 0, 1)
        self.say(1, CALLER, pid)
        self.assertEqual(self.said(), [Control(Op.EXIT, pid, CALLER, reason=Atom("noproc"))])

    def test_unlink(self) -> None:
        """Each way of ending a link ends it; the one with an id is acknowledged."""
        for ending, answer in (
            ((4, CALLER, self.process.pid), []),
            ((3, CALLER, self.process.pid, Atom("killed")), []),
            ((8, CALLER, self.process.pid, Atom("killed")), []),
            (
                (35, 17, CALLER, self.process.pid),
                [Control(Op.UNLINK_ID_ACK, self.process.pid, CALLER, id=17)],
            ),
        ):
            self.say(1, CALLER, self.process.pid)
            self.say(*ending)
            self.session.process_ended(self.process, Atom("done"))
            self.assertEqual(self.said(), answer)

    def test_the_node_itself_can_be_watched(self) -> None:
        """The pid that our calls come from exists."""
        self.say(1, CALLER, self.node.pid)
        self.say(19, CALLER, self.node.pid, REF)
        self.assertEqual(self.said(), [])

    def test_nothing_to_do(self) -> None:
        """Group leaders and acknowledgements change nothing."""
        self.say(7, CALLER, self.process.pid)
        self.say(36, 1, CALLER, self.process.pid)
        self.assertEqual(self.said(), [])

    def test_too_many(self) -> None:
        """Who watches more than is allowed hears at once that it does not; others go on."""
        for number in range(3):
            self.say(19, CALLER, Atom("kvtls"), Reference(ERL, 7, (number,)))
        self.say(1, CALLER, self.process.pid)
        self.assertEqual(self.said(), [])
        self.say(19, CALLER, Atom("kvtls"), REF)
        self.say(1, CALLER, self.node.pid)
        limit = Atom("system_limit")
        self.assertEqual(
            self.said(),
            [
                Control(Op.MONITOR_EXIT, Atom("kvtls"), CALLER, REF, limit),
                Control(Op.EXIT, self.node.pid, CALLER, reason=limit),
            ],
        )


class OurCallsTests(SessionCase):
    """Calls of ours."""

    def call(self, timeout_s: float | None = 5.0) -> tuple[Deferred[Any], Reference]:
        """Call, and return the answer to come and its reference."""
        answer = self.session.call("server", b"request", timeout_s)
        monitor, request = self.said()
        reference = monitor.reference
        self.assertEqual(monitor, Control(Op.MONITOR, self.node.pid, Atom("server"), reference))
        self.assertEqual(
            request,
            Control(
                Op.REG_SEND,
                self.node.pid,
                Atom("server"),
                message=(Atom("$gen_call"), (self.node.pid, reference), b"request"),
            ),
        )
        return answer, reference

    def assert_demonitored(self, reference: Reference) -> None:
        self.assertEqual(
            self.said(), [Control(Op.DEMONITOR, self.node.pid, Atom("server"), reference)]
        )

    def test_answer(self) -> None:
        """The answer with our reference is the answer; the monitor and the timer end."""
        answer, reference = self.call()
        self.say(2, Atom(""), self.node.pid, message=(reference, b"reply"))
        self.assertEqual(self.successResultOf(answer), b"reply")
        self.assert_demonitored(reference)

    def test_noproc(self) -> None:
        """Nobody there is said at once."""
        answer, reference = self.call()
        self.say(21, Atom("server"), self.node.pid, reference, Atom("noproc"))
        error = self.failureResultOf(answer, ProcessDownError).value
        self.assertEqual(error.reason, Atom("noproc"))
        self.assertIn("server", str(error))

    def test_timeout(self) -> None:
        """A call that is not answered in time fails; the late answer is dropped."""
        answer, reference = self.call(2.0)
        self.clock.advance(1.9)
        self.assertNoResult(answer)
        self.clock.advance(0.1)
        self.assertIn("2 s", str(self.failureResultOf(answer, CallTimeoutError).value))
        self.assert_demonitored(reference)
        self.say(2, Atom(""), self.node.pid, message=(reference, b"late"))

    def test_cancel(self) -> None:
        """A call that is cancelled is forgotten."""
        answer, reference = self.call()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assert_demonitored(reference)

    def test_link_lost(self) -> None:
        """A call in flight fails when the link does."""
        answer, _ = self.call()
        self.session.closed()
        self.assertIn("erl@host", str(self.failureResultOf(answer, NodeDownError).value))

    def test_after_the_end(self) -> None:
        """A call on a lost link fails at once."""
        self.session.closed()
        self.failureResultOf(self.session.call("server", 1, 5.0), NodeDownError)
        self.assertEqual(self.successResultOf(self.session.monitor("x")), Atom("noconnection"))

    def test_answer_that_is_too_large(self) -> None:
        """An answer that holds more than we read fails its call only."""
        answer, reference = self.call()
        head = b"\x83\x68\x02" + encode(reference)[1:]
        self.session.receive(b"p" + encode((2, Atom(""), self.node.pid)) + head + DEEP)
        self.assertIn("server", str(self.failureResultOf(answer, OversizedAnswerError).value))
        self.assert_demonitored(reference)

    def test_reason_that_is_too_large(self) -> None:
        """A process that ends for a reason that holds more than we read has ended."""
        answer, reference = self.call()
        down = encode((21, Atom("server"), self.node.pid, reference))
        self.session.receive(b"p" + down[:2] + b"\x05" + down[3:] + DEEP)
        error = self.failureResultOf(answer, ProcessDownError).value
        self.assertEqual(error.reason, Atom("system_limit"))

    def test_no_process(self) -> None:
        """What is neither a pid nor a name is no process, and nothing is remembered."""
        for to in (1, b"server", None, Atom("x" * 256), Pid(ERL, 2**32, 0, 0)):
            for ask in (
                lambda to: self.session.call(to, 1, 5.0),
                self.session.monitor,
                lambda to: self.session.send(to, 1),
            ):
                self.assertRaises(LocalProtocolError, ask, to)
        self.assertEqual((self.session._calls, self.session._monitors, self.said()), ({}, {}, []))

    def test_no_term(self) -> None:
        """A request that is no term is refused before anything is remembered or sent."""
        self.assertRaises(LocalProtocolError, self.session.call, "server", object(), 5.0)
        self.assertEqual(self.said(), [])

    def test_pid(self) -> None:
        """A pid can be called as well."""
        answer = self.session.call(CALLER, 1, None)
        monitor, request = self.said()
        self.assertEqual((monitor.to, request.op, request.to), (CALLER, Op.SEND, CALLER))
        self.say(21, CALLER, self.node.pid, monitor.reference, Atom("normal"))
        self.assertIn("<40.0>", str(self.failureResultOf(answer, ProcessDownError).value))

    def test_monitor(self) -> None:
        """A monitor fires with the reason, noconnection when the link is lost first."""
        first, second, third = (self.session.monitor("server") for _ in range(3))
        references = [message.reference for message in self.said()]
        self.say(21, Atom("server"), self.node.pid, references[0], Atom("killed"))
        self.assertEqual(self.successResultOf(first), Atom("killed"))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assert_demonitored(references[1])
        self.say(21, Atom("server"), self.node.pid, references[1], Atom("late"))
        self.session.closed()
        self.assertEqual(self.successResultOf(third), Atom("noconnection"))


class UnlikelyTests(SessionCase):
    """Frames that are no control message."""

    def test_refused(self) -> None:
        """They end the link."""
        self.assertRaises(RemoteProtocolError, self.session.receive, b"x")
        self.assertRaises(RemoteProtocolError, self.session.receive, control.PASS_THROUGH)
