"""The memory limit: what counts, what goes first, what is refused."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import (
    DocFlag,
    Document,
    Key,
    MemoryStore,
    MutationSpec,
    PathFlag,
    PathOp,
    Refusal,
)
from kvproto.store.table import COLLECTION_OVERHEAD, ITEM_OVERHEAD
from tests.examples import THOROUGH, examples
from tests.store.test_stateful import START, check_books

ITEM = ITEM_OVERHEAD + 100
"""Bytes of the limit that `store_of`'s documents take: 1 byte key, 99 bytes value."""


def stat(store: MemoryStore, name: str) -> int:
    """Return one number of a store's statistics."""
    number = store.stats()[name]
    assert isinstance(number, int)
    return number


class LimitTests(SynchronousTestCase):
    """A store never holds more than its memory limit."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = START

    def store_of(self, items: int, evict: bool = True) -> MemoryStore:
        """Make a store with room for some documents of `ITEM` bytes."""
        return MemoryStore(self.clock.seconds, items * ITEM, evict)

    def put(self, store: MemoryStore, names: str, expiry: int = 0) -> None:
        for name in names:
            self.assertIsInstance(store.set(name.encode(), b"v" * 99, 0, expiry), Document)

    def left(self, store: MemoryStore) -> str:
        """Return the names in a store, least recently used first, without using them."""
        return "".join(key.decode() for key in store.table.items if isinstance(key, bytes))

    def test_least_recently_used_goes_first(self) -> None:
        """A full store drops what was least recently used: reading and writing are use."""
        store = self.store_of(4)
        self.put(store, "abcd")
        store.get(b"a")
        store.get(b"none")
        store.append(b"b", b"")
        store.touch(b"c", 0)
        self.put(store, "e")
        self.assertEqual(self.left(store), "abce")
        self.put(store, "fgh")
        self.assertEqual(self.left(store), "efgh")
        self.assertEqual(store.stats()["evictions"], 4)

    def test_a_refused_add_is_no_use(self) -> None:
        """What only found that a document exists does not keep it."""
        store = self.store_of(2)
        self.put(store, "ab")
        store.add(b"a", b"")
        self.put(store, "c")
        self.assertEqual(self.left(store), "bc")

    def test_what_grows_is_not_its_own_victim(self) -> None:
        """A document that grows pushes out others, not itself."""
        store = self.store_of(4)
        self.put(store, "abcd")
        grown = store.append(b"a", b"w" * 2 * ITEM)
        self.assertIsInstance(grown, Document)
        self.assertEqual(self.left(store), "da")

    def test_expired_goes_before_the_living(self) -> None:
        """Documents that expired a second ago make room before any that lives."""
        store = self.store_of(6)
        self.put(store, "abc")
        self.put(store, "xyz", expiry=10)
        self.clock.advance(11)
        self.put(store, "def")
        self.assertEqual(self.left(store), "abcdef")
        self.assertEqual(store.stats()["evictions"], 0)
        self.assertEqual(store.stats()["reclaimed"], 3)

    def test_an_expiry_brought_forward(self) -> None:
        """A document whose expiry was shortened makes room at the new moment."""
        store = self.store_of(3)
        self.put(store, "a")
        self.put(store, "xy", expiry=3600)
        store.touch(b"x", 10)
        self.put(store, "y", expiry=5)
        self.clock.advance(11)
        self.put(store, "bc")
        self.assertEqual(self.left(store), "abc")

    def test_flood_of_short_lives(self) -> None:
        """Documents that expire soon do not push out what lives longer, nor stay in memory."""
        store = self.store_of(1000)
        self.put(store, "a")
        for number in range(20_000):
            if number % 500 == 0:
                self.clock.advance(1)
            store.set(b"%d" % number, b"v" * 60, 0, 1)
        self.assertIsNotNone(store.get(b"a"))
        self.assertEqual(store.stats()["evictions"], 0)
        self.assertLess(stat(store, "curr_items"), 1100)
        check_books(store)

    def test_expiry_moved_all_the_time(self) -> None:
        """Touching and rewriting the same keys for hours leaves no trail in the due queue."""
        store = self.store_of(100)
        for number in range(20_000):
            key = b"%d" % (number % 50)
            if number % 3:
                store.set(key, b"", 0, 3600)
            elif number % 2:
                store.touch(key, 1800)
            else:
                store.delete(key)
            self.clock.advance(0.5)
        self.assertLess(store.table.due.entries, 1300)
        check_books(store)

    def test_expiry_falling_all_the_time(self) -> None:
        """An expiry that is set earlier each time leaves a bounded queue, whatever sets it."""
        for change in ("set", "touch", "lock"):
            store = self.store_of(100)
            self.put(store, "b", expiry=40_000)
            for expiry in range(9_000, 100, -1):
                if change == "touch" and store.get(b"a") is not None:
                    store.touch(b"a", expiry)
                    continue
                store.set(b"a", b"", 0, expiry, preserve_expiry=change == "lock")
                if change == "lock":
                    store.touch(b"a", expiry)
            self.assertLess(store.table.due.entries, 1_100, change)
            self.assertLess(len(store.table.due._seconds), 1_100, change)
            check_books(store)
            self.clock.advance(200)
            store.set(b"c", b"")
            self.assertEqual(stat(store, "curr_items"), 2)
            self.assertIsNotNone(store.get(b"b"))

    def test_deleted_again_and_again(self) -> None:
        """Deleting the same documents with attributes for long leaves a bounded queue."""
        store = self.store_of(100)
        spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1")
        for _ in range(5000):
            store.mutate_in(b"a", [spec], DocFlag.MKDOC)
            store.delete(b"a")
            self.clock.advance(1)
        self.assertLess(store.table.due.entries, 1100)
        check_books(store)

    def test_queue_beside_many_tombstones(self) -> None:
        """Many deleted documents do not have the queue cleaned for each write."""
        store = MemoryStore(self.clock.seconds, 64 << 20)
        spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1")
        for number in range(2000):
            store.mutate_in(b"%d" % number, [spec], DocFlag.ADD | DocFlag.CREATE_AS_DELETED)
        for number in range(100):
            store.set(b"k%d" % number, b"", 0, 100)
            self.assertFalse(store.table.due.sifting)

    def test_tombstones_outlast_a_sifted_queue(self) -> None:
        """What sifts the queue leaves in it when what is kept of deleted documents ends."""
        store = MemoryStore(self.clock.seconds, 64 << 20)
        spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1")
        store.mutate_in(b"t", [spec], DocFlag.ADD | DocFlag.CREATE_AS_DELETED)
        sifted = False
        for number in range(20_000):
            store.set(b"k", b"", 0, 30_000 - number)
            sifted = sifted or store.table.due.sifting
        self.assertTrue(sifted)
        self.assertEqual(len(store.table.tombstones), 1)
        self.clock.advance(3 * 86400 + 1)
        for _ in range(100):
            store.set(b"other", b"")
        self.assertEqual(len(store.table.tombstones), 0)

    def test_deleted_and_stored_again(self) -> None:
        """Entries of deleted documents are left behind, for the same second too, one for each."""
        store = self.store_of(100)
        for _ in range(9_000):
            store.set(b"a", b"", 0, 500)
            store.delete(b"a")
        self.assertLess(store.table.due.entries, 1_100)
        store.set(b"a", b"", 0, 500)
        self.clock.advance(501)
        store.set(b"b", b"")
        self.assertEqual(stat(store, "curr_items"), 1)
        check_books(store)

    def test_cleaning_up_is_spread(self) -> None:
        """However many entries are left behind, no single write looks at more than a few."""
        store = self.store_of(3_000)
        for number in range(2_000):
            store.set(b"k%d" % number, b"", 0, 90_000 + number)
        looked = 0
        is_due = store.table._is_due

        def count(second: int, key: Key) -> bool:
            nonlocal looked
            looked += 1
            return is_due(second, key)

        store.table._is_due = count  # type: ignore[method-assign]
        total = 0
        for expiry in range(20_000, 100, -1):
            store.set(b"a", b"", 0, expiry)
            self.assertLessEqual(looked, 8)
            total, looked = total + looked, 0
        self.assertGreater(total, 10_000)
        self.assertLess(store.table.due.entries, 2 * 2_001 + 1_100)
        check_books(store)

    def test_refusing(self) -> None:
        """Without eviction a full store refuses what needs more memory, and changes nothing."""
        store = self.store_of(2, evict=False)
        self.put(store, "ab")
        for answer in (
            store.set(b"c", b""),
            store.add(b"c", b""),
            store.increment(b"c", 1, 1, 0),
            store.append(b"a", b"x"),
            store.prepend(b"a", b"x"),
            store.replace(b"a", b"v" * 100),
        ):
            self.assertIs(answer, Refusal.NO_MEMORY)
        self.assertEqual(self.left(store), "ba")
        self.assertEqual(store.stats()["store_no_memory"], 6)
        self.assertIsInstance(store.replace(b"a", b"v" * 99), Document)
        self.assertIsInstance(store.replace(b"a", b"v" * 50), Document)
        self.assertIsInstance(store.append(b"a", b"v" * 49), Document)
        store.delete(b"b")
        self.put(store, "c")

    def test_refusing_store_takes_back_dead_memory(self) -> None:
        """Without eviction, what has died in whatever way makes room before a write is refused."""
        for kill in (
            lambda store: self.clock.advance(11),
            lambda store: store.flush(),
            lambda store: store.drop_collection(8),
        ):
            store = MemoryStore(self.clock.seconds, 100 * ITEM, evict=False)
            while isinstance(
                store.set((8, b"%d" % len(store.table.items)), b"x" * 40, 0, 10), Document
            ):
                pass
            kill(store)
            self.assertIsInstance(store.set(b"a", b"v" * 99 * ITEM), Document)
            check_books(store)

    def test_larger_than_everything(self) -> None:
        """A document larger than the limit is TOO_BIG and pushes nothing out."""
        store = self.store_of(4)
        self.put(store, "abcd")
        for key in (b"a", b"e", (8, b"e")):
            self.assertIs(store.set(key, b"v" * 4 * ITEM), Refusal.TOO_BIG)
        self.assertIs(store.append(b"a", b"v" * 4 * ITEM), Refusal.TOO_BIG)
        self.assertEqual(sorted(self.left(store)), list("abcd"))
        self.assertEqual(store.stats()["evictions"], 0)

    def test_exactly_the_limit(self) -> None:
        """A document that takes the whole limit fits, one byte more does not."""
        cases: list[tuple[Key, int]] = [(b"k", 1), ((8, b"k"), 1 + COLLECTION_OVERHEAD)]
        for key, more in cases:
            store = self.store_of(2)
            self.put(store, "ab")
            room = 2 * ITEM - ITEM_OVERHEAD - more
            self.assertIs(store.set(key, b"v" * (room + 1)), Refusal.TOO_BIG)
            self.assertEqual(self.left(store), "ab")
            self.assertIsInstance(store.set(key, b"v" * room), Document)
            self.assertEqual(store.stats()["bytes"], 2 * ITEM)

    def test_item_and_value_limits(self) -> None:
        """Above max_value, or max_item for key and value together, a write is TOO_BIG."""
        store = MemoryStore(self.clock.seconds, max_item=20, max_value=15)
        self.assertIsInstance(store.set(b"k" * 5, b"v" * 15), Document)
        self.assertIs(store.set(b"k" * 6, b"v" * 15), Refusal.TOO_BIG)
        self.assertIs(store.set((8, b"k" * 6), b"v" * 15), Refusal.TOO_BIG)
        self.assertIs(store.set(b"k", b"v" * 16), Refusal.TOO_BIG)
        self.assertIs(store.append(b"k" * 5, b"v"), Refusal.TOO_BIG)
        self.assertEqual(store.stats()["store_too_large"], 4)

    def test_flush_does_the_work_later(self) -> None:
        """A flush of many documents returns at once; the writes after it free the memory."""
        store = self.store_of(10_000)
        for number in range(5000):
            store.set(b"%d" % number, b"")
        full = store.stats()["bytes"]
        store.flush()
        self.assertEqual((store.stats()["curr_items"], store.stats()["bytes"]), (0, full))
        for number in range(5000 // 8 + 1):
            store.set(b"%d" % (number % 10), b"")
        self.assertLess(stat(store, "bytes"), 11 * ITEM)

    def test_drop_does_the_work_later(self) -> None:
        """A dropped collection is swept by the writes that follow, then nothing of it is kept."""
        store = self.store_of(10_000)
        for number in range(2000):
            store.set((8, b"%d" % number), b"")
        store.drop_collection(8)
        self.assertGreater(stat(store, "curr_items"), 1900)
        for _ in range(2000 // 8 + 1):
            store.set(b"k", b"")
        self.assertEqual(store.stats()["curr_items"], 1)
        self.assertEqual((store.table._dropped, store.table.sweeping), ({}, []))
        self.assertEqual(store.table.find, store.table.items.get)

    def test_dropped_twice(self) -> None:
        """What a first drop has not given back yet stays gone when a second one is through."""
        store = self.store_of(1000)
        for number in range(100):
            store.set((8, b"%d" % number), b"")
        store.drop_collection(8)
        store.set((8, b"again"), b"")
        store.drop_collection(8)
        while len(store.table.sweeping) > 1:
            store.set(b"other", b"")
        keys = [key for key in store.table.items if isinstance(key, tuple)]
        self.assertGreater(len(keys), 50)
        self.assertEqual({store.get(key) for key in keys}, {None})

    def test_any_sequence_stays_below_the_limit(self) -> None:
        """Whatever is written, deleted, flushed and dropped, memory is below the limit."""

        @examples(60)
        @given(st.integers(0, 1 << 32), st.booleans())
        def check(seed: int, evict: bool) -> None:
            rng = random.Random(seed)
            store = MemoryStore(self.clock.seconds, 20 * ITEM, evict)
            for _ in range(300):
                self.random_step(rng, store)
                self.assertLessEqual(stat(store, "bytes"), 20 * ITEM)
            check_books(store)

        check()

    def random_step(self, rng: random.Random, store: MemoryStore) -> None:
        """Do one thing to a store, writing most of the time."""
        name = b"%d" % rng.randrange(60)
        key: Key = name if rng.random() < 0.6 else (rng.choice((8, 9)), name)
        choice = rng.random()
        if choice < 0.6:
            store.set(key, b"v" * rng.choice((0, 50, 99, 1000, 5000)), 0, rng.choice((0, 0, 1, 9)))
        elif choice < 0.7:
            store.append(key, b"w" * rng.choice((1, 300)))
        elif choice < 0.8:
            store.get(key)
        elif choice < 0.86:
            store.delete(key)
        elif choice < 0.89:
            store.touch(key, rng.choice((0, 3)))
        elif choice < 0.93:
            self.random_attribute(rng, store, key)
        elif choice < 0.97:
            self.clock.advance(rng.choice((0.1, 1, 5)))
        elif choice < 0.985:
            store.drop_collection(rng.choice((8, 9)))
        else:
            store.flush(rng.choice((0, 2)))

    def random_attribute(self, rng: random.Random, store: MemoryStore, key: Key) -> None:
        """Give a document, deleted or not, an attribute that may outlive it."""
        path = rng.choice((b"_sys", b"user"))
        value = b'"' + b"v" * rng.choice((1, 500)) + b'"'
        spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, path, value)
        flags = DocFlag.MKDOC | DocFlag.ACCESS_DELETED
        store.mutate_in(key, [spec], flags | rng.choice((0, DocFlag.CREATE_AS_DELETED)))

    def test_larger_tombstone(self) -> None:
        """The attributes of a deleted document that grow never take more than the limit."""
        flags = DocFlag.MKDOC | DocFlag.ACCESS_DELETED | DocFlag.CREATE_AS_DELETED
        for size in range(3 * ITEM):
            store = self.store_of(4)
            self.put(store, "ab")
            for length in (50, size):
                value = b'"' + b"v" * length + b'"'
                spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", value)
                store.mutate_in(b"t", [spec], flags)
                self.assertLessEqual(stat(store, "bytes"), 4 * ITEM)
            check_books(store)

    def test_tombstones_go_before_the_living(self) -> None:
        """What is kept of deleted documents makes room first, and is gone after three days."""
        store = self.store_of(4)
        flags = DocFlag.ADD | DocFlag.CREATE_AS_DELETED
        spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1")
        self.put(store, "abc")
        store.mutate_in(b"t", [spec], flags)
        self.assertEqual(self.left(store), "bc")
        self.put(store, "de")
        self.assertEqual(self.left(store), "bcde")
        store.delete(b"b")
        store.delete(b"c")
        store.mutate_in(b"t", [spec], flags)
        self.clock.advance(3 * 86400 + 1)
        self.put(store, "d")
        self.assertEqual(store.stats()["bytes"], 2 * ITEM)
        check_books(store)

    def test_no_memory_for_attributes(self) -> None:
        """Without eviction, attributes that do not fit are refused and change nothing."""
        store = self.store_of(2, evict=False)
        self.put(store, "ab")
        spec = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1")
        for key, flags in ((b"a", 0), (b"c", DocFlag.ADD), (b"d", DocFlag.ADD | 0x08)):
            self.assertIs(store.mutate_in(key, [spec], flags), Refusal.NO_MEMORY)
        self.assertEqual(stat(store, "store_no_memory"), 3)
        check_books(store)
        small = MemoryStore(self.clock.seconds, max_value=10)
        small.set(b"a", b"12345")
        long = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b'"1234"')
        self.assertIs(small.mutate_in(b"a", [long]), Refusal.TOO_BIG)


class OverheadTests(SynchronousTestCase):
    """The overhead that counts against the limit is the one that there is."""

    def measured(self, fill: Callable[[MemoryStore], None]) -> tuple[float, int]:
        """Return how many bytes a store really takes, and how many it thinks it does."""
        gc.collect()
        tracemalloc.start()
        try:
            store = MemoryStore(time.time, 1 << 30)
            before = tracemalloc.get_traced_memory()[0]
            fill(store)
            real = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        return real, stat(store, "bytes")

    def test_overhead_is_measured(self) -> None:
        """What the store counts is between 95 and 130 percent of what it really takes."""
        # The last two are before and after a dict grows, which is where it takes least and most.
        sizes = (2000, 20_000, 22_000) if THOROUGH else (2000, 5_400, 5_500)
        for expiry in (0, 3600):
            for number in sizes:

                def plain(store: MemoryStore, count: int = number, expiry: int = expiry) -> None:
                    for i in range(count):
                        store.set(b"key%d" % i, b"%d" % i, 1000 + i, expiry)

                def named(store: MemoryStore, count: int = number, expiry: int = expiry) -> None:
                    for i in range(count):
                        store.set((8, b"key%d" % i), b"%d" % i, 1000 + i, expiry)

                def attributes(
                    store: MemoryStore, count: int = number, expiry: int = expiry
                ) -> None:
                    for i in range(count):
                        spec = MutationSpec(PathOp.DICT_UPSERT, 4, b"x%d" % i, b"%d" % i)
                        store.mutate_in(b"key%d" % i, [spec], DocFlag.ADD, expiry)

                for fill in (plain, named, attributes)[: 3 if number == 2000 else 2]:
                    real, counted = self.measured(fill)
                    self.assertTrue(0.95 < counted / real < 1.30, f"{counted / real} {number}")
