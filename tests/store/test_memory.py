"""MemoryStore against the contract, at once and by Deferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.store import (
    IStore,
    LookupSpec,
    MemoryStore,
    MutationSpec,
    PathFlag,
    PathOp,
    accessed_at,
)
from kvproto.store.document import ALL_MARKS, Document
from kvproto.store.table import ITEM_OVERHEAD
from kvproto.testing.store import StoreContract
from kvproto.testing.store_meta import MetaContract
from kvproto.testing.store_subdoc import SubdocContract


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

    def test_put_back(self) -> None:
        """The CAS of a document that is put back is below those that follow, if time allows."""
        now = 1_700_000_000.0
        store = MemoryStore(lambda: now)
        for seconds, follows in ((-5, True), (0, True), (30, True), (10_000_000, False)):
            cas = int((now + seconds) * 1e9)
            self.assertIsNone(store.put_back(b"a", Document(b"", cas=cas)))
            self.assertEqual(store.set(b"b", b"").cas > cas, follows, seconds)


class CountTests(SynchronousTestCase):
    """What statistics count, and what a mutation answers."""

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
