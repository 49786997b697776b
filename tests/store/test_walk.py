"""`Walk`, and the tables that are walked through while they change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.compiled import PURE_PYTHON
from kvproto.store import Document, Key, MemoryStore
from kvproto.store.statistics import Statistics
from kvproto.store.table import DocumentTable
from kvproto.store.walk import Walk
from tests.compiled import require_compiled
from tests.examples import examples

ADD, REMOVE, RENEW, REPLACE, TAKE, BURY = "add", "remove", "renew", "replace", "take", "bury"

# Mostly what moves dictionaries about: keys that are new, and gaps.
OFTEN = (ADD, ADD, REMOVE, REMOVE, RENEW, REPLACE, TAKE, BURY)
STEPS = st.lists(
    st.tuples(
        st.sampled_from((ADD, ADD, REMOVE, REMOVE, RENEW, REPLACE, TAKE, BURY)), st.integers(1, 40)
    ),
    max_size=30,
)


class Changing:
    """A table that is walked through while it changes.

    Attributes:
        seen: Keys that came, as they came.
        stayed: Keys that have been there since the walk began.
    """

    def __init__(self, documents: int, tombstones: int, gaps: int) -> None:
        self.table = DocumentTable(lambda: 0.0, 1 << 30, True, Statistics())
        self._made = 0
        for _ in range(documents):
            self.add()
        for _ in range(tombstones):
            self.bury()
        for number in range(gaps):
            self.remove(number * 3)
        self.stayed = {*self.table.items, *self.table.tombstones}
        self.seen: list[Key] = []
        self._walk: Iterator[list[Key]] | None = None

    def begin(self, most: int) -> None:
        """Begin the walk."""
        self._walk = self.table.walk(most)
        self.take()

    def take(self) -> bool:
        """Take a step; return whether it was not the last."""
        assert self._walk is not None
        keys = next(self._walk, [])
        self.seen += keys
        return bool(keys)

    def add(self) -> None:
        """Add a document under a new key."""
        self._made += 1
        self.put(b"%d" % self._made)

    def put(self, key: Key) -> None:
        """Add a document, or put it in the place of another one."""
        self.table.put(key, Document(b""), self.table.items.get(key), 0.0)

    def bury(self) -> None:
        """Add a tombstone."""
        self._made += 1
        self.table.bury(b"%d" % self._made, Document(b"", expires_at=1e9), 0.0)

    def remove(self, number: int) -> None:
        """Remove one document, and one tombstone, if there are any."""
        items, tombstones = self.table.items, self.table.tombstones
        if items:
            key = [*items][number % len(items)]
            self.table.remove(key, items[key])
            self._gone(key)
        if tombstones:
            key = [*tombstones][number % len(tombstones)]
            self.table.exhume(key)
            self._gone(key)

    def renew(self, number: int) -> None:
        """Remove one document, and store another one under its key."""
        items = self.table.items
        if items:
            key = [*items][number % len(items)]
            self.table.remove(key, items[key])
            self._gone(key)
            self.put(key)

    def _gone(self, key: Key) -> None:
        if hasattr(self, "stayed"):
            self.stayed.discard(key)

    def do(self, step: str, times: int) -> None:
        """Do something several times."""
        for number in range(times):
            if step == ADD:
                self.add()
            elif step == REMOVE:
                self.remove(times * 7 + number)
            elif step == RENEW:
                self.renew(times * 7 + number)
            elif step == REPLACE and self.table.items:
                self.put([*self.table.items][number % len(self.table.items)])
            elif step == TAKE:
                self.take()
            elif step == BURY:
                self.bury()


class CompiledTests(SynchronousTestCase):
    """With the compiled part."""

    pure = "0"

    def setUp(self) -> None:
        if self.pure == "0":
            require_compiled("kvproto.store._walk")
        self.enterContext(patch.dict("os.environ", {PURE_PYTHON: self.pure}))

    @examples(1000)
    @given(
        st.integers(0, 60), st.integers(0, 20), st.integers(0, 40), st.integers(1, 9), STEPS,
    )  # fmt: skip
    def test_what_stays_comes(
        self, documents: int, tombstones: int, gaps: int, most: int, steps: list[tuple[str, int]]
    ) -> None:
        """Whatever happens, what was there from the beginning to the end comes."""
        changing = Changing(documents, tombstones, gaps)
        changing.begin(most)
        for step, times in steps:
            changing.do(step, times)
        while changing.take():
            pass
        self.assertEqual(changing.stayed - {*changing.seen}, set())
        self.assertEqual(changing.table.walks, [])

    def test_nothing_changes(self) -> None:
        """All keys come once, at most as many at a time as asked for."""
        changing = Changing(25, 7, 3)
        pieces = [*changing.table.walk(10)]
        self.assertEqual([len(piece) for piece in pieces], [10, 10, 2, 4])
        self.assertEqual(
            [key for piece in pieces for key in piece],
            [*changing.table.items, *changing.table.tombstones],
        )

    def test_growing(self) -> None:
        """A table that only grows is listed once, up to where it began, however often it moves."""
        changing = Changing(100, 0, 0)
        changing.begin(1)
        while changing.take():
            changing.do(ADD, 50)
        self.assertEqual(changing.seen, [b"%d" % number for number in range(1, 101)])

    def test_ends(self) -> None:
        """A walk comes to an end, though more is added and removed than it can pass."""
        changing = Changing(50, 0, 0)
        changing.begin(1)
        steps = 0
        while changing.take():
            for _ in range(200):
                changing.add()
                changing.remove(0)
            steps += 1
            self.assertLess(steps, 200)

    def test_flushed(self) -> None:
        """What is flushed meanwhile is not looked for any more."""
        store = MemoryStore(lambda: 1e9)
        for number in range(300):
            store.set(b"%d" % number, b"")
        pieces = store.pieces()
        self.assertEqual(len(next(pieces)), 100)
        store.flush()
        for number in range(50):
            store.set(b"new%d" % number, b"")
        self.assertEqual([found for piece in pieces for found in piece], [])

    def test_given_up(self) -> None:
        """A walk that nobody ends is forgotten."""
        changing = Changing(30, 0, 0)
        changing.begin(10)
        self.assertEqual(len(changing.table.walks), 2)
        changing._walk = None
        self.assertEqual(changing.table.walks, [])


class PythonTests(CompiledTests):
    """Without it: keys are listed at once."""

    pure = "1"


class MovesTests(SynchronousTestCase):
    """When a dictionary is moved."""

    def setUp(self) -> None:
        self.native = require_compiled("kvproto.store._walk")

    def test_layout(self) -> None:
        """As long as the layout of a dictionary is the same, no entry of it has another place."""
        entries: OrderedDict[int, int] = OrderedDict()
        before, moved = self.places(entries), 0
        for number in range(400):
            layout = self.native.layout(entries)
            entries[number] = 0
            if number % 3 == 2:
                del entries[number - 2]
            places = self.places(entries)
            if self.native.layout(entries) != layout:
                moved += 1
            else:
                kept = before.keys() & places.keys()
                self.assertEqual(
                    {key: places[key] for key in kept}, {key: before[key] for key in kept}
                )
            before = places
        self.assertGreater(moved, 4)

    def places(self, entries: OrderedDict[int, int]) -> dict[int, int]:
        """Return the place behind each entry."""
        found: dict[int, int] = {}
        at = 0
        while True:
            keys, at = self.native.take(entries, at, 1)
            if not keys:
                return found
            found[keys[0]] = at

    def test_past_the_end(self) -> None:
        """A place behind the last entry is the end."""
        self.assertEqual(self.native.take({1: 1}, 500, 5), ([], 500))

    def test_moved(self) -> None:
        """A walk goes back no further than keys were removed."""
        entries: OrderedDict[int, int] = OrderedDict.fromkeys(range(100), 0)
        walk = Walk(entries)
        self.assertEqual(walk.take(50), [*range(50)])
        for number in (3, 4):
            walk.removed()
            del entries[number]
        for number in range(1000, 2000):
            entries[number] = 0
            walk.added()
        self.assertEqual(walk.take(4), [50, 51, 52, 53])
