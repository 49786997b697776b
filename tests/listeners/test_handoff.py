"""What a handoff does on its way through the table."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from OpenSSL.SSL import Error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ITCPTransport,
    ITransport,
)
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer_only
from zope.interface.verify import verifyObject

from kvproto.base.limited_log import LimitedLog
from kvproto.errors import HandoffError
from kvproto.interfaces import IVerifiedConnection
from kvproto.listeners import handoff as handoff_module
from kvproto.listeners import verified
from kvproto.listeners.ledger import Limits
from kvproto.listeners.states import Event, State
from kvproto.testing.scripted import PEER
from tests.listeners.support import (
    AnsweringOwner,
    Bench,
    DrainableOwner,
    FakeTransport,
    Owner,
    ToldOwner,
)


class OfferTests(SynchronousTestCase):
    """From a finished handshake to an owner."""

    def test_provides_what_controllers_see(self) -> None:
        """A handoff is a verified connection and hears of handshakes."""
        handoff, _ = Bench().connect()
        verifyObject(IVerifiedConnection, handoff)
        verifyObject(IHandshakeListener, handoff)

    def test_written_down_at_accept(self) -> None:
        """The ledger knows a connection before its handshake begins."""
        bench = Bench()
        handoff = bench.factory.buildProtocol(PEER)
        self.assertEqual(bench.ledger.entries(), [handoff.entry])
        self.assertEqual(handoff.entry.deadline, bench.timeouts.handshake)

    def test_owner_gets_the_transport(self) -> None:
        """The owner is connected to the transport itself, not to the handoff."""
        bench = Bench()
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        self.assertIs(bench.controller.owners[0].transport, transport)
        self.assertIs(handoff.state, State.OWNED)
        self.assertIsNone(handoff.entry.deadline)

    def test_reads_go_to_the_owner_directly(self) -> None:
        """Once owned, the method a transport calls is the owner's own."""
        bench = Bench()
        handoff, _ = bench.connect()
        handoff.handshakeCompleted()
        self.assertEqual(handoff.dataReceived, bench.controller.owners[0].dataReceived)

    def test_owner_that_answers_in_place(self) -> None:
        """It is asked directly, until it has to go; nobody is asked where there is none."""
        bench = Bench(AnsweringOwner())
        handoff, _ = bench.connect()
        self.assertIsNone(handoff.answer)
        handoff.handshakeCompleted()
        self.assertEqual(handoff.answer, bench.controller.owners[0].answer)
        handoff.fire(Event.GENERATION_RETIRED, "revoked")
        self.assertIsNone(handoff.answer)
        other, _ = Bench().bring_to(State.OWNED)
        self.assertIsNone(other.answer)

    def test_layer_that_kept_the_method(self) -> None:
        """A layer below that remembers the method from before reaches the owner as well."""
        bench = Bench()
        handoff, _ = bench.connect()
        before = handoff.dataReceived
        handoff.handshakeCompleted()
        before(b"request")
        self.assertEqual(bench.controller.owners[0].received, b"request")

    def test_progress(self) -> None:
        """A peer has come further once its ClientHello is there; in the clear, once it is owned."""
        handoff, transport = Bench().connect()
        self.assertFalse(handoff.progressed())
        transport.hello_seen = True
        self.assertTrue(handoff.progressed())
        transport.hello_seen = False
        handoff.handshakeCompleted()
        self.assertTrue(handoff.progressed())
        clear = Bench().factory.buildProtocol(PEER)
        clear.makeConnection(PlainTransport())
        self.assertFalse(clear.progressed())
        clear.handshakeCompleted()
        self.assertTrue(clear.progressed())

    def test_connection_facts(self) -> None:
        """The controller sees id, listener, peer, generation and chain."""
        bench = Bench(name="node")
        _, transport = bench.connect(generation=7)
        transport.chain = (b"leaf", b"intermediate")
        transport.protocol.handshakeCompleted()
        seen = bench.controller.claimed[0]
        self.assertEqual(
            (seen.id, seen.listener, seen.peer, seen.generation, seen.peer_chain),
            (1, "node", PEER, 7, (b"leaf", b"intermediate")),
        )

    def test_no_handshake_to_wait_for(self) -> None:
        """On a bare transport a connection is offered as soon as it is made."""
        bench = Bench(handshake=False)
        handoff, _ = bench.connect()
        self.assertIs(handoff.state, State.OWNED)

    def test_kept_bytes_come_first(self) -> None:
        """What arrives while the claim is pending reaches the owner first, in order."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OFFERED)
        handoff.dataReceived(b"one ")
        self.assertFalse(transport.reading)
        handoff.dataReceived(b"two ")  # decrypted from the same read
        owner = Owner()
        bench.controller.pending[0].callback(owner)
        handoff.dataReceived(b"three")
        self.assertEqual(owner.received, b"one two three")
        self.assertTrue(transport.reading)

    def test_one_read_is_allowed(self) -> None:
        """Reading goes on until there is something to keep."""
        bench = Bench()
        _, transport = bench.bring_to(State.OFFERED)
        self.assertTrue(transport.reading)

    def test_owner_that_pauses_stays_paused(self) -> None:
        """An owner that stops reading while it takes over is not overruled."""

        class Pausing(Owner):
            def connectionMade(self) -> None:
                self.transport.pauseProducing()

        bench = Bench()
        handoff, transport = bench.bring_to(State.OFFERED)
        handoff.dataReceived(b"kept")
        owner = Pausing()
        bench.controller.pending[0].callback(owner)
        self.assertFalse(transport.reading)
        self.assertEqual(owner.received, b"kept")

    def test_owner_that_leaves_at_once(self) -> None:
        """An owner that aborts while it takes over gets no bytes and one goodbye."""

        class Leaving(Owner):
            def connectionMade(self) -> None:
                self.transport.abortConnection()

        bench = Bench()
        handoff, transport = bench.bring_to(State.OFFERED, sync=True)
        handoff.dataReceived(b"kept")
        owner = Leaving()
        bench.controller.pending[0].callback(owner)
        self.assertEqual((owner.received, len(owner.lost)), (b"", 1))
        self.assertIs(handoff.state, State.CLOSED)
        self.assertTrue(transport.aborted)

    def test_owner_that_raises_is_cut(self) -> None:
        """An owner that fails while it takes over is logged and its connection aborted."""

        class Broken(Owner):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        bench = Bench(Broken())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_owner_that_raises_on_kept_bytes_is_cut(self) -> None:
        """The same for the bytes that were kept."""

        class Broken(Owner):
            def dataReceived(self, data: bytes) -> None:
                raise ZeroDivisionError

        bench = Bench()
        handoff, transport = bench.bring_to(State.OFFERED)
        handoff.dataReceived(b"kept")
        bench.controller.pending[0].callback(Broken())
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_controller_that_raises(self) -> None:
        """A controller that fails costs its connection, nothing else."""
        bench = Bench(ZeroDivisionError())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_claim_that_fails(self) -> None:
        """So does a claim that fails later."""
        bench = Bench()
        _, transport = bench.bring_to(State.OFFERED)
        bench.controller.pending[0].errback(Failure(ZeroDivisionError()))
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_small_writes_leave_at_once(self) -> None:
        """A TCP transport does not wait for the peer's acknowledgements (Nagle)."""

        class Tcp(FakeTransport):
            no_delay = False

            def setTcpNoDelay(self, enabled: bool) -> None:
                self.no_delay = enabled

        transport = Tcp(PEER)
        directlyProvides(transport, ITCPTransport)
        transport.connect(Bench().factory.buildProtocol(PEER))
        self.assertTrue(transport.no_delay)

    def test_duration_of_a_handshake(self) -> None:
        """It is measured from accept() to the verified peer, in seconds."""
        bench = Bench()
        bench.clock.advance(1000)
        handoff, _ = bench.connect()
        bench.clock.advance(0.75)
        handoff.handshakeCompleted()
        self.assertEqual(bench.ledger.handshakes.total, 0.75)

    def test_certificate_whose_end_is_asked(self) -> None:
        """Whoever knows when a chain ends is shown the peer's."""
        bench = Bench()
        shown: list[tuple[bytes, ...]] = []
        bench.factory.expires = shown.append
        handoff, transport = bench.connect()
        transport.chain = (b"leaf", b"issuer")
        handoff.handshakeCompleted()
        self.assertEqual(shown, [(b"leaf", b"issuer")])


