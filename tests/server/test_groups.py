"""Groups: what one read changes is made safe with one effort, and answered by one write."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.errors import StoreUnavailable
from kvproto.server import KVServer, ServerSettings
from kvproto.store import IGroupingStore, IImmediateStore, MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response
from tests.server.support import NOW, FakeConnection, Link
from tests.server.test_pipelining import get, put


@implementer(IImmediateStore, IGroupingStore)
class GroupingStore(MemoryStore):
    """A store in memory that the test makes safe.

    Attributes:
        waiting: What has not been made safe, the oldest first.
    """

    groups = True

    def __init__(self) -> None:
        super().__init__(lambda: NOW, uuid=1)
        self.waiting: list[Deferred[Any]] = []
        self._from: int | None = None

    def begin_group(self) -> None:
        self._from = self.seqno

    def end_group(self) -> Deferred[None] | None:
        before, self._from = self._from, None
        return None if self.seqno == before else self.wait()

    def wait(self) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()
        self.waiting.append(waiting)
        return waiting

    def set_plainly(self, *args: Any) -> Any:
        return None if self._from is None else super().set_plainly(*args)

    def _apply(self, key: Any, rule: Any, *args: Any) -> Any:
        answer = super()._apply(key, rule, *args)
        if self._from is not None and key != b"slow":
            return answer
        return self.wait().addCallback(lambda _: answer)

    def save(self) -> None:
        """Make safe what has waited longest."""
        self.waiting.pop(0).callback(None)


def told(response: Response) -> tuple[Any, ...]:
    """Return what must not differ: a CAS may, since requests for other keys may overtake."""
    return response.opcode, response.opaque, response.status, response.value


class GroupTests(SynchronousTestCase):
    """Sessions over a store that would rather be asked for groups."""

    def setUp(self) -> None:
        self.store = GroupingStore()
        self.connection = FakeConnection()
        self.link = Link(KVServer(self.store, ServerSettings()), connection=self.connection)
        self.transport = self.link.transport

    def opaques(self, data: bytes = b"") -> list[int]:
        return [response.opaque for response in self.link.responses(data)]

    def test_one_group(self) -> None:
        """All of a read waits for one effort, and leaves in order with one write."""
        many = b"".join(put(b"%d" % number, b"x", number) for number in range(40))
        delete = encode_request(Opcode.DELETE, key=b"3", opaque=41)
        self.assertEqual(self.opaques(many + get(b"1", 40) + delete + get(b"3", 42)), [])
        self.assertEqual(len(self.store.waiting), 1)
        self.store.save()
        replies = self.link.responses()
        self.assertEqual([reply.opaque for reply in replies], list(range(43)))
        self.assertEqual((replies[40].value, replies[42].status), (b"x", Status.NOT_FOUND))
        self.assertEqual((self.transport.writes, self.store.waiting), (1, []))

    def test_while_somebody_watches(self) -> None:
        """Reads stay groups when a watcher comes, whatever it watches, and when it goes."""
        self.link.ask(get(b"a", 1))
        for wanted in (b"connevents", b"mutations"):
            here = ScriptedTransport(peer=IPv4Address("TCP", "127.0.0.1", 4711))
            watcher = Link(self.link.server, here)
            self.assertEqual(watcher.ask(b"watch %b\r\n" % wanted), b"OK\r\n")
            for leave in (lambda: None, watcher.transport.lose):
                leave()
                self.assertEqual(self.opaques(put(b"a", b"1", 2) + put(b"b", b"1", 3)), [])
                self.assertEqual(len(self.store.waiting), 1)
                self.store.save()
                self.assertEqual(self.opaques(), [2, 3])

    def test_little_is_not_accounted_for(self) -> None:
        """A few replies that wait are not worth a word to the budget of all connections."""
        budget = self.link.server.budget
        self.link.ask(put(b"a", bytes(1000), 1))
        self.assertEqual((budget.total, self.transport.reading), (0, True))
        self.store.save()
        self.assertEqual((self.opaques(), budget.total), ([1], 0))
        self.link.ask(b"".join(get(b"a", number) for number in range(20)) + put(b"b", b"", 20))
        self.assertGreater(budget.total, 20_000)
        self.store.save()
        self.assertEqual((self.opaques(), budget.total), (list(range(21)), 0))

    def test_paused(self) -> None:
        """Replies that are safe stay here until the transport takes more."""
        self.link.ask(put(b"a", b"1", 1))
        self.link.protocol.pauseProducing()
        self.store.save()
        self.assertEqual(self.opaques(), [])
        self.link.protocol.resumeProducing()
        self.assertEqual(self.opaques(), [1])
        self.link.ask(put(b"a", b"2", 2))
        self.store.save()
        self.assertEqual(self.opaques(), [2])

    def test_drained(self) -> None:
        """A connection that is to end does so when its group is safe and answered."""
        self.link.ask(put(b"a", b"1", 1))
        drained = self.link.protocol.drain()
        self.assertFalse(self.transport.closed)
        self.store.save()
        self.assertEqual((self.opaques(), self.transport.closed), ([1], True))
        self.successResultOf(drained)

    def test_replies_above_a_limit(self) -> None:
        """More replies than may be written at once leave in parts, all of them and in order."""
        self.link.ask(put(b"a", bytes(10_000), 1))
        self.store.save()
        asked = [get(b"a", number) for number in range(2, 200)]
        for number in (3, 150):
            asked[number] = put(b"b", b"", number + 2)
        self.transport.send(b"".join(asked))
        while self.store.waiting:
            self.store.save()
        self.assertEqual(self.opaques(), list(range(1, 200)))
        self.assertEqual(self.link.server.budget.total, 0)

    def test_reads_do_not_wait(self) -> None:
        """Where nothing is changed there is nothing to wait for."""
        self.assertEqual(self.opaques(get(b"a", 1) + get(b"b", 2)), [1, 2])
        self.assertEqual(self.store.waiting, [])

    def test_next_group(self) -> None:
        """What comes meanwhile is not looked at, and is the next group."""
        self.link.ask(put(b"a", b"1", 1))
        self.link.ask(put(b"a", b"2", 2) + put(b"b", b"2", 3)[:30])
        self.assertFalse(self.transport.reading)
        self.transport.send(put(b"b", b"2", 3)[30:] + get(b"a", 4))
        self.assertEqual((len(self.store.waiting), self.opaques()), (1, []))
        self.store.save()
        self.assertEqual((len(self.store.waiting), self.opaques()), (1, [1]))
        while self.store.waiting:
            self.store.save()
        replies = self.link.responses()
        self.assertEqual([reply.opaque for reply in replies], [2, 3, 4])
        self.assertEqual(replies[2].value, b"2")
        self.assertTrue(self.transport.reading)
        self.assertEqual(self.opaques(get(b"a", 5)), [5])

    def test_nobody_knows(self) -> None:
        """A client hears nothing of a group that may not be safe: its connection ends."""
        self.link.ask(put(b"a", b"1", 1) + put(b"b", b"1", 2))
        self.store.waiting.pop().errback(StoreUnavailable("the disk is broken"))
        self.assertEqual(self.opaques(), [])
        self.assertTrue(self.transport.closed)
        self.assertEqual(self.connection.errors, ["the disk is broken"])

    def test_quit(self) -> None:
        """Who says farewell behind a change is answered, and then left, when it is safe."""
        self.link.ask(put(b"a", b"1", 1) + encode_request(Opcode.QUIT, opaque=2))
        self.assertFalse(self.transport.closed)
        self.store.save()
        self.assertEqual(self.opaques(), [1, 2])
        self.assertTrue(self.transport.closed)

    def test_broken_stream(self) -> None:
        """So is who sends what is no request."""
        self.link.ask(put(b"a", b"1", 1) + b"\x01" * 24)
        self.assertEqual((self.transport.closed, self.opaques()), (False, []))
        self.store.save()
        self.assertEqual(self.opaques()[:1], [1])
        self.assertTrue(self.transport.closed)

    def test_slow_in_between(self) -> None:
        """A request that waits by itself ends the group before it; order stays."""
        slow = encode_request(Opcode.ADD, key=b"slow", extras=bytes(8), opaque=2)
        self.link.ask(put(b"a", b"1", 1) + slow + put(b"b", b"1", 3))
        self.assertEqual(len(self.store.waiting), 2)
        self.store.save()  # the slow one, which was asked first
        self.assertEqual(self.opaques(), [])
        while self.store.waiting:
            self.store.save()
        self.assertEqual(self.opaques(), [1, 2, 3])

    def test_peer_leaves(self) -> None:
        """When the peer has gone nobody waits any more."""
        self.link.ask(put(b"a", b"1", 1))
        self.transport.lose()
        self.assertTrue(self.store.waiting[0].called)
        self.assertEqual((self.opaques(), self.flushLoggedErrors()), ([], []))

    def test_text(self) -> None:
        """The text protocol does the same."""
        sent = b"set a 0 0 1\r\nx\r\nget a\r\nset b 0 0 1 noreply\r\nx\r\ndelete a\r\nquit\r\n"
        self.assertEqual(self.link.ask(sent), b"")
        self.assertEqual(len(self.store.waiting), 1)
        while self.store.waiting:
            self.store.save()
        expected = b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\nDELETED\r\n"
        self.assertEqual((self.link.take(), self.transport.closed), (expected, True))

    def test_any_cutting(self) -> None:
        """However a stream is cut, and whenever groups are safe, replies are those of memory."""
        stream = b"".join(
            put(b"%d" % (number % 7), b"v%d" % number, number)
            + get(b"%d" % (number % 5), number)
            + (b"" if number % 9 else encode_request(Opcode.DELETE, key=b"3", opaque=number))
            for number in range(60)
        )
        plain = Link(KVServer(MemoryStore(lambda: NOW, uuid=1), ServerSettings()))
        expected = list(map(told, plain.responses(stream)))
        for seed in range(50):
            dice = random.Random(seed)
            self.setUp()
            at = 0
            received: list[Any] = []
            while at < len(stream) or self.store.waiting:
                if self.store.waiting and dice.random() < 0.4:
                    self.store.save()
                size = dice.choice((1, 20, 300, 2000))
                self.transport.send(stream[at : at + size]) if at < len(stream) else None
                at += size
                received += map(told, self.link.responses())
            self.assertEqual(received, expected, seed)


class InPlaceGroupTests(GroupTests):
    """The transport asks for answers in place first."""

    def setUp(self) -> None:
        self.patch(ScriptedTransport, "in_place", True)
        super().setUp()


class NoGroupTests(SynchronousTestCase):
    """Stores of which nothing waits."""

    def test_no_use(self) -> None:
        """A store that says that groups are of no use is not asked for them."""
        store = GroupingStore()
        store.groups = False
        store.begin_group = lambda: self.fail("a group was begun")  # type: ignore[method-assign]
        store.wait = lambda: succeed(None)  # type: ignore[method-assign]
        link = Link(KVServer(store, ServerSettings()))
        self.assertEqual([reply.opaque for reply in link.responses(put(b"a", b"1", 1))], [1])
