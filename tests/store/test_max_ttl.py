"""Documents of a store, or of a collection, that all expire in some time at the latest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Document, Key, LookupSpec, MemoryStore, MutationSpec, PathOp
from kvproto.wire.subdoc_terms import DocFlag

NOW = 1_700_000_000
DAY = 86400
LIMIT = 60
K = b"k"
UPSERT = [MutationSpec(PathOp.DICT_UPSERT, 0, b"a", b"1")]
MONTHS = 90 * DAY
Ask = Callable[[Any, int], Any]

STORING: dict[str, Ask] = {
    "set": lambda store, expiry: store.set(K, b"{}", 0, expiry),
    "set with a CAS": lambda store, expiry: store.set(K, b"{}", 0, expiry, store.get(K).cas),
    "replace": lambda store, expiry: store.replace(K, b"{}", 0, expiry),
    "touch": lambda store, expiry: store.touch(K, expiry),
    "get_and_touch": lambda store, expiry: store.get_and_touch(K, expiry),
    "mutate_in": lambda store, expiry: store.mutate_in(K, UPSERT, 0, expiry),
}
"""What gives a document that is there another expiry."""

MAKING: dict[str, Ask] = {
    "add": lambda store, expiry: store.add(b"new", b"{}", 0, expiry),
    "increment": lambda store, expiry: store.increment(b"new", 1, 0, expiry),
    "mutate_in": lambda store, expiry: store.mutate_in(b"new", UPSERT, DocFlag.MKDOC, expiry),
    "preserving": lambda store, expiry: store.set(b"new", b"", 0, expiry, preserve_expiry=True),
}
"""What makes one with an expiry."""

CHANGING: dict[str, Callable[[Any], Any]] = {
    "append": lambda store: store.append(K, b"1"),
    "prepend": lambda store: store.prepend(K, b"1"),
    "increment": lambda store: store.increment(K, 1, 0, 0),
}
"""What leaves it as it is."""

PRESERVING: dict[str, Callable[[Any], Any]] = {
    "set": lambda store: store.set(K, b"", preserve_expiry=True),
    "replace": lambda store: store.replace(K, b"", preserve_expiry=True),
    "mutate_in": lambda store: store.mutate_in(K, UPSERT, preserve_expiry=True),
}


class MaxTTLTests(SynchronousTestCase):
    """All operations."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = float(NOW)
        self.store: Any = MemoryStore(self.clock.seconds)

    def expiry(self, key: Key = K) -> int:
        """Return how long a document has from now; -1 for ever."""
        document = self.store.get(key)
        assert isinstance(document, Document)
        return document.expiry - int(self.clock.seconds()) if document.expiry else -1

    def test_storing(self) -> None:
        """None and longer ones become the limit, shorter ones stay, as kv_engine has it."""
        self.store.limit_ttl(LIMIT, {})
        for given, kept in ((0, LIMIT), (LIMIT, LIMIT), (LIMIT + 1, LIMIT), (5, 5),
                            (NOW + 10 * DAY, LIMIT), (NOW + 7, 7)):  # fmt: skip
            for name, ask in STORING.items():
                self.store.set(K, b"{}", 0, 3)
                ask(self.store, given)
                self.assertEqual(self.expiry(), kept, (name, given))
            for name, ask in MAKING.items():
                self.store.delete(b"new")
                ask(self.store, given)
                self.assertEqual(self.expiry(b"new"), kept, (name, given))

    def test_keys_are_no_collections(self) -> None:
        """A collection's own limit is not for keys whose first byte is its number."""
        self.store.limit_ttl(LIMIT, {K[0]: 5, 9: 0})
        for key, kept in ((K, LIMIT), ((K[0], K), 5), ((8, K), LIMIT), ((9, K), -1)):
            self.store.set(key, b"")
            self.assertEqual(self.expiry(key), kept, key)

    def test_expires(self) -> None:
        """Then it is gone, and what is touched meanwhile lives on from then."""
        self.store.limit_ttl(LIMIT, {})
        self.store.set(K, b"")
        self.store.set(b"other", b"")
        self.clock.advance(LIMIT - 1)
        self.store.touch(K, 0)
        self.clock.advance(1)
        self.assertIsNone(self.store.get(b"other"))
        self.assertEqual(self.expiry(), LIMIT - 1)
        self.clock.advance(LIMIT)
        self.assertIsNone(self.store.get(K))

    def test_already_expired(self) -> None:
        """A time in the past is still one."""
        self.store.limit_ttl(LIMIT, {})
        self.store.set(K, b"", 0, NOW - 5)
        self.assertIsNone(self.store.get(K))

    def test_changed_later(self) -> None:
        """What was stored before has no limit until it is stored again; only that is preserved."""
        for old, kept in ((0, -1), (NOW + MONTHS, MONTHS)):
            for name, change in CHANGING.items():
                self.store.limit_ttl(0, {})
                self.store.set(K, b"5", 0, old)
                self.store.limit_ttl(LIMIT, {})
                self.assertEqual(self.expiry(), kept)
                change(self.store)
                self.assertEqual(self.expiry(), LIMIT, name)
            for name, change in PRESERVING.items():
                self.store.limit_ttl(0, {})
                self.store.set(K, b"{}", 0, old)
                self.store.limit_ttl(LIMIT, {})
                change(self.store)
                self.assertEqual(self.expiry(), kept, name)

    def test_touched_as_before(self) -> None:
        """A touch that would change nothing does, if that is more than the document may have."""
        for expiry in (0, NOW + MONTHS):
            for touch in (self.store.touch, self.store.get_and_touch):
                self.store.limit_ttl(0, {})
                before = self.store.set(K, b"v", 0, expiry)
                self.store.limit_ttl(LIMIT, {})
                after = touch(K, expiry)
                self.assertEqual((self.expiry(), after.value), (LIMIT, b"v"))
                self.assertGreater(after.cas, before.cas)
                self.assertEqual(after.seqno, before.seqno + 1)
                self.assertEqual(before.expires_at, float(expiry))

    def test_reading(self) -> None:
        """Who reads, locks or unlocks changes no expiry."""
        self.store.set(K, b"v")
        self.store.limit_ttl(LIMIT, {})
        self.store.get(K)
        self.store.lookup_in(K, [LookupSpec(PathOp.GET_DOC, 0, b"")])
        locked = self.store.get_and_lock(K, 5)
        self.store.unlock(K, locked.cas)
        self.assertEqual(self.expiry(), -1)

    def test_refused(self) -> None:
        """What is refused changes nothing."""
        before = self.store.set(K, b"v")
        self.store.limit_ttl(LIMIT, {})
        self.store.add(K, b"w")
        self.store.set(K, b"w", cas=before.cas + 1)
        self.store.increment(K, 1, 0, 0)
        self.assertIs(self.store.get(K), before)

    def test_collections(self) -> None:
        """A collection's own limit holds for it, whatever it is; others have the store's."""
        self.store.limit_ttl(LIMIT, {8: 5, 9: 2 * LIMIT, 10: 0})
        for key, kept in (
            (K, LIMIT), ((8, K), 5), ((9, K), 2 * LIMIT), ((10, K), -1), ((11, K), LIMIT),
        ):  # fmt: skip
            self.store.set(key, b"v")
            self.assertEqual(self.expiry(key), kept, key)

    def test_default_collection(self) -> None:
        """The default collection may have its own limit, too."""
        self.store.limit_ttl(LIMIT, {0: 5, 1: 7})
        self.store.set(K, b"v")
        self.store.set((8, K), b"v")
        self.assertEqual((self.expiry(), self.expiry((8, K))), (5, LIMIT))

    def test_only_in_a_collection(self) -> None:
        """Where only a collection has one, nothing else expires."""
        self.store.limit_ttl(0, {8: 5})
        self.store.set(K, b"v")
        self.store.set((8, K), b"v")
        self.assertEqual((self.expiry(), self.expiry((8, K))), (-1, 5))

    def test_beyond_a_month(self) -> None:
        """A limit is seconds from now, however many."""
        self.store.limit_ttl(MONTHS, {})
        self.store.set(K, b"v")
        self.assertEqual(self.expiry(), MONTHS)

    def test_plain(self) -> None:
        """Without a limit SET takes the short way, with one it does not, then it does again."""
        ask = lambda: self.store.set_plainly(K, b"v", 0, 0, 0)  # noqa: E731
        self.assertIsNotNone(ask())
        self.store.limit_ttl(0, {8: LIMIT})
        self.assertIsNone(ask())
        self.store.limit_memory(1 << 20)
        self.assertIsNone(ask())
        self.store.limit_ttl(0, {8: 0})
        self.assertIsNotNone(ask())

    def test_deleted(self) -> None:
        """A tombstone lives as long as ever."""
        self.store.limit_ttl(LIMIT, {})
        self.store.mutate_in(K, [MutationSpec(PathOp.DICT_UPSERT, 4, b"_s", b"1")], DocFlag.MKDOC)
        self.store.delete(K)
        grave = self.store.table.tombstones[K]
        self.assertGreater(grave.expires_at, NOW + DAY)
