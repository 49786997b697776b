"""MemoryStore against the contract, at once and by Deferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.store import (
    DocFlag,
    IStore,
    LookupSpec,
    Mark,
    MemoryStore,
    MutationSpec,
    PathFlag,
    PathOp,
    Refusal,
    accessed_at,
)
from kvproto.store.document import ALL_MARKS, Document
from kvproto.store.pieces import PIECE
from kvproto.store.table import ITEM_OVERHEAD
from kvproto.testing.store import StoreContract
from kvproto.testing.store_meta import MetaContract
from kvproto.testing.store_subdoc import SubdocContract
from tests.store.test_stateful import check_books


class MemoryStoreContractTests(StoreContract, SubdocContract, MetaContract, SynchronousTestCase):
    """The default store keeps the contract."""

    def make_store(self, now: Callable[[], float]) -> IStore:
        return MemoryStore(now)


class RefusingStoreContractTests(StoreContract, SubdocContract, SynchronousTestCase):
    """A store that refuses instead of evicting keeps the contract."""

    def make_store(self, now: Callable[[], float]) -> IStore:
        return MemoryStore(now, evict=False)


@implementer(IStore)
class _WaitingStore:
    """Answers everything later, when it is pushed."""

    tokens = True

    def __init__(self, store: MemoryStore, waiting: list[Callable[[], None]]) -> None:
        self._store = store
        self._waiting = waiting
        self.uuid = store.uuid

    def durable(self, level: int, timeout: float | None) -> Any:
        return self

    def ready(self) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., Deferred[Any]]:
        method = getattr(self._store, name)

        def later(*args: Any, **kwargs: Any) -> Deferred[Any]:
            answer: Deferred[Any] = Deferred()
            self._waiting.append(lambda: answer.callback(method(*args, **kwargs)))
            return answer

        return later


class WaitingStoreContractTests(StoreContract, SubdocContract, SynchronousTestCase):
    """The contract can be tested on a store that answers with Deferreds."""

    def make_store(self, now: Callable[[], float]) -> IStore:
        self.waiting: list[Callable[[], None]] = []
        return _WaitingStore(MemoryStore(now), self.waiting)  # type: ignore[no-any-return,return-value,call-overload,unused-ignore]

    def settle(self) -> None:
        waiting, self.waiting[:] = list(self.waiting), []
        for answer in waiting:
            answer()

    def test_interface(self) -> None:
        """This wrapper passes calls on by name, so the interface is checked on what it wraps."""
        self.assertTrue(IStore.providedBy(self.store))


class LookingThroughTests(SynchronousTestCase):
    """What somebody wants with all documents, or with one from elsewhere."""

    def test_survey(self) -> None:
        """Every document that has not expired is shown once, in pieces."""
        clock = Clock()
        store = MemoryStore(clock.seconds)
        for number in range(5000):
            store.set(b"%d" % number, b"", 0, 0 if number % 7 else 10)
        clock.advance(10)
        found: list[Any] = []
        store.survey(lambda key, document: found.append(key))
        self.assertEqual(found, [b"%d" % number for number in range(5000) if number % 7])
        store.survey(lambda key, document: self.assertIs(document, store.peek(key)))

    def test_put_back(self) -> None:
        """The CAS of a document that is put back is below those that follow, if time allows."""
        now = 1_700_000_000.0
        store = MemoryStore(lambda: now)
        for seconds, follows in ((-5, True), (0, True), (30, True), (10_000_000, False)):
            cas = int((now + seconds) * 1e9)
            self.assertIsNone(store.put_back(b"a", Document(b"", cas=cas)))
            self.assertEqual(store.set(b"b", b"").cas > cas, follows, seconds)

    def test_put_back_deleted(self) -> None:
        """A deleted document that is put back takes the place of a living one."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        store.set(b"a", b"12345")
        grave = Document(b"", cas=5, expires_at=2e9, deleted=True, xattrs={"_s": b"1"})
        self.assertIsNone(store.put_back(b"a", grave))
        self.assertIsNone(store.get(b"a"))
        self.assertEqual(list(store.table.tombstones), [b"a"])
        check_books(store)

    def test_durable(self) -> None:
        """A majority of one has it at once; a disk there is none."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        self.assertIs(store.durable(1, None), store)
        self.assertEqual([store.durable(level, None) for level in (2, 3)], [None, None])

    def test_released(self) -> None:
        """A store that nobody uses any more gives its memory back, some at a time."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        told: list[Any] = []
        store.table.on_evicted = told.append
        store.table.on_emptied = lambda: told.append(None)
        for number in range(25_000):
            store.set(b"%d" % number, b"")
        store.mutate_in(b"gone", [MutationSpec(PathOp.DICT_UPSERT, 4, b"_s", b"1")], 1)
        store.delete(b"gone")
        self.assertEqual(len(store.table.tombstones), 1)
        store.table.on_emptied = None
        for _ in range(2):  # what was flushed goes as well
            store.flush()
            store.set(b"more", b"")
        store.table.on_emptied = lambda: told.append(None)
        turns = 1
        while not store.release():
            turns += 1
        self.assertEqual((store.table.used, store.table.garbage, told), (0, [], []))
        self.assertGreater(turns, 5)
        self.assertTrue(store.release())

    def test_less_memory(self) -> None:
        """A smaller limit is reached in steps; where nothing may be evicted, by refusing."""
        for evict in (True, False):
            store = MemoryStore(lambda: 1_700_000_000.0, 1 << 30, evict=evict)
            for number in range(100):
                store.set(b"%d" % number, bytes(1 << 20))
            turns = 1
            while not store.limit_memory(10 << 20):
                turns += 1
            self.assertEqual(store.table.limit, 10 << 20)
            if evict:
                self.assertGreater(turns, 3)
                self.assertLessEqual(store.table.used, 10 << 20)
                self.assertIsInstance(store.set(b"more", bytes(1 << 20)), Document)
            else:
                self.assertEqual((turns, len(store.table.items)), (1, 100))
                self.assertIs(store.set(b"more", b""), Refusal.NO_MEMORY)
            self.assertTrue(store.limit_memory(1 << 30))
            self.assertIsInstance(store.set(b"more", bytes(1 << 20)), Document)
            check_books(store)

    def test_watched(self) -> None:
        """Who watches is told of what makes room, and whether it was ever read."""
        store = MemoryStore(lambda: 1_700_000_000.0, 2 * (ITEM_OVERHEAD + 10))
        found: list[Any] = []
        store.watch_evictions(lambda key, document: found.append((key, document.value)))
        for name in (b"a", b"b", b"c"):
            store.set(name, name)
        self.assertEqual(found, [(b"a", b"a")])
        store.get(b"c")
        self.assertEqual(
            [bool(document.marks & Mark.FETCHED) for document in store.table.items.values()],
            [False, True],
        )
        store.watch_evictions(None)
        store.set(b"d", b"")
        self.assertEqual(len(found), 1)

    def test_marks_of_a_read(self) -> None:
        """A read says when it was, and leaves other marks as they are."""
        clock = Clock()
        clock.rightNow = 1_700_000_000.75
        store = MemoryStore(clock.seconds)
        store.table.note_reads()
        for mark in (0, Mark.STALE, Mark.WON, Mark.STALE | Mark.WON):
            document = store.set(b"%d" % mark, b"")
            assert isinstance(document, Document)
            document.marks |= mark
            for wait in (0.0, 0.25, 0.5, 0.5):
                clock.advance(wait)
                store.get(b"%d" % mark)
                self.assertEqual(document.marks & ALL_MARKS, mark | Mark.FETCHED)
                self.assertEqual(accessed_at(document), int(clock.seconds()))


