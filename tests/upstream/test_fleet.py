"""Where a fleet's requests go, and what becomes of them when servers are away."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import NotSupported, StoreUnavailable
from kvproto.upstream.fleet import Fleet, FleetRequest
from kvproto.upstream.fleet_meta import pass_on
from kvproto.upstream.fleet_options import FleetOptions, parse_fleet
from kvproto.upstream.fleet_store import FleetStore
from kvproto.upstream.ring import FleetServer
from kvproto.wire.constants import Opcode
from kvproto.wire.meta import MetaCommand
from kvproto.wire.text import TextDecoder


class Endpoint:
    """An endpoint whose attempts wait, or are refused."""

    def __init__(self) -> None:
        self.attempts: list[Deferred[Any]] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        attempt: Deferred[Any] = Deferred()
        self.attempts.append(attempt)
        return attempt


class FleetTests(SynchronousTestCase):
    """A fleet of which nobody answers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint: Any = Endpoint()

    def make(self, options: FleetOptions) -> Fleet:
        fleet = Fleet(options, options.servers, lambda server: self.endpoint, self.clock)
        fleet.start()
        return fleet

    def refuse_all(self) -> None:
        attempts, self.endpoint.attempts = self.endpoint.attempts, []
        for attempt in attempts:
            attempt.errback(ConnectionRefusedError())

    def test_away(self) -> None:
        """A server that is away costs nothing but the answer, at once; stopping leaves no timer."""
        fleet = self.make(parse_fleet("memcached://a,b"))
        store = FleetStore(fleet)
        self.refuse_all()
        for asked in (store.get(b"k"), store.set(b"k", b"v"), store.flush()):
            self.assertIn(":11211", str(self.failureResultOf(asked, StoreUnavailable).value))
        self.assertIn("no server", store.ready() or "")
        found = self.successResultOf(store.stats())
        self.assertEqual(found, {"server a:11211": "down", "server b:11211": "down"})
        fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_kept_while_connecting(self) -> None:
        """A request waits for the first connection, and fails when that does."""
        fleet = self.make(parse_fleet("memcached://a"))
        asked = FleetStore(fleet).get(b"k")
        self.assertNoResult(asked)
        self.refuse_all()
        self.failureResultOf(asked, StoreUnavailable)
        fleet.stop()

    def test_sent_again(self) -> None:
        """A request to a server that was up is sent again soon, unless the fleet stops first."""
        fleet = self.make(parse_fleet("memcached://a?connections=1"))
        fleet.servers[0].up = True
        asked = FleetStore(fleet).get(b"k")
        self.refuse_all()
        self.assertNoResult(asked)
        fleet.stop()
        self.failureResultOf(asked, StoreUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_known(self) -> None:
        """A fleet whose servers are not known yet says so."""
        fleet = self.make(FleetOptions())
        store = FleetStore(fleet)
        self.assertRaises(StoreUnavailable, store.get, b"k")
        self.assertIn("not known", store.ready() or "")
        self.assertEqual(fleet.index_of(b"k"), -1)
        self.assertTrue(fleet.change([FleetServer("a")]))
        self.assertEqual(fleet.index_of(b"k"), 0)
        self.assertFalse(fleet.change([FleetServer("a")]))
        fleet.stop()

    def test_large_values_known(self) -> None:
        """A key of a large value stays one, whatever else is forgotten."""
        fleet = self.make(parse_fleet("memcached://a"))
        self.assertEqual(fleet.index_of(b"k"), 0)
        fleet.note_large(b"k")
        self.assertEqual(fleet.index_of(b"k"), -1)
        fleet.places.forget(b"k")
        self.assertEqual(fleet.index_of(b"k"), -1)
        fleet.change([FleetServer("b"), FleetServer("c")])
        self.assertEqual(fleet.index_of(b"k"), -1)
        fleet.stop()

    def test_gutter_expiry(self) -> None:
        """What goes to the gutter does not live long there, and what has expired stays so."""
        fleet = self.make(parse_fleet("memcached://a?gutter=g&gutter-expiry=7"))
        for expiry, expected in (
            (0, 7),
            (5, 5),
            (7, 7),
            (3600, 7),
            (1_900_000_000, 7),
            (2_592_001, 2_592_001),
            (0xFFFF_FFFF, 0xFFFF_FFFF),
        ):
            extras = bytes(4) + expiry.to_bytes(4)
            request = FleetRequest(Opcode.SET, b"k", lambda frame, call: None, extras, expiry_at=4)
            fleet._use_gutter(request)
            self.assertEqual(request.extras[4:], expected.to_bytes(4))
        fleet.stop()

    def test_meta_in_the_gutter(self) -> None:
        """A meta command is passed on as it is; in the gutter it lets nothing live long."""
        fleet = self.make(parse_fleet("memcached://a?gutter=b&gutter-expiry=10"))
        asked: list[FleetRequest] = []
        self.patch(fleet, "ask", lambda request, lane: asked.append(request))
        for line, value, expected, short in (
            (b"mg k v N60 T5 q", b"", b"mg k v N60 T5 O\0\r\n", b"mg k v N10 T5 O\0\r\n"),
            (b"mg k v O1 k", b"", b"mg k v O\0 k\r\n", b"mg k v O\0 k\r\n"),
            (b"ms k 1 F3", b"x", b"ms k 1 F3 O\0\r\nx\r\n", b"ms k 1 F3 T10 O\0\r\nx\r\n"),
            (b"ms k 1 T0", b"x", b"ms k 1 T0 O\0\r\nx\r\n", b"ms k 1 T10 O\0\r\nx\r\n"),
            (b"ms k 1 T-1", b"x", b"ms k 1 T-1 O\0\r\nx\r\n", b"ms k 1 T-1 O\0\r\nx\r\n"),
            (b"md aw== b I", b"", b"md aw== b I O\0\r\n", b"md aw== b I O\0\r\n"),
            (b"me k", b"", b"me k\r\n", b"me k\r\n"),
        ):
            whole = line + b"\r\n" + (value + b"\r\n" if value else b"")
            (command,) = TextDecoder(1024).feed(whole)
            assert isinstance(command, MetaCommand)
            pass_on(FleetStore(fleet), command.key, command)
            request = asked.pop()
            self.assertEqual((request.key, request.value), (b"k", expected))
            fleet._use_gutter(request)
            self.assertEqual(request.value, short)
        fleet.stop()

    def test_what_memcached_has_not(self) -> None:
        """It is refused, not left unanswered."""
        store = FleetStore(self.make(parse_fleet("memcached://a")))
        for asked in (
            store.get_and_lock(b"k", 1),
            store.unlock(b"k", 1),
            store.lookup_in(b"k", []),
            store.mutate_in(b"k", []),
            store.set(b"k", b"v", preserve_expiry=True),
            store.drop_collection(8),
        ):
            self.failureResultOf(asked, NotSupported)
        store.fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
