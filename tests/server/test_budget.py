"""What all connections together may hold, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import KVServer, ServerSettings, UserTable
from kvproto.server.binary import MAX_BODY_BEFORE_LOGIN
from kvproto.server.budget import DEADLINE_S, LARGE, Budget
from kvproto.store import LookupSpec, MemoryStore, PathOp
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.subdoc import Lookup, encode_lookup
from tests.server.support import NOW, FakeConnection, Link, SlowStore

MIB = 1 << 20
K = b"key"


class Connection:
    """Remembers why it was let go of."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.reasons: list[str] = []

    def hold(self, size: int, *, asking: bool = True, moved: bool = False) -> None:
        """Hold this much now."""
        self.budget.hold(self, size, asking=asking, moved=moved)

    def let_go(self, reason: str) -> None:
        """Note it, and hold nothing any more, as a connection does that ends."""
        self.reasons.append(reason)
        self.hold(0)


class BudgetTests(SynchronousTestCase):
    """Who holds how much, since when, and who has to go."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = Budget(10 * LARGE, self.clock.seconds, self.clock.callLater)

    def connections(self, count: int) -> list[Connection]:
        """Make connections that begin to hold nothing, a second apart."""
        return [Connection(self.budget) for _ in range(count)]

    def test_counted(self) -> None:
        """What is held is counted once, however often it is told."""
        one, other = self.connections(2)
        one.hold(5)
        other.hold(7)
        one.hold(6)
        self.assertEqual(self.budget.total, 13)
        one.hold(0)
        one.hold(0)
        self.assertEqual(self.budget.total, 7)

    def test_longest_goes_first(self) -> None:
        """Beyond the limit the one that has waited longest goes, and only as many as must."""
        connections = self.connections(12)
        for connection in connections[:10]:
            connection.hold(LARGE)
            self.clock.advance(1)
        connections[10].hold(LARGE)
        self.assertEqual([len(each.reasons) for each in connections], [1] + [0] * 11)
        [reason] = connections[0].reasons
        self.assertIn("--max-unfinished", reason)
        self.assertIn(f"it held {LARGE} bytes for 10.0 s", reason)
        connections[11].hold(3 * LARGE)
        self.assertEqual([len(each.reasons) for each in connections], [1] * 4 + [0] * 8)
        self.assertEqual(self.budget.total, 10 * LARGE)

    def test_progress(self) -> None:
        """Who gets on waits anew; who only adds to what it holds does not."""
        moving, adding, third = self.connections(3)
        moving.hold(4 * LARGE)
        adding.hold(3 * LARGE)
        self.clock.advance(1)
        moving.hold(4 * LARGE, moved=True)
        adding.hold(4 * LARGE)
        third.hold(4 * LARGE)
        self.assertEqual([len(each.reasons) for each in (moving, adding, third)], [0, 1, 0])

    def test_small_ones_stay(self) -> None:
        """What is small goes for nobody, however long it has been there."""
        small, large, other = self.connections(3)
        small.hold(LARGE - 1)
        self.clock.advance(100)
        large.hold(5 * LARGE)
        other.hold(5 * LARGE)
        self.assertEqual([len(each.reasons) for each in (small, large, other)], [0, 1, 0])

    def test_alone(self) -> None:
        """Whoever holds more than everybody may has to go itself."""
        [one] = self.connections(1)
        one.hold(11 * LARGE)
        self.assertEqual(len(one.reasons), 1)
        self.assertEqual(self.budget.total, 0)

    def test_deadline(self) -> None:
        """A request that is not complete in time ends its connection, whatever it holds."""
        late, moved, answered = self.connections(3)
        late.hold(1)
        moved.hold(1)
        answered.hold(5, asking=False)
        self.clock.pump([DEADLINE_S / 20] * 10)
        moved.hold(2, moved=True)
        late.hold(3)
        self.clock.pump([DEADLINE_S / 20] * 12)
        self.assertEqual([len(each.reasons) for each in (late, moved, answered)], [1, 0, 0])
        self.assertIn(f"not complete after {DEADLINE_S:g} s", late.reasons[0])
        self.clock.pump([DEADLINE_S / 20] * 10)
        self.assertEqual([len(each.reasons) for each in (late, moved, answered)], [1, 1, 0])
        answered.hold(5, asking=True)
        self.clock.pump([DEADLINE_S / 20] * 15)
        self.assertEqual(answered.reasons, [])

    def test_timer(self) -> None:
        """There is a timer only while somebody holds something, and none after the end."""
        [one] = self.connections(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        one.hold(1)
        one.hold(0)
        one.hold(1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        one.hold(0)
        self.clock.advance(DEADLINE_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        one.hold(1)
        self.budget.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        one.hold(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.budget.stop()


class ConnectionTests(SynchronousTestCase):
    """What connections say they hold is what they hold."""

    def server(
        self,
        limit: int = 8 * MIB,
        users: dict[str, str] | None = None,
        wrap: Callable[[Any], Any] = lambda store: store,
    ) -> KVServer:
        self.clock = Clock()
        self.store = MemoryStore(lambda: NOW)
        return KVServer(
            wrap(self.store),
            ServerSettings(max_unfinished=limit),
            UserTable.of_passwords(users or {}, iterations=1),
            now=lambda: NOW,
            timer=self.clock.seconds,
            later=self.clock.callLater,
        )

    def test_unfinished_requests(self) -> None:
        """Many SETs that never end are held up to the limit; the oldest are cut off, and logged."""
        server = self.server()
        request = encode_request(Opcode.SET, key=K, value=bytes(3 * MIB), extras=bytes(8))
        links, connections = [], []
        for _ in range(20):
            connections.append(FakeConnection())
            links.append(Link(server, connection=connections[-1]))
            links[-1].transport.send(request[:-1])
            self.clock.advance(1)
            self.assertLess(server.budget.total, 8 * MIB)
        self.assertEqual([link.transport.closed for link in links], [True] * 18 + [False] * 2)
        self.assertTrue(all("--max-unfinished" in each.errors[0] for each in connections[:18]))
        for link in links[18:]:
            [response] = link.responses(request[-1:])
            self.assertEqual(response.status, 0)
        self.assertEqual(server.budget.total, 0)

    def test_gone(self) -> None:
        """A connection that ends gives back what it held, and keeps nothing of it."""
        server = self.server()
        link = Link(server)
        request = encode_request(Opcode.SET, key=K, value=bytes(MIB), extras=bytes(8))
        link.transport.send(request[:-1])
        self.assertGreaterEqual(server.budget.total, MIB - 1)
        session = link.protocol.session
        assert session is not None
        link.transport.lose()
        self.assertEqual(server.budget.total, 0)
        self.assertIsNone(link.protocol.session)
        # Not when a garbage collector finds it: that may be a gigabyte later.
        self.assertEqual((session.dialect.buffered, session.size), (0, 0))

    def test_gone_in_text(self) -> None:
        """The same in the text protocol."""
        link = Link(self.server())
        link.transport.send(b"set k 0 0 100000\r\n" + bytes(90_000))
        session = link.protocol.session
        assert session is not None
        self.assertGreaterEqual(session.dialect.buffered, 90_000)
        link.transport.lose()
        self.assertEqual((session.dialect.buffered, session.size), (0, 0))

    def test_text(self) -> None:
        """The text protocol's requests count as well."""
        server = self.server()
        link = Link(server)
        link.transport.send(b"set k 0 0 100000\r\n" + bytes(90_000))
        self.assertGreaterEqual(server.budget.total, 90_000)
        link.transport.send(bytes(10_000) + b"\r\n")
        self.assertEqual(link.take(), b"STORED\r\n")
        self.assertEqual(server.budget.total, 0)

    def test_unread_replies(self) -> None:
        """Clients that ask and do not read hold their replies, up to the limit for all."""
        server = self.server()
        self.store.set(K, b"[" + b"1," * MIB + b"1]")
        extras, value = encode_lookup(Lookup([LookupSpec(PathOp.GET_DOC, 0, b"")]))
        request = encode_request(Opcode.SUBDOC_MULTI_LOOKUP, key=K, extras=extras, value=value)
        links = []
        for _ in range(6):
            links.append(Link(server, ScriptedTransport(reads=False)))
            links[-1].transport.send(request * 10)
            self.clock.advance(1)
            self.assertLessEqual(server.budget.total, 8 * MIB)
        self.assertEqual([link.transport.closed for link in links], [True] * 3 + [False] * 3)
        for link in links[3:]:
            while link.transport.unsent:
                link.transport.read()
            self.assertEqual(len(link.responses()), 10)
        self.assertEqual(server.budget.total, 0)

    def test_others_turn(self) -> None:
        """A reply that a socket would take counts for nothing while it is others' turn to send."""
        server = self.server(64 * MIB)
        self.store.set(K, bytes(MIB))
        self.store.set(b"long", bytes(12 * MIB))
        for key, held in ((K, 0), (b"long", 8 * MIB)):
            link = Link(server)
            producer = link.transport.producer
            link.transport.writeSequence = lambda _, it=producer: it.wait_for_others()  # type: ignore[misc,method-assign]
            link.transport.send(encode_request(Opcode.GET, key=key) * 2)
            self.assertIn(server.budget.total - held, range(1000))
            # The peer does not read either.
            producer.pauseProducing()
            self.assertGreaterEqual(server.budget.total, held or MIB)
            link.transport.lose()
            self.assertEqual(server.budget.total, 0)

    def test_unread_plain_replies(self) -> None:
        """So do those who are served by the short way."""
        server = self.server()
        self.store.set(K, bytes(10_000))
        link = Link(server, ScriptedTransport(reads=False))
        link.transport.send(encode_request(Opcode.GET, key=K) * 1000)
        self.assertGreater(server.budget.total, link.transport.unsent_size() // 2)
        self.assertLess(server.budget.total, 2 * MIB)
        while link.transport.unsent:
            link.transport.read()
        self.assertEqual(server.budget.total, 0)

    def test_a_stream_of_requests_has_no_deadline(self) -> None:
        """Each request has its own: whoever always sends half of the next one may go on."""
        server = self.server()
        link = Link(server)
        request = encode_request(Opcode.SET, key=K, value=bytes(1000), extras=bytes(8))
        link.transport.send(request[:500])
        for _ in range(30):
            self.clock.advance(DEADLINE_S / 10)
            link.transport.send(request[500:] + request[:500])
        self.assertFalse(link.transport.closed)
        self.clock.pump([DEADLINE_S / 10] * 12)
        self.assertTrue(link.transport.closed)

    def test_slow_store(self) -> None:
        """Requests that wait for the store count, and are cancelled with their connection."""
        server = self.server(2 * MIB, wrap=SlowStore)
        slow: Any = server.buckets["default"].store
        links = [Link(server) for _ in range(3)]
        request = encode_request(Opcode.SET, key=K, value=bytes(900_000), extras=bytes(8))
        for link in links:
            link.transport.send(request)
            self.clock.advance(1)
        self.assertEqual([link.transport.closed for link in links], [True, False, False])
        self.assertEqual(slow.cancelled, 1)

    def test_limits_of_a_stranger_after_a_failed_login(self) -> None:
        """Whoever logs in again and fails is a stranger, with a stranger's limits."""
        server = self.server(users={"alice": "secret"})
        link = Link(server)
        right, wrong = b"\0alice\0secret", b"\0alice\0guess"
        large = encode_request(
            Opcode.SET, key=K, value=bytes(MAX_BODY_BEFORE_LOGIN), extras=bytes(8)
        )
        self.assertEqual(link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=right).status, 0)
        self.assertEqual(link.responses(large)[0].status, 0)
        failed = link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=wrong)
        self.assertEqual(failed.status, Status.AUTH_ERROR)
        link.transport.send(large[:-1])
        self.assertLess(server.budget.total, MAX_BODY_BEFORE_LOGIN)
        self.assertEqual(link.responses(large[-1:])[0].status, Status.AUTH_ERROR)
        self.assertEqual(link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=right).status, 0)
        self.assertEqual(link.responses(large)[0].status, 0)

    def test_limits_of_a_stranger_in_text(self) -> None:
        """The same in the text protocol."""
        server = self.server(users={"alice": "secret"})
        link = Link(server)
        self.assertEqual(link.ask(b"set a 0 0 12\r\nalice secret\r\n"), b"STORED\r\n")
        dialect: Any = link.session.dialect
        dialect.peer.begin("text")
        dialect._update_rights()
        link.transport.send(b"set a 0 0 5000\r\n" + bytes(4000))
        self.assertLess(server.budget.total, 4000)