class LateAnswerTests(SynchronousTestCase):
    """Controllers that answer when nobody waits any more."""

    def test_acceptor_stopped_between_offer_and_answer(self) -> None:
        """The race of MB-36749: the connection is closed, the controller told, nothing waits."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OFFERED)
        (claim,) = bench.controller.pending
        handoff.fire(Event.ACCEPTOR_STOPPING, "the listener stopped")
        self.assertEqual(bench.controller.cancelled, [claim])
        self.assertTrue(transport.aborted)
        transport.lose()
        self.assertEqual(len(bench.ledger), 0)
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_canceller_that_answers(self) -> None:
        """A controller whose canceller answers all the same is told that it is too late."""
        bench = Bench()
        owner = Owner()
        bench.controller.answer = Deferred(lambda claim: claim.callback(owner))
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.DEADLINE)
        self.assertEqual(bench.controller.late, [handoff])
        self.assertTrue(transport.aborted)
        self.assertIsNone(owner.transport)

    def test_claim_without_a_canceller(self) -> None:
        """A Deferred that cannot be cancelled is waited for, and its answer is too late."""
        bench = Bench()
        claim: Deferred[Any] = Deferred()
        bench.controller.answer = claim
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.ACCEPTOR_STOPPING)
        transport.lose()
        self.assertEqual(len(bench.ledger), 0)
        claim.callback(Owner())
        self.assertEqual(bench.controller.late, [handoff])

    def test_twisted_names_the_canceller(self) -> None:
        """The private name that tells the two apart is still there."""
        self.assertIsNone(Deferred()._canceller)
        self.assertIsNotNone(Deferred(lambda _: None)._canceller)

    def test_coroutines_can_be_cancelled(self) -> None:
        """A claim that is a coroutine hears CancelledError where it waits."""
        heard: list[str] = []

        async def claim() -> Owner:
            try:
                await Deferred()
            except CancelledError:
                heard.append("cancelled")
                raise
            raise AssertionError("never answered")

        bench = Bench(Deferred.fromCoroutine(claim()))
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        bench.clock.advance(bench.timeouts.claim)
        self.assertEqual(heard, ["cancelled"])
        self.assertTrue(transport.aborted)

    def test_broken_too_late(self) -> None:
        """A controller that fails when told is logged."""
        bench = Bench()
        handoff, _ = bench.bring_to(State.CANCELLED)

        def broken(connection: Any) -> None:
            raise ZeroDivisionError

        bench.controller.too_late = broken  # type: ignore[method-assign]
        handoff.fire(Event.CLAIMED)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class EndTests(SynchronousTestCase):
    """How connections end."""

    def test_owner_hears_once(self) -> None:
        """However it ends, the owner hears of it exactly once, with the transport's reason."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.fire(Event.PROCESS_STOPPING)
        transport.lose(ConnectionLost("gone"))
        (reason,) = bench.controller.owners[0].lost
        self.assertIs(reason.type, ConnectionLost)

    def test_transport_that_never_says_so(self) -> None:
        """A transport that swallows an abort is let go of; a late word changes nothing."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.fire(Event.DISPLACED)
        bench.clock.advance(bench.timeouts.vanish)
        self.assertEqual(len(bench.ledger), 0)
        transport.lose()
        self.assertEqual(len(bench.controller.owners[0].lost), 1)
        self.assertIs(bench.controller.owners[0].lost[0].type, HandoffError)

    def test_owner_that_fails_to_say_goodbye(self) -> None:
        """An owner that raises in connectionLost is logged, and gone all the same."""

        class Broken(Owner):
            def connectionLost(self, reason: Any = None) -> None:
                raise ZeroDivisionError

        bench = Bench(Broken())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        transport.lose()
        self.assertEqual(len(bench.ledger), 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_frozen_peer(self) -> None:
        """A peer that never answers our goodbye is gone at the deadline."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.fire(Event.GENERATION_RETIRED, "revoked")
        self.assertEqual(transport.calls, ["lose"])
        bench.clock.advance(bench.timeouts.close)
        self.assertEqual(transport.calls, ["lose", "abort"])
        self.assertEqual(handoff.entry.reason, "revoked")

    def test_goodbye_waits_for_no_producer(self) -> None:
        """An owner that is a producer does not hold up the goodbye of who may not stay."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        self.patch(transport, "unregisterProducer", lambda: transport.calls.append("unregister"))
        handoff.fire(Event.GENERATION_RETIRED, "revoked")
        self.assertEqual(transport.calls, ["unregister", "lose"])

    def test_nothing_is_heard_after_the_goodbye(self) -> None:
        """Who may not stay is served no further request while its goodbye is awaited."""
        bench = Bench()
        handoff, _ = bench.bring_to(State.OWNED)
        handoff.dataReceived(b"asked;")
        handoff.fire(Event.GENERATION_RETIRED, "revoked")
        handoff.dataReceived(b"too late")
        self.assertEqual(bench.controller.owners[0].received, b"asked;")

    def test_disconnect_shortens_a_drain(self) -> None:
        """Who is draining has only the time of a close once it must go."""
        bench = Bench(DrainableOwner())
        handoff, _ = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.DRAIN, within=100)
        handoff.fire(Event.GENERATION_RETIRED)
        self.assertEqual(handoff.entry.deadline, bench.timeouts.close)

    def wall(self, bench: Bench, offsets: list[int]) -> float:
        """Return the time on a wall's clock that somebody may have set."""
        return bench.clock.seconds() + offsets[0]

    def test_wall_clock(self) -> None:
        """Whoever sets the clock on the wall sets when a certificate expires."""
        for change, ends in ((0, 3600), (-1800, 5400), (1800, 1800)):
            bench = Bench()
            offsets = [0]
            bench.ledger.now = partial(self.wall, bench, offsets)
            bench.factory.expires = lambda chain: 3600.0
            handoff, transport = bench.connect()
            transport.chain = (b"a certificate",)
            handoff.handshakeCompleted()
            self.assertEqual(next(bench.ledger.snapshot())["deadline_in_s"], 3600)
            offsets[0] = change
            for _ in range(1000):
                if handoff.state is not State.OWNED:
                    break
                bench.clock.advance(10)
            self.assertIs(handoff.state, State.CLOSING)
            self.assertAlmostEqual(bench.clock.seconds(), ends, delta=30)

    def test_time_moved(self) -> None:
        """Whoever moves the time of day on purpose says so, and need not wait for a look."""
        bench = Bench()
        offsets = [0]
        bench.ledger.now = partial(self.wall, bench, offsets)
        bench.factory.expires = lambda chain: 3600.0
        handoff, transport = bench.connect()
        transport.chain = (b"a certificate",)
        handoff.handshakeCompleted()
        for offset, state in ((3599, State.OWNED), (3600, State.CLOSING)):
            offsets[0] = offset
            bench.ledger.time_moved()
            bench.clock.advance(0)
            self.assertIs(handoff.state, state)

    def test_expired_certificate(self) -> None:
        """The connection ends when the peer's certificate does."""
        bench = Bench()
        bench.factory.expires = lambda chain: 3600.0
        handoff, transport = bench.connect()
        transport.chain = (b"leaf",)
        handoff.handshakeCompleted()
        bench.clock.advance(3599)
        self.assertEqual(transport.calls, [])
        bench.clock.advance(1)
        self.assertEqual(transport.calls, ["lose"])
        self.assertEqual(handoff.entry.reason, "the peer's certificate expired")

    def test_refused_with_words(self) -> None:
        """Over the limit, the controller's refusal speaks to the peer, within its deadline."""
        bench = Bench(limits=Limits(connections=1))
        first, _ = bench.connect()
        first.handshakeCompleted()
        first.authenticated("alice")
        second, transport = bench.connect()
        second.handshakeCompleted()
        self.assertEqual(bench.controller.refused, [(second, "too many connections")])
        self.assertIs(second.state, State.CLOSING)
        self.assertIs(first.state, State.OWNED)
        bench.clock.advance(bench.timeouts.refuse)
        self.assertTrue(transport.aborted)

    def test_controller_without_words(self) -> None:
        """A controller that has nothing to say to a refused peer lets it be closed."""
        bench = Bench(limits=Limits(connections=1))
        bench.bring_to(State.OWNED)[0].authenticated("alice")
        bench.controller.refuse = lambda connection, reason: None  # type: ignore[method-assign]
        second, transport = bench.connect()
        second.handshakeCompleted()
        self.assertEqual(transport.calls, ["lose"])

    def test_bytes_after_the_abort(self) -> None:
        """What arrives after an abort is dropped."""
        bench = Bench()
        handoff, _ = bench.bring_to(State.CANCELLED)
        handoff.dataReceived(b"late")
        self.assertEqual(handoff._kept, [])

    def test_refusal_that_fails(self) -> None:
        """A controller that cannot refuse costs the connection, too."""
        bench = Bench(limits=Limits(connections=1))
        bench.bring_to(State.OWNED)[0].authenticated("alice")
        bench.controller.refusal = ZeroDivisionError()
        second, transport = bench.connect()
        second.handshakeCompleted()
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_handshake_that_fails(self) -> None:
        """The reason of a failed handshake is kept; a peer that merely left is no failure."""
        bench = Bench()
        _, failing = bench.connect()
        _, leaving = bench.connect()
        failing.lose(HandoffError("no shared cipher"))
        leaving.lose(ConnectionLost())
        self.assertEqual(
            bench.ledger.status()["ended_total"], {"handshake failed": 1, "peer lost": 1}
        )

    def test_nothing_is_left(self) -> None:
        """A connection that is gone leaves no object behind, without the garbage collector."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.dataReceived(b"request")
        entry = handoff.entry
        (owner,) = bench.controller.owners
        owner.connection = handoff  # as owners that note errors do
        transport.lose()
        bench.controller.claimed.clear()
        bench.controller.owners.clear()
        left: list[Callable[[], object]] = [
            weakref.ref(gone) for gone in (handoff, transport, owner)
        ]
        gc.disable()
        self.addCleanup(gc.enable)
        del transport.protocol, handoff.transport
        del handoff, transport, owner
        self.assertEqual([ref() for ref in left], [None, None, None])
        self.assertIs(entry.state, State.CLOSED)

    def test_first_reason_is_kept(self) -> None:
        """What the owner noted is not overwritten by the end that follows from it."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.note_error("unknown magic 0x47")
        handoff.note_error("something else")
        transport.lose(ConnectionLost())
        self.assertEqual(handoff.entry.reason, "unknown magic 0x47")

    def test_failed_handshakes_by_fault(self) -> None:
        """Each counts once, by what TLS says of it, else by how the transport ended."""

        class HandshakeError(Exception):
            reason = ""

        bench = Bench()
        for _ in range(2):
            error = HandshakeError("closed")
            error.reason = "the certificate has expired"
            bench.connect()[1].lose(error)
        for _ in range(3):
            bench.connect()[1].lose(HandshakeError("unknown ca"))
        self.assertEqual(
            bench.ledger.failed_handshakes,
            {("data", "certificate_expired"): 2, ("data", "unknown_ca"): 3},
        )

    def test_time_moved_concerns_certificates_only(self) -> None:
        """It neither ends those without one, nor gives those that close another deadline."""
        bench = Bench()
        owned, _ = bench.bring_to(State.OWNED)
        handoff, transport = bench.connect()
        transport.chain = (b"leaf",)
        bench.factory.expires = lambda chain: bench.now() + 3600
        handoff.handshakeCompleted()
        handoff.fire(Event.GENERATION_RETIRED, "for a test")
        deadline = handoff.entry.deadline
        bench.ledger.time_moved()
        self.assertEqual((owned.entry.deadline, handoff.entry.deadline), (None, deadline))
        self.assertIs(handoff.state, State.CLOSING)


