"""Whatever happens in whatever order: the invariants of node links.

Two nodes call each other, break, restart and time out as hypothesis pleases.
After each step: a node comes and goes in turns, once each; at the end, with all
connections gone, no timer and no link is left.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import (
    Atom,
    Backoff,
    BuiltinProcess,
    Connector,
    FixedPorts,
    LinkState,
    NodeLink,
    NodeSettings,
)
from tests.dist.endpoints import ManualEndpoint
from tests.dist.pairs import Connection, NodeUnderTest, Wire, make_node
from tests.examples import THOROUGH, examples

NAMES = ("aaa@host", "zzz@host")


class Side:
    """A node that keeps calling the other one."""

    def __init__(self, clock: Clock, name: str, peer: str, generation: Any) -> None:
        self.under_test: NodeUnderTest = make_node(clock, name, admit=self.admit)
        self.node = self.under_test.node
        self.node.register("kvtls", BuiltinProcess(clock))
        self.endpoint = ManualEndpoint()
        self.admissions: list[Deferred[bool]] = []
        self.slow_admission = False
        self.connector = Connector(
            self.node,
            peer,
            FixedPorts(1).locate,
            self.endpoint,
            clock,
            generation,
            Backoff(0.1, 1.0, jitter=lambda: 0.0),
        )
        self.accepted: list[tuple[NodeLink, Wire]] = []
        self.restarting: list[Deferred[None]] = []

    def admit(self, name: str, connection: Any) -> Any:
        if not self.slow_admission:
            return True
        self.admissions.append(Deferred())
        return self.admissions[-1]


class TwoNodes(RuleBasedStateMachine):
    """The rules are what the world may do; the invariants are what must hold."""

    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.generation = 1
        self.sides = [
            Side(self.clock, name, NAMES[1 - number], lambda: self.generation)
            for number, name in enumerate(NAMES)
        ]
        self.wires: list[Wire] = []
        self.calls: list[Deferred[Any]] = []
        for side in self.sides:
            side.connector.startService()

    # What the world does.

    @rule(number=st.sampled_from([0, 1]))
    def connect(self, number: int) -> None:
        """A connect that is under way succeeds."""
        side, other = self.sides[number], self.sides[1 - number]
        if side.endpoint.waiting:
            near, far = side.endpoint.accept(), Wire()
            near.other, far.other = far, near
            link = NodeLink(other.node, connection=Connection(self.generation))
            other.accepted.append((link, far))
            self.wires += [near, far]
            far.connect(link)

    @rule(number=st.sampled_from([0, 1]))
    def refuse(self, number: int) -> None:
        """A connect that is under way fails."""
        if self.sides[number].endpoint.waiting:
            self.sides[number].endpoint.refuse()

    @precondition(lambda self: self.wires)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Bytes, or the end, arrive somewhere."""
        data.draw(st.sampled_from(self.wires)).deliver()

    @rule()
    def deliver_all(self) -> None:
        """Everything arrives."""
        for _ in range(50):
            moved = [wire.deliver() for wire in list(self.wires)]
            if not any(moved):
                break

    @rule(number=st.sampled_from([0, 1]))
    def link_up(self, number: int) -> None:
        """What mostly happens: a connect succeeds and everything arrives."""
        self.connect(number)
        self.deliver_all()

    @precondition(lambda self: self.wires)
    @rule(data=st.data())
    def break_one(self, data: st.DataObject) -> None:
        """A connection breaks, for one side first."""
        data.draw(st.sampled_from(self.wires)).lose()

    @precondition(lambda self: self.wires)
    @rule(data=st.data())
    def freeze(self, data: st.DataObject) -> None:
        """A peer does not hear goodbyes any more."""
        data.draw(st.sampled_from(self.wires)).deaf = True

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.5, 1.0, 7.0, 15.0]))
    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.clock.advance(seconds)

    @rule(number=st.sampled_from([0, 1]), slow=st.booleans())
    def admission(self, number: int, slow: bool) -> None:
        """Admissions take their time from now on, or not."""
        self.sides[number].slow_admission = slow

    @rule(number=st.sampled_from([0, 1]), answer=st.booleans())
    def admit(self, number: int, answer: bool) -> None:
        """An admission is answered, perhaps long after it counts."""
        if self.sides[number].admissions:
            waiting = self.sides[number].admissions.pop(0)
            if not waiting.called:
                waiting.callback(answer)

    @rule(number=st.sampled_from([0, 1]), slow=st.booleans())
    def call(self, number: int, slow: bool) -> None:
        """A call is made."""
        call = self.sides[number].node.call(
            NAMES[1 - number],
            "kvtls",
            (Atom("sleep"), 40) if slow else Atom("ping"),
            timeout_s=10,
        )
        call.addCallbacks(
            lambda _: self.reached.update(["answered"]),
            lambda _: self.reached.update(["unanswered"]),
        )
        self.calls.append(call)

    @rule(number=st.sampled_from([0, 1]))
    def restart(self, number: int) -> None:
        """New credentials: suspend, close what was accepted, resume."""
        side = self.sides[number]
        self.generation += 1
        side.connector.suspend()
        for link, wire in side.accepted:
            # As a listener does: FIN, abort after a second.
            wire.loseConnection()
            if link.state is not LinkState.CLOSED:
                self.clock.callLater(1.0, wire.abortConnection)
        side.accepted.clear()
        side.connector.resume()

    # What must hold.

    @invariant()
    def nodes_come_and_go_in_turns(self) -> None:
        """I4: nodeup and nodedown alternate, and the last one is how it is."""
        for side in self.sides:
            turns = [event.up for event in side.under_test.events]
            self.reached.update("up" if up else "down" for up in turns)
            assert turns == [position % 2 == 0 for position in range(len(turns))], turns
            assert side.node.is_connected(side.connector.peer) is bool(len(turns) % 2)

    @invariant()
    def states_fit_together(self) -> None:
        """A connector is linked exactly when the node is, unless it is told not to care."""
        for side in self.sides:
            state = side.connector.state.value
            linked = side.node.is_connected(side.connector.peer)
            assert (state == "linked") is linked, (state, linked)
            # I5: whoever waits has a timer or a connection that has one.
            if state == "waiting":
                assert self.clock.getDelayedCalls()

    def teardown(self) -> None:
        """I1, I3, I6: all that is left ends, and leaves nothing."""
        stopping = []
        for side in self.sides:
            stopping += [side.connector.stopService(), side.node.stop()]
        for wire in self.wires:
            wire.lose()
        self.clock.advance(1.0)
        for side in self.sides:
            for waiting in side.admissions:
                if not waiting.called:
                    waiting.callback(True)
            assert side.node.status()["links"] == []
            assert side.node.status()["dialling"] == []
        assert all(stopped.called for stopped in stopping)
        assert all(call.called for call in self.calls)
        assert self.clock.getDelayedCalls() == [], self.clock.getDelayedCalls()


class InvariantTests(SynchronousTestCase):
    """The rules above, many times."""

    def test_two_nodes(self) -> None:
        """No order of events breaks an invariant."""
        TwoNodes.reached.clear()
        chosen = examples(400, steps=40)
        run_state_machine_as_test(TwoNodes, settings=chosen)
        # The rules would prove little if they never brought a link up and down.
        if THOROUGH:
            self.assertLessEqual({"up", "down", "answered", "unanswered"}, set(TwoNodes.reached))

    def test_settings_have_deadlines(self) -> None:
        """I5 begins with settings in which no time is endless."""
        chosen = NodeSettings(name="a@b", cookie=b"c")
        for seconds in (
            chosen.setup_timeout,
            chosen.setup_total,
            chosen.close_timeout,
            chosen.ticktime,
        ):
            self.assertLess(0, seconds)
            self.assertLess(seconds, 3600)
