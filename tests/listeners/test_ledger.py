"""The table of all connections: limits, room, deadlines, status."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.addresses import describe_peer, host_of
from kvproto.base.deadlines import COMPACT_ABOVE, Deadlines
from kvproto.listeners.acceptor import AcceptorService
from kvproto.listeners.entry import Entry
from kvproto.listeners.handoff import HandoffFactory
from kvproto.listeners.ledger import Limits
from kvproto.listeners.states import Event, State
from tests.listeners.support import Bench, FakeEndpoint, FakeTransport

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "compose-acceptor.md"


def peer(number: int, host: str = "") -> IPv4Address:
    """Return an address of its own for each number, or a port of one host."""
    return IPv4Address("TCP", host or f"10.0.{number >> 8}.{number & 255}", 1000 + number)


class HostTests(SynchronousTestCase):
    """By what limits count."""

    def test_one_form(self) -> None:
        """An IPv4 address counts as itself, however a socket or a proxy shows it."""
        for shown in ("192.0.2.66", "::ffff:192.0.2.66", "::ffff:c000:242"):
            self.assertEqual(host_of(IPv6Address("TCP", shown, 1)), "192.0.2.66")
        for other in ("2001:db8::1", "::ffff:0:1.2.3.4", "fe80::1%eth0"):
            self.assertEqual(host_of(IPv6Address("TCP", other, 1)), other)
        self.assertEqual((host_of(None), host_of(UNIXAddress("/s"))), ("", ""))


class RoomTests(SynchronousTestCase):
    """Who makes room for whom."""

    def test_newcomer_displaces_the_oldest_silent_one(self) -> None:
        """A full pool of silent sockets refuses nobody."""
        bench = Bench(limits=Limits(unauthenticated=4))
        silent = [bench.connect(peer(number)) for number in range(4)]
        newcomer, _ = bench.connect(peer(99))
        self.assertEqual([transport.aborted for _, transport in silent], [True] + [False] * 3)
        newcomer.handshakeCompleted()
        self.assertIs(newcomer.state, State.OWNED)

    def test_progress_protects(self) -> None:
        """A handshake under way outlives any number of newcomers that are silent."""
        bench = Bench(limits=Limits(unauthenticated=4))
        real, transport = bench.connect(peer(0))
        transport.hello_seen = True
        for number in range(1, 200):
            bench.connect(peer(number))
        self.assertIs(real.state, State.HANDSHAKING)
        self.assertEqual(bench.ledger.status()["unauthenticated"], 4)

    def test_oldest_of_equals(self) -> None:
        """Among those that are equally far the oldest one goes."""
        bench = Bench(limits=Limits(unauthenticated=3))
        begun = [bench.connect(peer(number)) for number in range(3)]
        for _, transport in begun:
            transport.hello_seen = True
        bench.connect(peer(99))
        self.assertEqual([transport.aborted for _, transport in begun], [True, False, False])

    def test_finished_handshake_protects_more(self) -> None:
        """One that has finished its handshake outlives those that have only begun."""
        bench = Bench(limits=Limits(unauthenticated=3))
        real, _ = bench.connect(peer(0))
        real.handshakeCompleted()
        for number in range(1, 100):
            _, transport = bench.connect(peer(number))
            transport.hello_seen = True
        self.assertIs(real.state, State.OWNED)

    def test_one_address_displaces_itself(self) -> None:
        """An address that holds its share of the pool cannot push out others."""
        bench = Bench(limits=Limits(unauthenticated=8))
        others = [bench.connect(peer(number)) for number in range(4)]
        for number in range(200):
            bench.connect(peer(number, "192.0.2.66"))
        self.assertEqual([handoff.state for handoff, _ in others], [State.HANDSHAKING] * 4)

    def test_login_leaves_the_pool(self) -> None:
        """Who has logged in is not displaced any more, and frees its place in the pool."""
        bench = Bench(limits=Limits(unauthenticated=2))
        real, _ = bench.connect(peer(0))
        real.handshakeCompleted()
        real.authenticated("")
        for number in range(1, 50):
            other, _ = bench.connect(peer(number))
            other.handshakeCompleted()
        self.assertIs(real.state, State.OWNED)
        self.assertEqual(bench.ledger.status()["unauthenticated"], 2)

    def test_sixty_slots(self) -> None:
        """64 silent sockets and 64 that drip, at 60 slots: a real client is served at once."""
        bench = Bench(limits=Limits(connections=60, unauthenticated=60))
        for number in range(128):
            bench.connect(peer(number, "127.0.0.1"))
        real, _ = bench.connect(peer(999, "127.0.0.1"))
        real.handshakeCompleted()
        self.assertIs(real.state, State.OWNED)

    def test_storm_borrows_unused_places(self) -> None:
        """Clients that all come back at once displace nobody as long as there is room in all."""
        bench = Bench(limits=Limits(connections=60, unauthenticated=20, total=80))
        storm = [bench.connect(peer(number, "127.0.0.1")) for number in range(80)]
        self.assertFalse(any(transport.aborted for _, transport in storm))
        self.assertEqual(bench.ledger.status()["limits"]["unauthenticated"], 80)
        bench.connect(peer(99))
        self.assertEqual(sum(transport.aborted for _, transport in storm), 1)

    def test_known_clients_take_lent_places_back(self) -> None:
        """What is lent shrinks with each login, never below the pool's own size."""
        bench = Bench(limits=Limits(connections=60, unauthenticated=20, total=80))
        for number in range(60):
            known, _ = bench.connect(peer(number))
            known.handshakeCompleted()
            known.authenticated("alice")
        silent = [bench.connect(peer(number)) for number in range(100, 121)]
        self.assertEqual([transport.aborted for _, transport in silent], [True] + [False] * 20)
        self.assertEqual(bench.ledger.status()["unauthenticated"], 20)

    def test_idlers_make_room_for_clients(self) -> None:
        """At the limit, one that never logged in goes before a newcomer is refused."""
        bench = Bench(limits=Limits(connections=2))
        handoffs = [bench.connect(peer(number))[0] for number in range(3)]
        for handoff in handoffs:
            handoff.handshakeCompleted()
        self.assertEqual(
            [handoff.state for handoff in handoffs], [State.CANCELLED, State.OWNED, State.OWNED]
        )

    def test_listener_limit(self) -> None:
        """A listener's own limit does not touch those of other listeners."""
        bench = Bench(limit=1)
        first, _ = bench.connect()
        first.handshakeCompleted()
        first.authenticated("alice")
        second, _ = bench.connect()
        second.handshakeCompleted()
        self.assertEqual(
            [reason for _, reason in bench.controller.refused],
            ["too many connections on this listener"],
        )

    def test_places_come_back(self) -> None:
        """A connection that ends frees its place, before its transport has said goodbye."""
        bench = Bench(limits=Limits(connections=1))
        first, _ = bench.connect()
        first.handshakeCompleted()
        first.authenticated("alice")
        first.fire(Event.PROCESS_STOPPING)
        second, _ = bench.connect()
        second.handshakeCompleted()
        self.assertIs(second.state, State.OWNED)

    def test_refused_ones_are_displaced_like_strangers(self) -> None:
        """Connections that are being refused cannot fill the pool either."""
        bench = Bench(limits=Limits(connections=1, unauthenticated=3))
        first, _ = bench.connect(peer(0))
        first.handshakeCompleted()
        first.authenticated("alice")
        for number in range(1, 20):
            refused, _ = bench.connect(peer(number))
            refused.handshakeCompleted()
        self.assertEqual(bench.ledger.status()["unauthenticated"], 3)
        self.assertIs(first.state, State.OWNED)

    def test_listener_limit_takes_from_its_own_idlers(self) -> None:
        """Who never logged in on another listener keeps its place; one of this listener goes."""
        bench = Bench(limit=1, name="data")
        elsewhere = HandoffFactory("admin", bench.controller, bench.ledger).buildProtocol(peer(0))
        FakeTransport(peer(0)).connect(elsewhere)
        elsewhere.handshakeCompleted()
        handoffs = [bench.connect(peer(number))[0] for number in (1, 2)]
        for handoff in handoffs:
            handoff.handshakeCompleted()
        self.assertEqual(
            [handoff.state for handoff in (elsewhere, *handoffs)],
            [State.OWNED, State.CANCELLED, State.OWNED],
        )

    def test_peer_limit_takes_from_its_own_idlers(self) -> None:
        """At the limit of an address its own idler goes, and nobody else's."""
        bench = Bench(limits=Limits(per_peer=1))
        handoffs = [bench.connect(peer(1, host))[0] for host in ("10.0.0.1", "10.0.0.2")]
        handoffs.append(bench.connect(peer(2, "10.0.0.2"))[0])
        for handoff in handoffs:
            handoff.handshakeCompleted()
        self.assertEqual(
            [handoff.state for handoff in handoffs], [State.OWNED, State.CANCELLED, State.OWNED]
        )


