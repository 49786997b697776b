"""The short ways of SET and ``mg`` do what the general way does, to the last counter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import (
    DocFlag,
    Document,
    Key,
    Mark,
    MemoryStore,
    MetaRead,
    MutationSpec,
    PathFlag,
    PathOp,
    Refusal,
    last_access,
    marks_at,
)
from kvproto.store.jsoncheck import Kind
from kvproto.store.table import COLLECTION_OVERHEAD, ITEM_OVERHEAD
from kvproto.wire.meta import MetaCommand, parse_meta
from tests.examples import examples
from tests.store.test_stateful import START, check_books

keys: st.SearchStrategy[Key] = st.sampled_from([b"a", b"a", b"b" * 80, (8, b"a"), (8, b"b")])
values = st.sampled_from([b"", b"1", bytes(300), bytes(301), bytes(2000)])
expiries = st.sampled_from([0, 0, 1, 1, 5, int(START) - 1])
WITH_XATTR = [MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1")]


class Careful(MemoryStore):
    """A store without the short ways."""

    def set_plainly(self, *_: Any) -> None:
        return None

    def read_plainly(self, *_: Any) -> None:
        return None


def read(store: MemoryStore, key: Key, recache: int, makes: bool) -> Any:
    """Read as ``mg`` does; return the document, and what was known of it before."""
    store.table.note_reads()
    now = store.now()
    found = store.read_plainly(key, now, marks_at(Mark.FETCHED, now), recache, makes)
    if found is not None:
        document, marks = found
        return document and (document, marks, last_access(marks, document.cas), False)
    flags = [b"R%d" % recache] * bool(recache) + [b"N1"] * makes
    command = parse_meta("mg", [b"mg", b"k", *flags])
    assert isinstance(command, MetaCommand)
    answer = store.meta(key, command)
    if not isinstance(answer, MetaRead):
        return answer
    return answer.document, answer.marks, answer.accessed, answer.won


class Pair(RuleBasedStateMachine):
    """Asks a store with the short way and one without the same, and compares everything."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.rightNow = START

    @initialize(
        limit=st.sampled_from([3 * ITEM_OVERHEAD, 10_000, 1 << 30]),
        evict=st.booleans(),
        max_item=st.sampled_from([None, 302, 500]),
        max_value=st.sampled_from([300, 1 << 20]),
    )
    def make(self, limit: int, evict: bool, max_item: int | None, max_value: int) -> None:
        self.stores = [
            kind(self.clock.seconds, limit, evict, max_item, max_value=max_value, uuid=1)
            for kind in (MemoryStore, Careful)
        ]

    def both(self, ask: Callable[[MemoryStore], Any]) -> Any:
        """Ask both stores; return the one answer."""
        answers = [ask(store) for store in self.stores]
        assert answers[0] == answers[1]
        return answers[0]

    @rule(key=keys, value=values, expiry=expiries, flags=st.integers(0, 1), kind=st.integers(0, 1))
    def set_plainly(self, key: Key, value: bytes, expiry: int, flags: int, kind: int) -> None:
        self.both(lambda store: store.set(key, value, flags, expiry, datatype=kind))

    @rule(key=keys, expiry=expiries, keep=st.booleans())
    def set_what_is_there(self, key: Key, expiry: int, keep: bool) -> None:
        """The very same value keeps what is known of it."""

        def ask(store: MemoryStore) -> Any:
            found = store.get(key)
            if found is None:
                return None
            found.kind = Kind.JSON
            return store.set(key, found.value, 0, expiry, preserve_expiry=keep)

        self.both(ask)

    @rule(key=keys, value=values, right=st.booleans())
    def set_with_cas(self, key: Key, value: bytes, right: bool) -> None:
        def ask(store: MemoryStore) -> Any:
            found = store.get(key)
            return store.set(key, value, cas=found.cas if found and right else 7)

        self.both(ask)

    @rule(key=keys, recache=st.sampled_from([0, 0, 1, 2, 5, 2592001]), makes=st.booleans())
    def read(self, key: Key, recache: int, makes: bool) -> None:
        """As ``mg`` does, which may make something, or be told to fetch it anew."""
        self.both(lambda store: read(store, key, recache, makes))

    @rule(key=keys)
    def add_attribute(self, key: Key) -> None:
        self.both(lambda store: store.mutate_in(key, WITH_XATTR, DocFlag.MKDOC))

    @rule(key=keys)
    def delete(self, key: Key) -> None:
        self.both(lambda store: store.delete(key))

    @rule(key=keys, expiry=expiries)
    def touch(self, key: Key, expiry: int) -> None:
        self.both(lambda store: store.touch(key, expiry))

    @rule(key=keys, what=st.sampled_from(["lock", "flush", "flush later", "drop", "drop"]))
    def seldom(self, key: Key, what: str) -> None:
        asked: dict[str, Callable[[MemoryStore], Any]] = {
            "lock": lambda store: store.get_and_lock(key, 1),
            "flush": lambda store: store.flush(0),
            "flush later": lambda store: store.flush(1),
            "drop": lambda store: store.drop_collection(8),
        }
        self.both(asked[what])

    @rule(seconds=st.sampled_from([1e-6, 0.25, 1.0, 1.0, 1.0, 2.0, 4 * 86400.0, -0.5]))
    def wait(self, seconds: float) -> None:
        self.clock.rightNow += seconds

    @invariant()
    def everything_is_the_same(self) -> None:
        if not hasattr(self, "stores"):
            return
        for store in self.stores:
            check_books(store)
        self.both(everything_in)


