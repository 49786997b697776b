"""``--requests-per-event``: nobody's requests are served for long before others have their turn."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import KVServer, ServerSettings
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode
from tests.server.support import NOW, Link, SlowStore

GET = b"get k\r\n"
MISS = b"END\r\n"


class YieldTests(SynchronousTestCase):
    """Requests of one connection, a few in each turn of the reactor."""

    def make(self, most: int = 2, store: Any = None, **settings: Any) -> KVServer:
        self.clock = Clock()
        return KVServer(
            MemoryStore(lambda: NOW) if store is None else store,
            ServerSettings(requests_per_event=most, **settings),
            later=self.clock.callLater,
        )

    def turn(self) -> bool:
        """Let one turn of the reactor end; return whether anybody had waited for that."""
        calls: list[Any] = [*self.clock.getDelayedCalls()]
        due = [call for call in calls if call.time <= self.clock.seconds()]
        for call in due:
            act = call.func
            call.cancel()
            act()
        return bool(due)

    def test_text(self) -> None:
        """Each turn serves as many as it may, in order, until all are served."""
        server = self.make()
        link = Link(server)
        wanted = [b"set k 0 0 1\r\nx\r\n", GET, b"mn\r\n", GET, b"delete k\r\n"]
        hit = b"VALUE k 0 1\r\nx\r\nEND\r\n"
        # A retrieval is a request for each key, and one for its end.
        self.assertEqual(link.ask(b"".join(wanted)), b"STORED\r\nVALUE k 0 1\r\nx\r\n")
        turns = []
        while self.turn():
            turns.append(link.take())
        self.assertEqual(b"".join(turns), b"END\r\nMN\r\n" + hit + b"DELETED\r\n")
        self.assertEqual(len(turns), 3)
        self.assertEqual(server.counters.conn_yields, 3)
        self.assertTrue(link.session.idle)

    def test_one(self) -> None:
        """One at a time, as memcached's own test has it."""
        server = self.make(1)
        link = Link(server)
        self.assertEqual(link.ask(b"set k 0 0 1\r\nx\r\n" * 6), b"STORED\r\n")
        for _ in range(5):
            self.assertTrue(self.turn())
            self.assertEqual(link.take(), b"STORED\r\n")
        self.assertFalse(self.turn())
        self.assertIn(b"STAT conn_yields 5\r\n", link.ask(b"stats\r\n"))
        self.assertIn(b"STAT reqs_per_event 1\r\n", link.ask(b"stats settings\r\n"))

    def test_others_between(self) -> None:
        """Another connection is served before the first one goes on."""
        server = self.make()
        busy, other = Link(server), Link(server)
        first = busy.ask(GET * 100)
        self.assertEqual(first, MISS)
        self.assertEqual(other.ask(GET), MISS)
        self.assertEqual(busy.take(), b"")
        self.turn()
        self.assertEqual(busy.take(), MISS)

    def test_binary(self) -> None:
        """Requests of the binary protocol count as well, and so does what comes meanwhile."""
        server = self.make(3)
        link = Link(server)
        noop = encode_request(Opcode.NOOP)
        self.assertEqual(len(link.responses(noop * 7)), 3)
        link.transport.send(noop)
        link.transport.send(noop)
        self.assertFalse(link.transport.reading)
        found = []
        while self.turn():
            found.append(len(link.responses()))
        self.assertEqual((sum(found), max(found)), (6, 3))
        self.assertTrue(link.transport.reading)

    def test_in_place(self) -> None:
        """Over a transport that asks for answers in place, too."""
        server = self.make()
        transport = ScriptedTransport()
        transport.in_place = True
        link = Link(server, transport)
        link.ask(b"mn\r\n")
        link.ask(b"mn\r\n" * 5)
        while self.turn():
            pass
        self.assertEqual(bytes(transport.received), b"MN\r\n" * 6)

    def test_slow_store(self) -> None:
        """Requests that wait for a store take their turns as well."""
        slow = SlowStore(MemoryStore(lambda: NOW))
        server = self.make(2, slow)
        link = Link(server)
        link.ask(b"".join(b"set k%d 0 0 1\r\nx\r\n" % number for number in range(5)))
        asked = [len(slow.waiting)]
        while self.turn():
            asked.append(len(slow.waiting))
        self.assertEqual(asked, [2, 4, 5])
        while slow.waiting:
            slow.release()
        self.turn()
        self.assertEqual(link.take(), b"STORED\r\n" * 5)

    def test_unsent_limit(self) -> None:
        """Replies that a peer does not read stop the turns; reading goes on with them."""
        server = self.make(unsent_limit=2000)
        link = Link(server, ScriptedTransport(high_water=1000, reads=False))
        store: Any = link.store
        store.set(b"k", bytes(900))
        link.transport.send(GET * 10)
        while self.turn():
            pass
        self.assertLess(link.transport.most_unsent, 4000)
        for _ in range(20):
            link.transport.read()
            self.turn()
        self.assertEqual(link.take().count(b"END\r\n"), 10)

    def test_ends_in_between(self) -> None:
        """A connection that is lost, or drained, before its turn leaves no timer."""
        server = self.make()
        lost, drained = Link(server), Link(server)
        lost.ask(GET * 10)
        drained.ask(b"mn\r\n" * 5)
        lost.transport.lose()
        done = drained.protocol.drain()
        while self.turn():
            pass
        self.successResultOf(done)
        self.assertEqual(bytes(drained.transport.received), b"MN\r\n" * 5)

    def test_without_a_turn(self) -> None:
        """Where there is no turn to wait for, everything is served at once."""
        server = KVServer(MemoryStore(lambda: NOW), ServerSettings(requests_per_event=1))
        self.assertEqual(Link(server).ask(b"mn\r\n" * 5), b"MN\r\n" * 5)