class GoneTests(SynchronousTestCase):
    """Waiting for connections to be gone."""

    def test_when_gone(self) -> None:
        """It fires when the last of them is gone, whatever comes meanwhile."""
        bench = Bench()
        transports = [bench.connect()[1] for _ in range(2)]
        gone = bench.ledger.when_gone(bench.ledger.entries())
        bench.connect()
        transports[0].lose()
        self.assertNoResult(gone)
        transports[1].lose()
        self.successResultOf(gone)

    def test_nobody_to_wait_for(self) -> None:
        """It fires at once when they are gone already."""
        bench = Bench()
        _, transport = bench.connect()
        entries = bench.ledger.entries()
        transport.lose()
        self.successResultOf(bench.ledger.when_gone(entries))

    def test_cancel(self) -> None:
        """Giving up the wait leaves no trace."""
        bench = Bench()
        _, transport = bench.connect()
        gone = bench.ledger.when_gone(bench.ledger.entries())
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        transport.lose()

    def test_deadline_only_comes_nearer(self) -> None:
        """Entering the same state again never gives a connection more time."""
        bench = Bench()
        handoff, _ = bench.bring_to(State.CLOSING)
        entry = handoff.entry
        before = entry.deadline
        assert before is not None
        bench.ledger.enter(entry, State.CLOSING, within=before + 100)
        self.assertEqual(entry.deadline, before)
        bench.ledger.enter(entry, State.CLOSING, within=0.25)
        self.assertEqual(entry.deadline, 0.25)