def everything_in(store: MemoryStore) -> Any:
    """Return all that a store keeps, order of use included."""
    plain = [
        {name: value for name, value in vars(part).items() if type(value) in {int, float}}
        for part in (store, store.table, store.statistics)
    ]
    tables = [store.table.items, store.table.tombstones, *store.table.garbage]
    return (
        plain,
        [[(key, asdict(document)) for key, document in table.items()] for table in tables],
        store.table.due._keys,
        store.table.collections,
        store.table.sweeping,
        store.table._dropped,
    )


class PlainTests(SynchronousTestCase):
    """`MemoryStore`, with and without its short ways."""

    def test_same(self) -> None:
        """Any sequence of operations, with time passing, leaves both stores the same."""
        Pair.TestCase.settings = examples(400, steps=50)
        case = Pair.TestCase()
        case.runTest()

    def test_it_is_taken(self) -> None:
        """New and known keys, with expiry and without, go the short way, in a full store too."""

        class Short(MemoryStore):
            def carry_out(self, *_: Any) -> Any:
                raise AssertionError("the general way")

        store = Short(lambda: START, 2 * ITEM_OVERHEAD)
        for _ in range(2):
            for expiry in (0, 10):
                self.assertIsInstance(store.set(b"a", b"1", 5, expiry, datatype=1), Document)
                store.set(b"b", b"")
        self.assertNotEqual(store.stats()["evictions"], 0)
        store = Short(lambda: START, 2 * (ITEM_OVERHEAD + COLLECTION_OVERHEAD))
        for name in (b"a", b"b", b"c", b"a"):
            self.assertIsInstance(store.set((8, name), b""), Document)
        self.assertEqual(store.table.collections, {8: {(8, b"a"): None}})
        now = store.set((8, b"a"), b"")
        self.assertIsInstance(store.set((8, b"a"), b"", cas=now.cas), Document)
        self.assertRaises(AssertionError, store.set, (8, b"a"), b"", cas=1)

    def test_it_gives_up_before_it_changes_anything(self) -> None:
        """What is refused is counted once, by the general way."""
        store = MemoryStore(lambda: START, max_value=10)
        self.assertIs(store.set(b"a", bytes(11)), Refusal.TOO_BIG)
        store.set(b"a", b"")
        store.get_and_lock(b"a", 10)
        self.assertIs(store.set(b"a", b""), Refusal.LOCKED)
        stats = store.stats()
        self.assertEqual([stats["cmd_set"], stats["total_items"]], [3, 1])

    def test_only_reads_are_noted(self) -> None:
        """A SET that is refused, and a list of all documents, leave what was not read unread."""
        store = MemoryStore(lambda: START, max_value=10)
        store.table.note_reads()
        store.set(b"a", b"")
        store.set(b"a", bytes(11))
        [[(_, document)]] = store.pieces()
        self.assertFalse(document.marks & Mark.FETCHED)
        store.get(b"a")
        self.assertTrue(document.marks & Mark.FETCHED)

    def test_the_expired(self) -> None:
        """A document that has expired is no old one, also in the second before chores find it."""
        clock = Clock()
        clock.rightNow = START
        for wait, reclaimed in ((1.0, 1), (2.0, 2)):
            store = MemoryStore(clock.seconds)
            store.set(b"a", b"1", 0, 1)
            store.set(b"b", b"1", 0, 1)
            clock.advance(wait)
            store.set(b"a", b"1")
            self.assertEqual(store.stats()["reclaimed"], reclaimed)

    @examples()
    @given(st.lists(st.floats(0, 2e9) | st.floats(1.7e9, 1.7e9 + 1e-3), max_size=50))
    def test_cas(self, moments: list[float]) -> None:
        """A CAS is the clock's nanoseconds less their low 16 bits, or the last one and one."""
        clock = Clock()
        store = MemoryStore(clock.seconds)
        last = 0
        for clock.rightNow in moments:
            document = store.set(b"a", b"")
            assert isinstance(document, Document)
            expected = max(last + 1, int(clock.rightNow * 1e9) & 0x7FFFFFFF_FFFF0000)
            self.assertEqual(document.cas, expected)
            last = document.cas
