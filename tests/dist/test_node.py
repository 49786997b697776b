"""Names, calls across two nodes, and who replaces whom."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.dist import (
    Atom,
    BuiltinProcess,
    GenServer,
    IGenServer,
    LinkState,
    NodeDownError,
    NodeEvent,
    ProcessDownError,
    RemoteCallError,
    wait_for_nodes,
)
from kvproto.dist.framing import frame
from kvproto.dist.handshake import Status
from kvproto.errors import LocalProtocolError
from tests.dist.pairs import Pair, frames_in, make_node
from tests.dist.test_handshake import name_message


class Rex(GenServer):
    """Answers rpc as Erlang's does."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.heard: list[Any] = []

    def handle_call(self, request: Any, caller: Any) -> Any:
        self.heard.append(request)
        return self.answer

    def handle_cast(self, message: Any) -> Any:
        self.heard.append(message)


class Attempt:
    """An attempt that remembers that it was superseded."""

    def __init__(self) -> None:
        self.given_up = 0

    def superseded(self) -> None:
        self.given_up += 1


class NodeCase(SynchronousTestCase):
    """Two nodes that can be linked."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.kv = make_node(self.clock)
        self.erl = make_node(self.clock, "erl@host")

    def link(self) -> Pair:
        """Link erl with kv."""
        pair = Pair(self.erl, self.kv)
        pair.flush()
        return pair


class CallTests(NodeCase):
    """What programs do with linked nodes."""

    def test_ping_both_ways(self) -> None:
        """Each answers the other's net_adm:ping."""
        pair = self.link()
        for one, other in ((self.kv, "erl@host"), (self.erl, "kv@host")):
            answer = one.node.ping(other)
            pair.flush()
            self.assertIs(self.successResultOf(answer), True)

    def test_ping_of_nobody(self) -> None:
        """A node that is not linked does not answer."""
        self.assertIs(self.successResultOf(self.kv.node.ping("x@host")), False)

    def test_net_kernel_knows_no_more(self) -> None:
        """Other requests to net_kernel are not supported."""
        pair = self.link()
        answer = self.erl.node.call("kv@host", "net_kernel", (Atom("spawn"), 1))
        pair.flush()
        error = self.failureResultOf(answer, ProcessDownError).value
        self.assertEqual(error.reason, Atom("notsup"))

    def test_rpc(self) -> None:
        """Rpc goes through the peer's rex; badrpc is an error."""
        rex = Rex()
        self.assertTrue(verifyObject(IGenServer, rex))
        self.erl.node.register("rex", rex)
        pair = self.link()
        for answer in (5, (Atom("badrpc"), Atom("nodedown"))):
            rex.answer = answer
            result = self.kv.node.rpc("erl@host", "erlang", "node", [1])
            pair.flush()
            if answer == 5:
                self.assertEqual(self.successResultOf(result), 5)
            else:
                error = self.failureResultOf(result, RemoteCallError).value
                self.assertEqual(error.reason, Atom("nodedown"))
                self.assertIn("nodedown", str(error))
        request = (Atom("call"), Atom("erlang"), Atom("node"), [1], Atom("user"))
        self.assertEqual(rex.heard, [request, request])

    def test_without_a_link(self) -> None:
        """Nothing waits for a node that is not linked."""
        node = self.kv.node
        self.failureResultOf(node.call("x@host", "p", 1), NodeDownError)
        self.failureResultOf(node.rpc("x@host", "m", "f", []), NodeDownError)
        self.failureResultOf(node.monitor("x@host", "p"), NodeDownError)
        self.assertRaises(NodeDownError, node.cast, "x@host", "p", 1)
        self.assertRaises(NodeDownError, node.send, "x@host", "p", 1)

    def test_cast_and_monitor(self) -> None:
        """A cast arrives; the end of a process is told across."""
        rex = Rex()
        self.erl.node.register("rex", rex)
        pair = self.link()
        self.kv.node.cast("erl@host", "rex", b"hello")
        end = self.kv.node.monitor("erl@host", "rex")
        pair.flush()
        self.assertEqual(rex.heard, [b"hello"])
        self.erl.node.unregister("rex", Atom("gone"))
        pair.flush()
        self.assertEqual(self.successResultOf(end), Atom("gone"))

    def test_answer_by_a_third_node(self) -> None:
        """A caller on another linked node is answered over that node's link."""
        other = make_node(self.clock, "third@host")
        second = Pair(other, self.kv)
        second.flush()
        first = self.link()
        rex = Rex()
        rex.answer = b"reply"
        self.kv.node.register("rex", rex)
        caller = Rex()
        process = other.node.register("caller", caller)
        other_reference = other.node.new_reference()
        message = (Atom("$gen_call"), (process.pid, other_reference), 1)
        self.erl.node.send("kv@host", "rex", message)
        first.flush()
        received = frames_in(b"".join(second.far_wire.unsent))
        self.assertEqual(len(received), 1)
        self.assertIn(b"reply", received[0])

    def test_registering(self) -> None:
        """A name is given once, and can be taken back once."""
        node = self.kv.node
        node.register("x", GenServer())
        self.assertRaises(LocalProtocolError, node.register, "x", GenServer())
        self.assertRaises(LocalProtocolError, node.register, "", GenServer())
        self.assertRaises(LocalProtocolError, node.register, "x" * 256, GenServer())
        node.unregister("x")
        self.assertRaises(LocalProtocolError, node.unregister, "x")
        self.assertEqual(node.processes.names(), ["net_kernel"])

    def test_references_and_pids_are_unique(self) -> None:
        """None is given twice, and none is wider than every peer can take."""
        node = self.kv.node
        references = {node.new_reference() for _ in range(1000)}
        self.assertEqual(len(references), 1000)
        node._last_reference = (1 << 50) - 1
        node._last_pid = (1 << 15) - 1
        self.assertEqual(node.new_reference().words, (0, 0, 0))
        self.assertEqual(node.new_reference().words, (1, 0, 0))
        pid = node.register("y", GenServer()).pid
        self.assertEqual((pid.id, pid.serial), (0, 1))

    def test_incarnations_differ(self) -> None:
        """Each start of a node is another incarnation."""
        creations = {make_node(self.clock).node.pid.creation for _ in range(4)}
        self.assertGreater(len(creations), 1)
        self.assertTrue(all(3 < creation < 2**32 for creation in creations))