class StatusTests(SynchronousTestCase):
    """What people and programs see."""

    def test_snapshot(self) -> None:
        """Each connection is one plain dict with documented names."""
        bench = Bench()
        bench.clock.advance(1000)
        handoff, _ = bench.connect(IPv6Address("TCP", "2001:db8::1", 4711), generation=3)
        bench.clock.advance(2.00049)
        (row,) = bench.ledger.snapshot()
        self.assertEqual(
            row,
            {
                "id": 1,
                "listener": "data",
                "direction": "in",
                "peer": "[2001:db8::1]:4711",
                "generation": 3,
                "state": "handshaking",
                "since_s": 2.0,
                "age_s": 2.0,
                "deadline_in_s": 8.0,
                "tls": "",
                "user": None,
                "owner": "",
                "reason": "",
            },
        )
        handoff.handshakeCompleted()
        handoff.authenticated("alice")
        (row,) = bench.ledger.snapshot("data")
        self.assertEqual(
            (row["state"], row["tls"], row["user"], row["owner"], row["deadline_in_s"]),
            ("owned", "TLSv1.3", "alice", "Owner", None),
        )
        self.assertEqual(list(bench.ledger.snapshot("other")), [])

    def test_time_left_of_a_certificate(self) -> None:
        """What is told is when the certificate ends, by the clock on the wall, to a millisecond."""
        bench = Bench()
        wall = 1.7e9
        bench.ledger.now = lambda: wall + bench.clock.seconds()
        bench.factory.expires = lambda chain: wall + 3600.12345
        handoff, transport = bench.connect()
        transport.chain = (b"certificate",)
        (row,) = bench.ledger.snapshot()
        self.assertEqual(row["deadline_in_s"], 10.0)
        handoff.handshakeCompleted()
        bench.clock.advance(1)
        (row,) = bench.ledger.snapshot()
        self.assertEqual(row["deadline_in_s"], 3599.123)
        handoff.fire(Event.DRAIN, "for a test")
        bench.clock.advance(0.12345)
        (row,) = bench.ledger.snapshot()
        self.assertEqual(row["deadline_in_s"], round(bench.timeouts.close - 0.12345, 3))

    def test_certificate_that_has_ended(self) -> None:
        """A certificate that ends while it is looked at ends its connection at once."""
        bench = Bench()
        bench.ledger.now = lambda: 1.7e9
        bench.factory.expires = lambda chain: 1.7e9 - 1
        handoff, transport = bench.connect()
        transport.chain = (b"certificate",)
        handoff.handshakeCompleted()
        bench.clock.advance(0)
        self.assertIsNot(handoff.state, State.OWNED)

    def test_counted_by_listener(self) -> None:
        """Each listener has its own counts, by state."""
        bench = Bench()
        bench.connect()
        bench.bring_to(State.OWNED)
        bench.bring_to(State.OWNED)
        self.assertEqual(
            +bench.ledger.counts_by_listener(),
            {("data", "handshaking"): 1, ("data", "owned"): 2},
        )

    def test_steps(self) -> None:
        """Coming is one, being verified another; who goes takes both along."""
        bench = Bench()
        first, _ = bench.connect(peer(0))
        bench.connect(peer(1))
        self.assertEqual(bench.ledger.steps(), 2)
        first.handshakeCompleted()
        self.assertEqual(bench.ledger.steps(), 3)
        first.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(bench.ledger.steps(), 1)

    def test_totals(self) -> None:
        """The totals are plain and say which deadlines expired."""
        bench = Bench()
        bench.connect()
        bench.bring_to(State.OWNED)
        bench.clock.advance(10)
        status = json.loads(json.dumps(bench.ledger.status()))
        self.assertEqual(status["states"]["owned"], 1)
        self.assertEqual(status["states"]["cancelled"], 1)
        self.assertEqual(status["accepted_total"], 2)
        self.assertEqual(status["deadline_expired_total"], {"handshaking": 1})
        self.assertEqual(status["oldest_s"], {"owned": 10.0, "cancelled": 0.0})

    def test_oldest_and_limits(self) -> None:
        """Of each state the oldest counts, to a millisecond; limits have documented names."""
        bench = Bench(limits=Limits(connections=7, per_peer=5))
        for number in range(3):
            bench.connect(peer(number))
            bench.clock.advance(1.00049)
        status = bench.ledger.status()
        self.assertEqual(status["oldest_s"], {"handshaking": 3.001})
        self.assertEqual(status["limits"]["connections"], 7)
        self.assertEqual(status["limits"]["per_peer"], 5)

    def test_peers(self) -> None:
        """Peers are described in the form that can be pasted into other tools."""
        self.assertEqual(describe_peer(IPv4Address("TCP", "192.0.2.1", 1)), "192.0.2.1:1")
        self.assertEqual(describe_peer(UNIXAddress(None)), "unix")
        self.assertEqual(describe_peer(None), "unknown")

    def test_totals_grow_by_one(self) -> None:
        """Everything that is counted for metrics counts each connection once."""
        bench = Bench()
        transports = [bench.connect(peer(number))[1] for number in range(3)]
        transports.append(bench.bring_to(State.OFFERED)[1])
        self.assertEqual(bench.ledger.accepted_by, {"data": 4})
        bench.clock.advance(10)
        self.assertEqual(bench.ledger.expired["handshaking"], 3)
        self.assertEqual(bench.ledger.failed_handshakes, {("data", "timeout"): 3})
        for transport in transports:
            transport.lose()
        self.assertEqual(sum(bench.ledger.ended_by.values()), 4)
        self.assertEqual(bench.ledger.ended_by["data", "deadline"], 4)

    def test_states_of_all_listeners_together(self) -> None:
        """Without a listener's name the numbers are sums."""
        bench = Bench()
        bench.connect()
        HandoffFactory("admin", bench.controller, bench.ledger).buildProtocol(peer(0))
        self.assertEqual(bench.ledger.counts()["handshaking"], 2)
        self.assertEqual(bench.ledger.counts("admin")["handshaking"], 1)

    def test_gone_while_listed(self) -> None:
        """One that leaves while the list is read is left out; those behind it are not."""
        bench = Bench()
        transports = [bench.connect(peer(number))[1] for number in range(3)]
        rows = bench.ledger.snapshot()
        first = next(rows)
        transports[1].lose()
        self.assertEqual([row["id"] for row in (first, *rows)], [1, 3])


