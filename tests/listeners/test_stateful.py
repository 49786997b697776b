"""Everything that can happen to a listener, in any order.

Hypothesis drives an acceptor with connections, handshakes, claims (answered in time, too
late, never, wrongly), owners that drain or do not, peers that leave, freeze or drip, and
the operator's stops, starts, restarts and rotations.  Whatever the order: no state without
a deadline, no limit exceeded, and after it is over nothing is left.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionLost
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import OnRotate
from kvproto.listeners.acceptor import AcceptorService, AcceptorState
from kvproto.listeners.ledger import Ledger, Limits
from kvproto.listeners.states import Event, State
from tests.examples import examples
from tests.listeners.support import (
    DrainableOwner,
    FakeController,
    FakeEndpoint,
    LivelyTransport,
    Owner,
)

LIMITS = Limits(connections=4, unauthenticated=3, per_peer=3)
DRAIN_TIMEOUT = 5.0
ANSWERS = st.sampled_from(["owner", "drainable", "later", "uncancellable", "raise"])
SELDOM = st.integers(0, 5).map(lambda drawn: drawn == 5)
"""What ends everything is drawn seldom, or there would never be much to end."""

LONGEST_STOP = DRAIN_TIMEOUT + 3 * 1.0
"""A restart may be under way (a close and a vanish), then the drain, then what outlives it."""


class ListenerMachine(RuleBasedStateMachine):
    """One acceptor and everybody around it."""

    transports = Bundle("transports")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = Ledger(self.clock, LIMITS)
        self.controller = FakeController()
        self.endpoint = FakeEndpoint()
        self.acceptor = AcceptorService(
            "data",
            self.endpoint,
            self.controller,
            self.ledger,
            self.clock,
            wrap=lambda factory: factory,
            drain_timeout=DRAIN_TIMEOUT,
            expires=lambda chain: 100.0 if chain == (b"short",) else None,
        )
        self.ledger.now = self.clock.seconds
        self.everybody: list[LivelyTransport] = []
        self.answers: list[Deferred[Any]] = []
        self.owners: list[Owner] = []
        self.generation = 1

    # what must hold at any time

    @invariant()
    def every_state_has_its_deadline(self) -> None:
        for entry in self.ledger.entries():
            if entry.state is State.OWNED:
                continue
            assert entry.deadline is not None, entry
            assert entry.deadline >= self.clock.seconds(), entry

    @invariant()
    def limits_hold(self) -> None:
        status = self.ledger.status()
        assert status["unauthenticated"] <= LIMITS.unauthenticated
        assert status["verified"] <= LIMITS.connections
        counted = [entry for entry in self.ledger.entries() if entry.counted]
        assert len(counted) == status["verified"]

    @invariant()
    def counts_are_those_of_the_entries(self) -> None:
        counted: dict[str, int] = dict.fromkeys(Ledger.states(), 0)
        for entry in self.ledger.entries():
            counted[entry.state.value] += 1
        assert self.ledger.counts() == counted
        assert self.ledger.counts_by_listener().total() == len(self.ledger)

    @invariant()
    def owners_are_told_at_most_once(self) -> None:
        assert all(len(owner.lost) <= 1 for owner in self.owners)

    @invariant()
    def one_delayed_call_for_all_deadlines(self) -> None:
        watching = [
            call
            for call in self.clock.getDelayedCalls()
            if getattr(call, "func", None) == self.ledger._deadlines._fire
        ]
        assert len(watching) <= 1

    # clients

    @initialize()
    def start(self) -> None:
        self.acceptor.privilegedStartService()
        self.answers.append(self.acceptor.startService())

    @precondition(lambda self: self.endpoint.ports and not self.endpoint.port.closed)
    @rule(
        target=transports,
        host=st.integers(1, 3),
        polite=st.booleans(),
        chain=st.sampled_from([(), (b"good",), (b"bad",), (b"short",)]),
    )
    def connect(self, host: int, polite: bool, chain: tuple[bytes, ...]) -> LivelyTransport:
        return self.connect_one(host, polite, chain)

    def connect_one(self, host: int, polite: bool, chain: tuple[bytes, ...]) -> LivelyTransport:
        peer = IPv4Address("TCP", f"192.0.2.{host}", 1000 + len(self.everybody))
        transport = LivelyTransport(self.clock, peer, polite=polite)
        transport.generation = self.generation
        transport.chain = chain
        self.everybody.append(transport)
        self.endpoint.port.connect(transport)
        return transport

    @rule(transport=transports)
    def hello(self, transport: LivelyTransport) -> None:
        transport.hello_seen = True

    @rule(target=claims, transport=transports, answer=ANSWERS)
    def handshake_done(self, transport: LivelyTransport, answer: str) -> Any:
        return multiple(*self.finish_handshake(transport, answer))

    @precondition(lambda self: self.endpoint.ports and not self.endpoint.port.closed)
    @rule(target=claims, answers=st.lists(ANSWERS, min_size=1, max_size=5), polite=st.booleans())
    def clients(self, answers: list[str], polite: bool) -> Any:
        """Let a handful of clients connect and finish their handshakes."""
        made = []
        for number, answer in enumerate(answers):
            transport = self.connect_one(number % 3 + 1, polite, (b"good",))
            made += self.finish_handshake(transport, answer)
            if answer == "owner" and transport.protocol is not None:
                transport.protocol.authenticated("alice")
        return multiple(*made)

    def finish_handshake(self, transport: LivelyTransport, answer: str) -> list[Deferred[Any]]:
        """Let a handshake end well; return the claims that wait for an answer."""
        if transport.protocol is None or transport.closed:
            return []
        before = len(self.controller.given)
        self.controller.answer = self.answer(answer)
        if transport.protocol.state is State.HANDSHAKING:
            transport.protocol.handshakeCompleted()
        return [claim for claim in self.controller.given[before:] if not claim.called]

    def answer(self, kind: str) -> Any:
        """Return what the controller answers the next claim with."""
        if kind in {"owner", "drainable"}:
            self.owners.append(Owner() if kind == "owner" else DrainableOwner())
            return self.owners[-1]
        if kind == "uncancellable":
            return Deferred()
        return ZeroDivisionError() if kind == "raise" else "later"

    @rule(transport=transports, size=st.integers(1, 3))
    def data(self, transport: LivelyTransport, size: int) -> None:
        if transport.protocol is not None and not transport.closed:
            for _ in range(size):
                transport.protocol.dataReceived(b"x")

    @rule(transport=transports, user=st.sampled_from(["", "alice"]))
    def log_in(self, transport: LivelyTransport, user: str) -> None:
        if transport.protocol is not None and transport.protocol.state is State.OWNED:
            transport.protocol.authenticated(user)

    @rule(transport=transports)
    def leave(self, transport: LivelyTransport) -> None:
        if transport.protocol is not None:
            transport.lose(ConnectionLost())

    # controllers and owners

    @rule(claim=consumes(claims), good=st.booleans())
    def answer_claim(self, claim: Deferred[Any], good: bool) -> None:
        if claim.called:
            return
        if good:
            self.owners.append(Owner())
            claim.callback(self.owners[-1])
        else:
            claim.errback(ZeroDivisionError())

    @rule(transport=transports)
    def owner_closes(self, transport: LivelyTransport) -> None:
        if transport.protocol is not None and transport.protocol.state is State.OWNED:
            transport.loseConnection()
            transport.abortConnection()

    @rule()
    def owners_finish(self) -> None:
        for owner in self.owners:
            if isinstance(owner, DrainableOwner) and owner.draining and not owner.lost:
                owner.transport.loseConnection()

    # operators

    @rule(event=st.sampled_from(list(Event)), transport=transports)
    def anything(self, event: Event, transport: LivelyTransport) -> None:
        internal = {
            Event.CLAIMED,
            Event.CLAIM_FAILED,
            Event.HANDSHAKE_DONE,
            Event.OVER_LIMIT,
            Event.PEER_LOST,
        }
        if transport.protocol is not None and event not in internal:
            transport.protocol.fire(event, "drawn")

    @rule(really=SELDOM)
    def stop(self, really: bool) -> None:
        if really:
            self.answers.append(self.acceptor.stopService())

    @rule(taken=st.booleans())
    def start_again(self, taken: bool) -> None:
        if not self.acceptor.running:
            if taken:
                self.endpoint.failures.append(CannotListenError("", 1, OSError(98, "taken")))
            self.answers.append(self.acceptor.startService())

    @rule(policy=st.sampled_from(list(OnRotate)), window=st.sampled_from([0.0, 3.0]))
    def restart(self, policy: OnRotate, window: float) -> None:
        answer = self.acceptor.restart(policy, verify=self.verify, window=window)
        self.answers.append(answer)

    @rule(policy=st.sampled_from(list(OnRotate)), window=st.sampled_from([0.0, 3.0]))
    def rotate(self, policy: OnRotate, window: float) -> None:
        self.generation += 1
        self.answers.append(
            self.acceptor.retire(policy, self.generation, verify=self.verify, window=window)
        )

    @staticmethod
    def verify(chain: tuple[bytes, ...]) -> str | None:
        return "revoked" if b"bad" in chain else None

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 3.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """Let time pass as a reactor does, from one delayed call to the next."""
        end = self.clock.seconds() + seconds
        while True:
            due = [call.getTime() for call in self.clock.getDelayedCalls()]
            if not due or min(due) > end:
                break
            self.clock.advance(max(0.0, min(due) - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    # the end

    def teardown(self) -> None:
        stopped = self.acceptor.stopService()
        self.pass_time(LONGEST_STOP)
        assert stopped.called, "a stop takes the time of a stop"
        assert self.acceptor.state is AcceptorState.STOPPED
        assert len(self.ledger) == 0, list(self.ledger.snapshot())
        assert all(answer.called for answer in self.answers), "every caller has an answer"
        accepted = [transport for transport in self.everybody if transport.protocol is not None]
        assert self.ledger.accepted == len(accepted) == sum(self.ledger.endings.values())
        assert all(transport.closed for transport in accepted)
        assert all(len(owner.lost) == 1 for owner in self.owners if owner.transport is not None)
        assert all(claim.called for claim in self.controller.pending), "cancelled or answered"
        late = len(self.controller.late)
        unanswered = [claim for claim in self.controller.given if not claim.called]
        for claim in unanswered:
            claim.callback(Owner())
        assert len(self.controller.late) == late + len(unanswered), "told: too late"
        self.pass_time(0)
        assert self.clock.getDelayedCalls() == []
        status = self.ledger.status()
        assert (status["verified"], status["unauthenticated"]) == (0, 0)
        left = (
            self.ledger._unauthenticated._by_host,
            self.ledger._watchers,
            self.ledger._deadlines._heap,
        )
        assert not any(left), left
        assert not self.ledger._verified_on, self.ledger._verified_on
        assert not self.ledger._verified_from, self.ledger._verified_from


class ListenerTests(SynchronousTestCase):
    """Random interleavings."""

    def test_any_order(self) -> None:
        """Whatever happens in whatever order, everybody is owned or closed, and nothing is left."""
        run_state_machine_as_test(
            ListenerMachine,
            settings=examples(200, steps=40),
        )
        self.flushLoggedErrors(ZeroDivisionError)