class DrainTests(SynchronousTestCase):
    """Ending at a request boundary."""

    def test_drain_waits_for_the_owner(self) -> None:
        """An owner that can drain is asked, and not closed under."""
        bench = Bench(DrainableOwner())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.DRAIN, within=5)
        self.assertEqual(transport.calls, [])
        bench.clock.advance(5)
        self.assertEqual(transport.calls, ["abort"])

    def test_drain_before_there_is_an_owner(self) -> None:
        """A connection that drains while it is offered is owned, served, and drained."""
        bench = Bench()
        handoff, _ = bench.bring_to(State.OFFERED)
        handoff.dataReceived(b"asked")
        handoff.fire(Event.DRAIN, within=5)
        self.assertIs(handoff.state, State.OFFERED)
        owner = DrainableOwner()
        bench.controller.pending[0].callback(owner)
        self.assertEqual((owner.received, len(owner.draining)), (b"asked", 1))
        self.assertEqual(handoff.entry.deadline, 5)

    def test_owner_that_cannot_drain(self) -> None:
        """Others are closed, with the time of a close."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.fire(Event.DRAIN, within=50)
        self.assertEqual(transport.calls, ["lose"])
        self.assertEqual(handoff.entry.deadline, bench.timeouts.close)

    def test_drain_that_fails(self) -> None:
        """An owner whose drain fails is logged and closed."""
        bench = Bench(DrainableOwner())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.DRAIN)
        bench.controller.owners[0].draining[0].errback(Failure(ZeroDivisionError()))
        self.assertEqual(transport.calls, ["lose"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_drain_that_raises(self) -> None:
        """So is one that raises."""

        class Broken(DrainableOwner):
            def drain(self) -> Deferred[None]:
                raise ZeroDivisionError

        bench = Bench(Broken())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.DRAIN)
        self.assertEqual(transport.calls, ["lose"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_drain_that_fails_with_its_connection(self) -> None:
        """A drain that ends because the connection did is nobody's fault."""
        bench = Bench(DrainableOwner())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.DRAIN)
        (draining,) = bench.controller.owners[0].draining
        transport.lose()
        draining.errback(Failure(ConnectionLost()))
        self.assertEqual(bench.clock.getDelayedCalls(), [])