class BuiltinTests(NodeCase):
    """The process that every node has."""

    def setUp(self) -> None:
        super().setUp()
        self.commands: list[str] = []
        self.verdict: Any = {"ok": True, "why": None, "nodes": ["a", 1]}
        self.kv.node.register("kvtls", BuiltinProcess(self.clock, self.control))
        self.pair = self.link()

    def control(self, command: str) -> Any:
        self.commands.append(command)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def ask(self, request: Any) -> Deferred[Any]:
        answer = self.erl.node.call("kv@host", "kvtls", request, None)
        self.pair.flush()
        return answer

    def test_small_talk(self) -> None:
        """ping, echo, and what it does not know."""
        unknown = (Atom("error"), Atom("unknown_request"))
        for request, expected in (
            (Atom("ping"), Atom("pong")),
            ((Atom("echo"), {b"x": [1]}), {b"x": [1]}),
            (b"ping", unknown),
            (Atom("stop"), unknown),
            ((Atom("sleep"), -1), unknown),
            ((Atom("sleep"), 1.5), unknown),
            ((Atom("sleep"), 2**32), unknown),
            ((), unknown),
        ):
            self.assertEqual(self.successResultOf(self.ask(request)), expected)

    def test_sleep(self) -> None:
        """A sleep is answered when it is over, and nobody waits for it."""
        slow, fast = self.ask((Atom("sleep"), 50)), self.ask(Atom("ping"))
        self.assertEqual(self.successResultOf(fast), Atom("pong"))
        self.assertNoResult(slow)
        self.clock.advance(0.05)
        self.pair.flush()
        self.assertEqual(self.successResultOf(slow), Atom("ok"))

    def test_commands(self) -> None:
        """The control vocabulary reaches the service; its plain values come back as terms."""
        for command in ("status", "reload", "restart_tls"):
            answer = self.successResultOf(self.ask(Atom(command)))
            self.assertEqual(
                answer, {b"ok": Atom("true"), b"why": Atom("undefined"), b"nodes": [b"a", 1]}
            )
        self.assertEqual(self.commands, ["status", "reload", "restart_tls"])

    def test_casts(self) -> None:
        """Commands work by cast, too; asking does not."""
        for message in (Atom("reload"), Atom("status"), b"reload", Atom("restart_tls")):
            self.erl.node.cast("kv@host", "kvtls", message)
        self.pair.flush()
        self.assertEqual(self.commands, ["reload", "restart_tls"])

    def test_failing_command(self) -> None:
        """A command that fails is not silence."""
        self.verdict = ZeroDivisionError()
        self.failureResultOf(self.ask(Atom("reload")), ProcessDownError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_reload_survives_its_caller(self) -> None:
        """A reload that drops the caller's own link goes on."""
        cancelled: list[Any] = []
        self.verdict = Deferred(cancelled.append)
        answer = self.ask(Atom("reload"))
        self.pair.far.close("rotation")
        self.pair.flush()
        self.failureResultOf(answer, NodeDownError)
        self.assertEqual(cancelled, [])
        self.verdict.callback(1)

    def test_without_a_service(self) -> None:
        """A node that steers nothing says so."""
        self.kv.node.unregister("kvtls")
        self.kv.node.register("kvtls", BuiltinProcess(self.clock))
        answer = self.successResultOf(self.ask(Atom("status")))
        self.assertEqual(answer, (Atom("error"), Atom("not_available")))


class NameRulesTests(NodeCase):
    """One link per name."""

    def test_every_answer(self) -> None:
        """Each situation of a name has its status, by Erlang's rules."""
        self.assertEqual(self.kv.node.decide("erl@host")[0], Status.OK)
        self.assertEqual(self.kv.node.decide("kv@host")[0], Status.NOT_ALLOWED)
        self.link()
        self.assertEqual(self.kv.node.decide("erl@host")[0], Status.ALIVE)
        self.assertEqual(self.kv.node.decide("other@host")[0], Status.OK)

    def test_both_call_at_once(self) -> None:
        """The greater name's attempt counts; the other one is given up."""
        ours = Attempt()
        self.assertTrue(self.kv.node.begin_dialling("erl@host", ours))
        self.assertFalse(self.kv.node.begin_dialling("erl@host", Attempt()))
        self.assertEqual(self.kv.node.decide("erl@host")[0], Status.NOK)
        self.assertEqual(ours.given_up, 0)
        theirs = Attempt()
        self.assertTrue(self.erl.node.begin_dialling("kv@host", theirs))
        self.assertEqual(self.erl.node.decide("kv@host")[0], Status.OK_SIMULTANEOUS)
        self.assertEqual(theirs.given_up, 1)
        self.kv.node.end_dialling("erl@host", Attempt())
        self.assertEqual(self.kv.node.decide("erl@host")[0], Status.NOK)
        self.kv.node.end_dialling("erl@host", ours)
        self.assertEqual(self.kv.node.decide("erl@host")[0], Status.OK)

    def test_alive(self) -> None:
        """A peer that insists replaces its old link: nodedown first, then nodeup."""
        first = self.link()
        second = Pair(make_node(self.clock, "erl@host"), self.kv)
        second.flush()
        self.assertEqual(
            self.kv.ups(), [("erl@host", True), ("erl@host", False), ("erl@host", True)]
        )
        self.assertIs(first.far.state, LinkState.CLOSING)
        self.assertIs(second.far.state, LinkState.UP)
        first.flush()
        self.assertEqual(len(self.kv.events), 3)

    def test_no_call_to_a_linked_node(self) -> None:
        """A node that is linked is not called."""
        self.link()
        self.assertFalse(self.kv.node.begin_dialling("erl@host", Attempt()))

    def test_alive_answered_by_us(self) -> None:
        """When the peer says that we are linked, we insist only if we are not."""
        for linked, answer in ((False, b"strue"), (True, b"sfalse")):
            _, wire = self.kv.dial("erl@host")
            wire.read()
            if linked:
                self.link()
            wire.say(frame(b"salive"))
            self.assertEqual(frames_in(wire.read()), [answer])

    def test_inbound_link_ends_our_attempt(self) -> None:
        """A peer that came in while we were calling it makes the call superfluous."""
        pair = Pair(self.erl, self.kv)
        pair.near_wire.deliver()
        ours = Attempt()
        self.kv.node.begin_dialling("erl@host", ours)
        pair.flush()
        self.assertEqual(ours.given_up, 1)
        self.assertEqual(self.kv.node.nodes(), ["erl@host"])

    def test_two_unproven_claims(self) -> None:
        """Somebody who only says a name cannot keep its owner out."""
        _, squatter = self.kv.accept()
        squatter.say(frame(name_message()))
        self.link()
        self.assertEqual(self.kv.node.nodes(), ["erl@host"])


class WatchTests(NodeCase):
    """Who hears of nodes."""

    def test_watchers(self) -> None:
        """Each watcher hears each event once, a failing one disturbs nobody."""
        heard: list[NodeEvent] = []

        def broken(_event: NodeEvent) -> None:
            raise ZeroDivisionError

        self.kv.node.watch(broken)
        unwatch = self.kv.node.watch(heard.append)
        pair = self.link()
        unwatch()
        unwatch()
        pair.far.close("rotation")
        pair.flush()
        self.assertEqual(heard, [NodeEvent("erl@host", True)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_call_from_a_watcher(self) -> None:
        """A watcher may call the node that just came up."""
        answers: list[Deferred[bool]] = []
        self.kv.node.watch(lambda event: answers.append(self.kv.node.ping(event.name)))
        pair = self.link()
        pair.flush()
        self.assertIs(self.successResultOf(answers[0]), True)
        pair.far.close("rotation")
        self.assertIs(self.successResultOf(answers[1]), False)
        pair.flush()

    def test_wait_for_nodes(self) -> None:
        """Waiting ends when all are there, or with the names of those that are not."""
        waiting = wait_for_nodes(self.kv.node, ["erl@host", "x@host"], 30)
        self.link()
        self.assertNoResult(waiting)
        self.clock.advance(30)
        self.assertEqual(self.successResultOf(waiting), ["x@host"])
        self.assertEqual(self.successResultOf(wait_for_nodes(self.kv.node, ["erl@host"], 30)), [])

    def test_wait_for_nodes_ends_early(self) -> None:
        """The last one that comes ends the wait, and its timer."""
        before = len(self.clock.getDelayedCalls())
        waiting = wait_for_nodes(self.kv.node, ["erl@host"], 30)
        cancelled = wait_for_nodes(self.kv.node, ["erl@host"], 30)
        cancelled.cancel()
        self.failureResultOf(cancelled)
        pair = self.link()
        self.assertEqual(self.successResultOf(waiting), [])
        pair.far.close("x")
        pair.flush()
        self.assertEqual(len(self.clock.getDelayedCalls()), before)


class StopTests(NodeCase):
    """The end of a node."""

    def test_stop(self) -> None:
        """All links are closed, calls are given up, nobody comes in again."""
        pair = self.link()
        ours = Attempt()
        self.kv.node.begin_dialling("x@host", ours)
        _, silent = self.kv.accept()
        stopped = self.kv.node.stop()
        self.assertTrue(silent.aborted)
        self.assertEqual(ours.given_up, 1)
        self.assertNoResult(stopped)
        pair.flush()
        self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual(self.kv.node.decide("y@host")[0], Status.NOT_ALLOWED)
        self.assertFalse(self.kv.node.begin_dialling("y@host", Attempt()))
        _, late = self.kv.accept()
        self.assertTrue(late.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_disconnect(self) -> None:
        """One node is let go; letting go of nobody is no error."""
        pair = self.link()
        gone = self.kv.node.disconnect("erl@host")
        pair.flush()
        self.successResultOf(gone)
        self.successResultOf(self.kv.node.disconnect("erl@host"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_status_has_no_secrets(self) -> None:
        """The status shows who is linked, and never the cookie."""
        self.link()
        status = self.kv.node.status()
        self.assertEqual(status["name"], "kv@host")
        (link,) = status["links"]
        self.assertEqual((link["node"], link["direction"], link["state"]), ("erl@host", "in", "up"))
        self.assertNotIn("secret", repr(status) + repr(self.kv.node.settings))