class DeadlineTests(SynchronousTestCase):
    """Many deadlines on one delayed call."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.expired: list[int] = []
        self.deadlines: Deadlines[Entry] = Deadlines(
            self.clock, lambda entry: self.expired.append(entry.id)
        )

    def entry(self, number: int) -> Entry:
        return Entry(number, "data", None, None, 0.0, 0.0)  # type: ignore[arg-type]

    def test_in_order(self) -> None:
        """Each expires at its time, the earliest first, on one delayed call."""
        for number, when in ((1, 3.0), (2, 1.0), (3, 2.0)):
            self.deadlines.set(self.entry(number), when)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(1)
        self.assertEqual(self.expired, [2])
        self.clock.advance(5)
        self.assertEqual(self.expired, [2, 3, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_left_ones_do_not_expire(self) -> None:
        """A deadline that was replaced or taken back has no effect."""
        left, moved = self.entry(1), self.entry(2)
        self.deadlines.set(left, 1.0)
        self.deadlines.set(moved, 1.0)
        self.deadlines.set(left, None)
        self.deadlines.set(moved, 5.0)
        self.clock.advance(4)
        self.assertEqual(self.expired, [])
        self.clock.advance(1)
        self.assertEqual(self.expired, [2])

    def test_nothing_is_left_when_nobody_waits(self) -> None:
        """Taking back the last deadline cancels the delayed call."""
        entry = self.entry(1)
        self.deadlines.set(entry, 1.0)
        self.deadlines.set(entry, None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_setting_one_while_another_expires(self) -> None:
        """What expires may set new deadlines."""
        first, second = self.entry(1), self.entry(2)

        def again(entry: Entry) -> None:
            self.expired.append(entry.id)
            if entry is first:
                self.deadlines.set(second, self.clock.seconds() + 1)

        self.deadlines = Deadlines(self.clock, again)
        self.deadlines.set(first, 1.0)
        self.clock.advance(1)
        self.clock.advance(1)
        self.assertEqual(self.expired, [1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_memory_is_bounded(self) -> None:
        """Deadlines that were left do not pile up while others wait."""
        self.deadlines.set(self.entry(0), 1000.0)
        for number in range(1, 20 * COMPACT_ABOVE):
            entry = self.entry(number)
            self.deadlines.set(entry, 500.0)
            self.deadlines.set(entry, None)
        self.assertLess(len(self.deadlines._heap), 2 * COMPACT_ABOVE)


class PageTests(SynchronousTestCase):
    """The names that programs rely on."""

    def test_every_name_is_documented(self) -> None:
        """The how-to page names each field of the snapshot and of both kinds of status."""
        page = PAGE.read_text(encoding="utf-8")
        bench = Bench()
        bench.connect()
        acceptor = AcceptorService(
            "data",
            FakeEndpoint(),
            bench.controller,
            bench.ledger,
            bench.clock,
        )
        (row,) = bench.ledger.snapshot()
        for name in (*row, *bench.ledger.status(), *acceptor.status()):
            self.assertIn(f"`{name}`", page)