class LogTests(SynchronousTestCase):
    """One line for each end that an operator may want to know of."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        for module in (handoff_module, verified):
            self.patch(module, "peer_log", LimitedLog(handoff_module.log))
        observer = cast(ILogObserver, self.observe)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def observe(self, event: Any) -> None:
        if event.get("log_namespace") == "kvproto.listeners.handoff":
            self.lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    def test_refused_over_a_limit(self) -> None:
        """Whoever is refused for a limit, or makes room for somebody else, has a line."""
        bench = Bench(limits=Limits(connections=1, unauthenticated=2))
        for _ in range(3):
            connected, _ = bench.connect()
            connected.handshakeCompleted()
            if connected.state is State.OWNED:
                connected.authenticated("alice")
        for one in list(bench.ledger.entries()):
            one.accepted.fire(Event.PEER_LOST)
        _, oldest = bench.connect()
        for _ in range(2):
            bench.connect()
        oldest.lose()
        self.assertEqual(
            self.lines,
            [
                f"info: connection {number} from 192.0.2.1:4711 on data ended while handshaking: "
                f"{reason}"
                for number, reason in (
                    (2, "too many connections"),
                    (3, "too many connections"),
                    (4, "made room for a newcomer"),
                )
            ],
        )

    def test_failed_login(self) -> None:
        """A login that fails has a line that names the user it was for, on one line."""
        bench = Bench()
        connected, _ = bench.connect()
        connected.handshakeCompleted()
        connected.login_ended("PLAIN", "eve\nalice logged in" + "x" * 200, "wrong user or password")
        for _ in range(3):
            connected.login_ended("SCRAM-SHA512", "bob", "")
        (line,) = self.lines
        self.assertEqual(
            line,
            "warn: connection 1 from 192.0.2.1:4711 on data: login failed (PLAIN, user "
            f"eve\\nalice logged in{'x' * 81}): wrong user or password",
        )
        self.assertEqual(
            dict(bench.ledger.logins),
            {("PLAIN", "failure"): 1, ("SCRAM-SHA512", "success"): 3},
        )

    def test_silent_peer(self) -> None:
        """A peer that does not get through its handshake is told of, once."""
        bench = Bench()
        _, transport = bench.connect()
        bench.clock.advance(bench.timeouts.handshake)
        transport.lose(ConnectionLost())
        self.assertEqual(
            "\n".join(self.lines),
            "info: connection 1 from 192.0.2.1:4711 on data ended while handshaking: "
            "no handshake within 10 s",
        )

    def test_noted_error(self) -> None:
        """What an owner noted about its peer is told."""
        bench = Bench()
        handoff, transport = bench.bring_to(State.OWNED)
        handoff.note_error("unknown magic 0x47")
        transport.lose()
        self.assertEqual(
            "\n".join(self.lines),
            "info: connection 1 from 192.0.2.1:4711 on data ended while owned: unknown magic 0x47",
        )

    def test_error_noted_at_the_end(self) -> None:
        """What an owner makes of the loss is told, however rudely the peer has gone."""

        class Interrupted(Owner):
            handoff: Any

            def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
                self.handoff.note_error("in the middle of a request")

        for end in (ConnectionDone(), ConnectionLost()):
            owner = Interrupted()
            owner.handoff, transport = Bench(owner).connect()
            owner.handoff.handshakeCompleted()
            self.lines.clear()
            transport.lose(end)
            self.assertEqual(
                [line.partition(" ended ")[2] for line in self.lines],
                ["while owned: in the middle of a request"],
            )

    def test_failed_handshake_is_told_by_tls(self) -> None:
        """What a TLS layer of ours has told is not told again."""
        bench = Bench()
        _, transport = bench.connect()
        transport.lose(Error([("SSL routines", "", "no shared cipher")]))
        self.assertEqual(self.lines, [])

    def test_end_below_tls_is_told(self) -> None:
        """What ended a connection below TLS is told here: TLS knows nothing of it."""
        bench = Bench()
        _, transport = bench.connect()
        transport.lose(HandoffError("no PROXY header"))
        self.assertEqual(
            "\n".join(self.lines),
            "info: connection 1 from 192.0.2.1:4711 on data ended while handshaking: "
            "no PROXY header",
        )

    def test_ordinary_ends(self) -> None:
        """Clients that come and go are not worth a line."""
        bench = Bench()
        for state in (State.HANDSHAKING, State.OFFERED, State.OWNED, State.CLOSING):
            bench.bring_to(state)[1].lose(ConnectionLost())
        self.assertEqual(self.lines, [])


class PeerTests(SynchronousTestCase):
    """Where a connection comes from."""

    def test_proxied_peer(self) -> None:
        """The address that the transport knows after the handshake is the one that counts."""
        bench = Bench(limits=Limits(per_peer=1))
        client = IPv4Address("TCP", "203.0.113.5", 1)
        for _ in range(2):
            handoff, transport = bench.connect()
            transport.peer = client
            handoff.handshakeCompleted()
            handoff.authenticated("alice")
        self.assertEqual(
            [reason for _, reason in bench.controller.refused],
            ["too many connections from this address"],
        )
        self.assertEqual(handoff.peer, client)

    def test_proxied_peer_is_still_a_stranger(self) -> None:
        """Knowing its address does not make a peer known."""
        bench = Bench()
        handoff, transport = bench.connect()
        transport.peer = IPv4Address("TCP", "203.0.113.5", 1)
        handoff.handshakeCompleted()
        self.assertEqual(bench.ledger.status()["unauthenticated"], 1)
        transport.lose()
        self.assertEqual(bench.ledger.status()["unauthenticated"], 0)


@implementer_only(ITransport)
class PlainTransport(FakeTransport):
    """A transport without TLS."""


class PeerEndedTests(SynchronousTestCase):
    """A peer that has ended its side and may still read."""

    def test_is_told(self) -> None:
        """The handoff itself can be told by any transport."""
        handoff, _ = Bench().connect()
        verifyObject(IHalfCloseableProtocol, handoff)

    def test_owned(self) -> None:
        """The owner is told, and decides when to close."""
        bench = Bench(owner := ToldOwner())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.readConnectionLost()
        self.assertEqual((owner.told, transport.calls, handoff.state), (1, [], State.OWNED))

    def test_offered(self) -> None:
        """It is told as soon as there is one, after what the peer has said."""
        bench = Bench("later")
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.dataReceived(b"question")
        handoff.readConnectionLost()
        self.assertEqual(transport.calls, [])
        owner = ToldOwner()
        bench.controller.pending.pop().callback(owner)
        self.assertEqual((owner.received, owner.told), (b"question", 1))

    def test_owner_that_cannot_be_told(self) -> None:
        """The transport decides whether it has answered, or closes."""
        bench = Bench()
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.readConnectionLost()
        self.assertEqual(transport.calls, ["lose"])
        handoff, asked = bench.connect()
        setattr(asked, "lose_when_answered", lambda: asked.calls.append("when answered"))  # noqa: B010
        handoff.handshakeCompleted()
        handoff.readConnectionLost()
        self.assertEqual(asked.calls, ["when answered"])

    def test_refused(self) -> None:
        """A protocol that waits to hear what it should say "busy" to does not wait any longer."""
        bench = Bench(limits=Limits(connections=1))
        bench.connect()[0].handshakeCompleted()
        bench.ledger.authenticated(bench.ledger.entries()[0], "")
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        self.assertIs(handoff.state, State.CLOSING)
        handoff.readConnectionLost()
        self.assertEqual(transport.calls, ["lose"])

    def test_after_goodbye(self) -> None:
        """Whoever we have said goodbye to is not answered any more."""
        bench = Bench(owner := ToldOwner())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.fire(Event.GENERATION_RETIRED, "for a test")
        setattr(transport, "disconnecting", True)  # noqa: B010
        handoff.readConnectionLost()
        self.assertEqual(owner.told, 0)

    def test_deadline_without_tls(self) -> None:
        """Where there is no TLS with a deadline of its own, the ledger has one."""
        bench = Bench(ToldOwner(), handshake=False)
        handoff, transport = bench.factory.buildProtocol(PEER), PlainTransport()
        transport.connect(handoff)
        handoff.readConnectionLost()
        bench.clock.advance(bench.timeouts.half_close - 0.1)
        self.assertEqual(transport.calls, [])
        bench.clock.advance(0.2)
        self.assertEqual(transport.calls, ["lose"])
        bench.clock.advance(bench.timeouts.close)
        self.assertEqual(transport.calls, ["lose", "abort"])
        self.assertEqual(handoff.entry.reason, "the peer ended its side")

    def test_deadline_with_tls(self) -> None:
        """Where TLS has a deadline of its own for what was asked, the ledger adds none."""
        bench = Bench(ToldOwner())
        handoff, transport = bench.connect()
        handoff.handshakeCompleted()
        handoff.readConnectionLost()
        bench.clock.advance(10 * bench.timeouts.half_close)
        self.assertEqual((transport.calls, handoff.state), ([], State.OWNED))