class CountTests(SynchronousTestCase):
    """What statistics count, and what a mutation answers."""

    def test_refused(self) -> None:
        """What is refused is counted for its reason, and uses up no sequence number."""
        store = MemoryStore(
            lambda: 1_700_000_000.0, 2 * (ITEM_OVERHEAD + 10), evict=False, max_value=500
        )
        store.set(b"a", b"")
        store.set(b"b", b"")
        for act, name, reason in (
            (lambda: store.set(b"c", b""), "store_no_memory", Refusal.NO_MEMORY),
            (lambda: store.append(b"a", bytes(400)), "store_no_memory", Refusal.NO_MEMORY),
            (lambda: store.set(b"a", bytes(501)), "store_too_large", Refusal.TOO_BIG),
            (lambda: store.append(b"a", bytes(501)), "store_too_large", Refusal.TOO_BIG),
        ):
            before = int(store.stats()[name])
            self.assertIs(act(), reason)
            self.assertEqual((store.stats()[name], store.seqno), (before + 1, 2))
        self.assertEqual(store.set(b"a", b"1").seqno, 3)

    def test_expired(self) -> None:
        """A read that finds an expired document is a miss, whichever way it comes."""
        clock = Clock()
        clock.rightNow = 1_700_000_000.0
        store = MemoryStore(clock.seconds)
        for name in (b"get", b"get too", b"touch", b"touch too", b"mg"):
            store.set(name, b"", 0, 10)
        clock.advance(9.5)
        self.assertIsNone(store.read_plainly(b"mg", clock.seconds(), 0, 2, False))
        found = store.read_plainly(b"mg", clock.seconds(), 0, 1, False)
        self.assertEqual(found and found[0], store.peek(b"mg"))
        clock.advance(0.5)
        for name in (b"get", b"get too"):
            self.assertIsNone(store.get(name))
        for name in (b"touch", b"touch too"):
            self.assertIs(store.touch(name, 5), Refusal.NOT_FOUND)
        self.assertIsNone(store.read_plainly(b"mg", clock.seconds(), 0, 0, True))
        self.assertEqual(store.read_plainly(b"mg", clock.seconds(), 0, 0, False), (None, 0))
        stats = store.stats()
        self.assertEqual((stats["get_expired"], stats["get_misses"], stats["get_hits"]), (5, 3, 1))
        check_books(store)

    def test_flushed(self) -> None:
        """What was flushed is counted once by who looks for it, and given back."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        store.flush()
        for name in (b"a", b"b", b"c"):
            store.set(name, b"")
        store.mutate_in(b"gone", [MutationSpec(PathOp.DICT_UPSERT, 4, b"_s", b"1")], 1)
        store.delete(b"gone")
        store.flush()
        check_books(store)
        for name in (b"a", b"a", b"b", b"gone", b"other"):
            self.assertIsNone(store.get(name))
            check_books(store)
        stats = store.stats()
        self.assertEqual((stats["cmd_flush"], stats["get_flushed"], stats["get_misses"]), (2, 2, 5))
        self.assertIsNone(store.get(b"c"))
        self.assertEqual((store.table.used, store.table.garbage), (0, []))

    def test_sequence_numbers(self) -> None:
        """Whatever changes something takes one, and what changes nothing none."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        made = store.add(b"a", b"1")
        assert isinstance(made, Document)
        self.assertEqual((made.flags, made.datatype, made.expires_at), (0, 0, 0.0))
        acts: list[Callable[[], Any]] = [
            lambda: store.append(b"a", b"2"),
            lambda: store.touch(b"a", 60),
            lambda: store.discard(b"a"),
            lambda: store.set(b"a", b"", 0, -1),
            lambda: store.set(b"a", b"1"),
            lambda: store.delete(b"a"),
        ]
        for number, act in enumerate(acts, 2):
            act()
            self.assertEqual(store.seqno, number)
        self.assertIs(store.delete(b"a"), Refusal.NOT_FOUND)
        self.assertEqual(store.seqno, 7)

    def test_cas_of_a_plain_set(self) -> None:
        """Each SET with the right CAS is a hit."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        document = store.set(b"a", b"")
        for hits in (1, 2, 3):
            assert isinstance(document, Document)
            document = store.set(b"a", b"", cas=document.cas)
            self.assertEqual(store.statistics.cas_hits, hits)

    def test_lapsed_lock(self) -> None:
        """Whoever comes by after a lock's time takes it away; until then it stays."""
        clock = Clock()
        clock.rightNow = 1_700_000_000.0
        store = MemoryStore(clock.seconds)
        reads: list[Callable[[], Any]] = [
            lambda: store.get(b"a"),
            lambda: store.read_plainly(b"a", clock.seconds(), 0, 0, False),
            lambda: store.lookup_in(b"a", [LookupSpec(PathOp.GET_DOC, 0, b"")]),
        ]
        for read in reads:
            store.set(b"a", b"")
            store.get_and_lock(b"a", 5)
            for left in (1.0, 0.0):
                clock.advance(4 if left else 1)
                read()
                found = store.peek(b"a")
                assert found is not None
                self.assertEqual(found.locked_until, clock.seconds() + 1 if left else 0.0)

    def test_large_append(self) -> None:
        """Memory is accounted for where a large value is changed in a piece of its own."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        store.set(b"a", bytes(PIECE + 1))
        for act in (store.append, store.prepend):
            act(b"a", b"12")
            check_books(store)
        self.assertEqual(len(store.table.items), 1)

    def test_listed(self) -> None:
        """All that lives is listed, what is kept of deleted documents too, and no more."""
        clock = Clock()
        clock.rightNow = 1_700_000_000.0
        store = MemoryStore(clock.seconds)
        store.set(b"lives", b"", 0, 11)
        store.set(b"expired", b"", 0, 10)
        store.mutate_in(b"gone", [MutationSpec(PathOp.DICT_UPSERT, 4, b"_s", b"1")], 1)
        store.delete(b"gone")
        clock.advance(10)
        found = [item for piece in store.pieces() for item in piece]
        self.assertEqual([key for key, _ in found], [b"lives", b"gone"])
        self.assertEqual([document.deleted for _, document in found], [False, True])

    def test_tombstone_without_room(self) -> None:
        """Where attributes of a deleted document cannot grow, those of before stay."""
        store = MemoryStore(lambda: 1_700_000_000.0, 2000)
        spec = MutationSpec(PathOp.DICT_UPSERT, 4, b"_s", b"1")
        store.mutate_in(b"a", [spec], 1)
        store.delete(b"a")
        large = MutationSpec(PathOp.DICT_UPSERT, 4, b"_s", b'"%b"' % (b"x" * 3000))
        refused = store.mutate_in(b"a", [large], DocFlag.ACCESS_DELETED)
        self.assertIs(refused, Refusal.NO_MEMORY)
        self.assertEqual(store.table.tombstones[b"a"].xattrs, {"_s": b"1"})
        check_books(store)

    def test_attributes_and_value(self) -> None:
        """Memory is accounted for where a value and its attributes change together."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        for value, attribute in ((b"1", b"12"), (b"12345", b"1"), (b"", b"123456")):
            body = MutationSpec(PathOp.SET_DOC, 0, b"", b'"%b"' % value)
            store.mutate_in(b"a", [MutationSpec(PathOp.DICT_UPSERT, 4, b"x", attribute), body], 1)
            check_books(store)

    def test_looked_up(self) -> None:
        """A lookup within a document is a read, of one that is there or not."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        path = LookupSpec(PathOp.EXISTS, 0, b"a")
        store.lookup_in(b"a", [path])
        store.set(b"a", b"{}")
        store.lookup_in(b"a", [path, path])
        stats = store.stats()
        self.assertEqual((stats["get_misses"], stats["get_hits"]), (1, 1))

    def test_evicted(self) -> None:
        """What made room is counted: with an expiry, unread, and how old it was."""
        clock = Clock()
        clock.rightNow = 1_700_000_000.0
        store = MemoryStore(clock.seconds, 3 * (ITEM_OVERHEAD + 100))
        store.table.note_reads()
        for name, expiry in ((b"a", 0), (b"b", 900), (b"c", 0)):
            store.set(name, b"v" * 99, 0, expiry)
        clock.advance(3)
        store.get(b"a")
        clock.advance(4)
        for name in (b"d", b"e", b"f"):
            store.set(name, b"v" * 99)
        self.assertEqual([*store.table.items], [b"d", b"e", b"f"])
        stats = store.stats()
        self.assertEqual((stats["evictions"], stats["evicted_unfetched"]), (3, 2))
        (counts,) = store.statistics.classes.values()
        self.assertEqual(
            (counts.evicted, counts.evicted_nonzero, counts.evicted_unfetched), (3, 1, 2)
        )
        self.assertEqual(counts.evicted_time, 4)

    def test_results_of_attributes(self) -> None:
        """A counter among several changes tells its value and which one it was."""
        store = MemoryStore(lambda: 1_700_000_000.0)
        store.set(b"a", b"{}")
        specs = [
            MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"x", b'{"a":1}'),
            MutationSpec(PathOp.COUNTER, PathFlag.XATTR, b"x.n", b"5"),
            MutationSpec(PathOp.COUNTER, 0, b"n", b"-7"),
        ]
        result = store.mutate_in(b"a", specs)
        self.assertEqual(result.results, [(1, 0, b"5"), (2, 0, b"-7")])


class CountedCasTests(SynchronousTestCase):
    """A CAS that is counted, for memcached's clients."""

    def test_time(self) -> None:
        """When a document was stored is known all the same, however it was."""
        now = 1_700_000_000.0
        store = MemoryStore(lambda: now, count_cas=True)
        store.set(b"set", b"1")
        store.add(b"add", b"1")
        store.set((8, b"named"), b"1")
        store.append(b"set", b"2")
        store.increment(b"made", 1, 7, 0)
        for key, document in store.table.items.items():
            self.assertEqual((accessed_at(document), document.marks & ALL_MARKS), (now, 0), key)

    def test_touch(self) -> None:
        """A touch keeps it, as in memcached, so that a client's gets and cas are not disturbed."""
        store = MemoryStore(lambda: 1_700_000_000.0, count_cas=True)
        store.set(b"a", b"1")
        for touch in (store.touch, store.get_and_touch):
            for expiry in (60, 60, 0):
                self.assertEqual(touch(b"a", expiry).cas, 1)
                found = store.table.items[b"a"]
                self.assertEqual(found.expiry, expiry and 1_700_000_060)

    def test_counted(self) -> None:
        """It begins at 1, grows with each mutation, and goes on from where a history stopped."""
        store = MemoryStore(lambda: 1_700_000_000.0, count_cas=True)
        found = [
            store.set(b"a", b"1").cas,
            store.increment(b"a", 1, 0, 0).cas,
            store.set(b"b", b"1", 0, 60).cas,
            store.get_and_lock(b"b", 5).cas,
        ]
        self.assertEqual(found, [1, 2, 3, 4])
        store.continue_from(1, 100, 50)
        self.assertEqual(store.set(b"a", b"2").cas, 101)
