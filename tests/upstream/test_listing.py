"""Listing what is in an engine and putting it back, on an engine in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.errors import StoreUnavailable
from kvproto.store import (
    DocFlag,
    Document,
    IListableStore,
    Key,
    MutationSpec,
    PathFlag,
    PathOp,
    Refusal,
)
from kvproto.upstream import EngineStore
from kvproto.upstream.listing import _SIZE
from kvproto.upstream.resp import EngineFailure, Fate
from tests.upstream.fake_engine import FakeEngine
from tests.upstream.test_store import turn

XATTR = [MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_x", b'"1"')]


class ListingTests(SynchronousTestCase):
    """`EngineStore` as an `IListableStore`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_700_000_000.0
        self.content: dict[bytes, bytes] = {}
        self.engine = FakeEngine(self.clock, self.content)
        self.store = self.make("b")

    def make(self, bucket: str) -> EngineStore:
        return EngineStore(self.engine, bucket, self.clock.seconds)

    def ask(self, answer: Any) -> Any:
        return self.successResultOf(turn(self.clock, answer))

    def everything(self, store: EngineStore) -> dict[Key, Document]:
        found: dict[Key, Document] = {}
        for piece in store.pieces():
            found.update(self.ask(piece))
        return found

    def fill(self, store: EngineStore) -> None:
        self.ask(store.set(b"plain:1", b"value\0", 7, 0, datatype=1))
        self.ask(store.set((8, b"named"), b"x", 0, 1000))
        self.ask(store.mutate_in(b"xattr", XATTR, DocFlag.MKDOC))
        self.ask(store.mutate_in(b"dead", XATTR, DocFlag.MKDOC))
        self.ask(store.delete(b"dead"))
        self.ask(store.set(b"expired", b"", 0, 1))
        self.ask(store.set(b"locked", b"1"))
        self.ask(store.get_and_lock(b"locked", 30))
        self.clock.advance(2)

    def test_interface(self) -> None:
        verifyObject(IListableStore, self.store)

    def test_everything_and_back(self) -> None:
        """All that is alive is listed, and the same after it was put into another bucket."""
        self.fill(self.store)
        found = self.everything(self.store)
        self.assertEqual(set(found), {b"plain:1", (8, b"named"), b"xattr", b"dead", b"locked"})
        self.assertTrue(found[b"dead"].deleted)
        other = self.make("b:1")
        for key, document in found.items():
            self.assertIsNone(self.ask(other.put_back(key, document)))
        again = self.everything(other)
        for key, document in found.items():
            document.locked_until = 0.0
            document.seqno = document.cas
            self.assertEqual(again[key], document)
        self.assertEqual(self.everything(self.store).keys(), found.keys())
        self.assertGreater(self.ask(other.append(b"plain:1", b"")).cas, found[b"plain:1"].cas)

    def test_what_is_over(self) -> None:
        """What was flushed, or is of a dropped collection, is not listed."""
        self.fill(self.store)
        self.ask(self.store.drop_collection(8))
        self.assertNotIn((8, b"named"), self.everything(self.store))
        self.ask(self.store.flush())
        self.ask(self.store.set(b"new", b""))
        self.assertEqual(set(self.everything(self.store)), {b"new"})

    def test_pieces_are_bounded(self) -> None:
        """Documents are asked for by their sizes: what is large comes alone."""
        for number in range(5):
            self.ask(self.store.set(b"large%d" % number, bytes(_SIZE // 2)))
        for number in range(300):
            self.ask(self.store.set(b"%d" % number, bytes(100)))
        sizes = [
            sum(len(document.value) for _, document in self.ask(piece))
            for piece in self.store.pieces()
        ]
        self.assertEqual(sum(sizes), 5 * (_SIZE // 2) + 300 * 100)
        self.assertLessEqual(max(sizes), _SIZE)

    def test_put_back(self) -> None:
        """What is there is replaced; what has expired, or is too large, leaves nothing new."""
        self.ask(self.store.set(b"k", b"old"))
        self.ask(self.store.get_and_lock(b"k", 30))
        self.assertIsNone(self.ask(self.store.put_back(b"k", Document(b"new", 3, 77))))
        found = self.ask(self.store.get(b"k"))
        self.assertEqual((found.value, found.flags, found.cas), (b"new", 3, 77))
        self.assertEqual(found.locked_until, 0.0)
        gone = Document(b"", cas=1, expires_at=self.clock.seconds())
        self.assertIsNone(self.ask(self.store.put_back(b"k", gone)))
        self.assertIsNone(self.ask(self.store.get(b"k")))
        large = Document(bytes(21 << 20), cas=1)
        self.assertIs(self.ask(self.store.put_back(b"k", large)), Refusal.TOO_BIG)
        self.engine.before = lambda words: (
            EngineFailure(Fate.NO_MEMORY, "no-memory", "") if words[0] == b"SET" else None
        )
        answer = self.store.put_back(b"k", Document(b"", cas=1))
        self.assertIs(self.ask(answer), Refusal.NO_MEMORY)

    def failing(self) -> str:
        """List; return why that fails."""
        for piece in self.store.pieces():
            turn(self.clock, piece)
            result: list[Any] = []
            piece.addErrback(result.append)
            if result:
                result[0].trap(StoreUnavailable)
                return str(result[0].getErrorMessage())
        return ""

    def test_no_answer(self) -> None:
        """An engine that does not answer is no empty bucket."""
        self.fill(self.store)
        for verb in (b"SCAN", b"STRLEN", b"GET"):
            self.engine.before = lambda words, verb=verb: (  # type: ignore[misc]
                EngineFailure(Fate.UNANSWERED, "timeout", "too slow")
                if words[0] == verb and not words[1].startswith(b"kvtls-epochs")
                else None
            )
            self.assertIn("too slow", self.failing())
        self.engine.before = lambda words: None
        self.engine.unready = "engine fake: away"
        self.assertEqual(self.failing(), "engine fake: away")

    def test_slots_move(self) -> None:
        """When slots change their servers meanwhile the list is not to be trusted."""
        self.fill(self.store)
        other = self.engine._server("other", 1)
        places = iter([self.engine._server_there] * 16384 + [other] * 16384)
        self.engine.server_of = lambda slot: next(places)  # type: ignore[method-assign]
        self.assertIn("slots have moved", self.failing())

    def test_stats_without_an_answer(self) -> None:
        """Of an engine that does not answer nothing is told that it alone knows."""
        self.ask(self.store.set(b"k", b""))
        stats = self.ask(self.store.stats())
        self.assertEqual((stats["curr_items"], stats["cmd_set"]), (1, 1))
        self.engine.before = lambda words: EngineFailure(Fate.UNANSWERED, "timeout", "")
        stats = self.ask(self.store.stats())
        self.assertEqual(stats["cmd_set"], 1)
        self.assertTrue({"curr_items", "bytes", "limit_maxbytes"}.isdisjoint(stats))

    def test_loaded(self) -> None:
        """`loaded` fires at once when epochs are known, else when they are."""
        waiting: Deferred[None] = self.store.loaded()
        self.assertNoResult(waiting)
        self.ask(waiting)
        self.successResultOf(self.store.loaded())
