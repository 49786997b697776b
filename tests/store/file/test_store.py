"""FileStore: the contract, and what a restart brings back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from kvproto.config import Sync
from kvproto.errors import OutcomeUnknown, StoreUnavailable
from kvproto.store import (
    DocFlag,
    Document,
    IStore,
    Key,
    LookupSpec,
    Mark,
    MutationSpec,
    PathFlag,
    PathOp,
    Refusal,
    accessed_at,
)
from kvproto.store.file.journal import TOGETHER_S
from kvproto.store.pieces import PIECE, at_once
from kvproto.testing.store import StoreContract
from kvproto.testing.store_case import START
from kvproto.testing.store_meta import MetaContract, meta_command
from kvproto.testing.store_subdoc import SubdocContract
from tests.examples import examples
from tests.store.file.support import FileCase, Threads

XATTRS = [
    MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_sys", '{"a":"\u20ac"}'.encode()),
    MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"user", b'"x"'),
]


class EverySecondContractTests(StoreContract, SubdocContract, MetaContract, FileCase):
    """The contract, with ``sync=everysec``."""

    def setUp(self) -> None:
        FileCase.setUp(self)
        StoreContract.setUp(self)

    def make_store(self, now: Callable[[], float]) -> IStore:
        for store in list(self.stores):
            self.kill(store)
        for path in self.directory.iterdir():
            path.unlink()
        opened: IStore = self.open()
        return opened

    def settle(self) -> None:
        for _ in range(20):
            self.clock.advance(0)


class AlwaysContractTests(EverySecondContractTests):
    """The contract, with ``sync=always``: answers by Deferred."""

    sync = Sync.ALWAYS


class RestartTests(FileCase):
    """What is there after the process has ended, and what is not."""

    def put_everything(self, store: Any) -> None:
        """Store one document of each kind."""
        store.set(b"plain", b"value \0\xff", 0xCAFE, 0, datatype=1)
        store.set((8, b"named"), b"", 7, 100)
        store.set(b"empty", b"")
        store.set(b"x" * 250, b"y" * 100_000)
        store.mutate_in(b"attributes", [*XATTRS, MutationSpec(PathOp.SET_DOC, 0, b"", b"{}")], 1)
        store.mutate_in((9, b"gone"), XATTRS, DocFlag.MKDOC)
        store.delete((9, b"gone"))
        store.set(b"counter", b"1")
        store.increment(b"counter", 41, 0, 0)
        store.append(b"empty", b"more")
        store.touch(b"plain", 50)
        store.set(b"deleted", b"")
        store.delete(b"deleted")
        store.set(b"expired at once", b"1")
        store.set(b"expired at once", b"2", 0, -1)
        store.set(b"discarded", b"")
        store.discard(b"discarded")

    def everything(self, store: Any) -> dict[Key, Any]:
        """Return all that is in a store, without its numbers for expiry's sake."""
        table = store._memory.table
        there = [(key, table.look(key)) for key in list(table.items)]  # dropped ones are not found
        return {
            key: (d.value, d.flags, d.cas, d.seqno, d.expires_at, d.datatype, d.xattrs, d.deleted)
            for key, d in [*there, *table.tombstones.items()]
            # What has expired is there until somebody looks, or until a restart.
            if d is not None and not 0 < d.expires_at <= store._memory.now()
        }

    def test_everything_comes_back(self) -> None:
        """Documents come back with all that belongs to them, however the process has ended."""
        for kill in (True, False):
            for sync in Sync:
                self.setUp()
                store = self.open(sync=sync)
                self.put_everything(store)
                before = self.everything(store)
                self.assertEqual(len(before), 7)
                again = self.again(store, kill=kill, sync=sync)
                self.assertEqual(self.everything(again), before)
                self.assertEqual((again.uuid, again.seqno), (store.uuid, store.seqno))
                found = again.lookup_in(
                    (9, b"gone"), [LookupSpec(PathOp.GET, PathFlag.XATTR, b"_sys.a")], 4
                )
                self.assertEqual(found.results[0][1], '"\u20ac"'.encode())

    def test_marks(self) -> None:
        """What is stale, won or was read outlives the process."""
        for kill in (True, False):
            self.setUp()
            store = self.open()
            store.meta(b"stale", meta_command("ms stale", b"old"))
            store.meta(b"stale", meta_command("mg stale v"))
            self.clock.advance(9)
            store.meta(b"stale", meta_command("md stale I"))
            store.meta(b"won", meta_command("mg won N60 v"))
            store = self.again(store, kill=kill)
            looked = store.meta(b"stale", meta_command("me stale"))
            self.assertTrue(looked.document.marks & Mark.FETCHED)
            # The log has no room for when it was read: what was last written is what counts.
            self.assertEqual(accessed_at(looked.document), int(START + 9))
            found = store.meta(b"stale", meta_command("mg stale v"))
            self.assertTrue(found.won)
            self.assertEqual(found.document.value, b"old")
            store = self.again(store, kill=kill)
            for key in (b"stale", b"won"):
                found = store.meta(key, meta_command(f"mg {key.decode()} v"))
                self.assertFalse(found.won, key)
                self.assertTrue(found.marks & Mark.WON, key)

    def test_reading_writes_nothing(self) -> None:
        """When a document was read is no reason to write to the log; that one has won it is."""
        store = self.open()
        store.meta(b"a", meta_command("ms a", b"1"))
        store.meta(b"a", meta_command("mg a v"))
        self.clock.advance(5)
        before = store._journal.at
        for _ in range(3):
            self.clock.advance(5)
            store.meta(b"a", meta_command("mg a v"))
            store.get(b"a")
        self.assertEqual(store._journal.at, before)
        store.meta(b"a", meta_command("ms a T5", b"1"))
        before = store._journal.at
        self.assertTrue(store.meta(b"a", meta_command("mg a R30 v")).won)
        self.assertGreater(store._journal.at, before)

    def test_status(self) -> None:
        """What is told of a store, before, while and after it is loaded."""
        store = self.open()
        store.set(b"a", b"1")
        self.clock.advance(2)
        expected = {
            "items": 1,
            "log_bytes": store._journal.size,
            "loaded_percent": 100,
            "fault": "",
            "persisted_seqno": 1,
            "seqno": 1,
        }
        self.assertEqual(store.status(), expected)
        self.assertGreater(store._journal.size, 0)

    def test_less_memory(self) -> None:
        """What does not fit any more when it is loaded is evicted for good, and that is said."""
        store = self.open()
        for number in range(50):
            store.set(b"%d" % number, b"v" * 1000)
        with capturedLogs() as captured:
            store = self.again(store, kill=False, memory_limit=20_000)
        left = set(store._memory.table.items)
        self.assertTrue(0 < len(left) < 50)
        self.assertIn(b"49", left)
        (line,) = (formatEvent(event) for event in captured)
        self.assertIn(f": {50 - len(left)} documents had no room in the 20000 bytes", line)
        store = self.again(store)
        self.assertEqual(set(store._memory.table.items), left)

    def test_less_memory_and_nothing_evicted(self) -> None:
        """Where nothing may be evicted everything stays, and writes are refused until it fits."""
        store = self.open(evict=False)
        for number in range(50):
            store.set(b"%d" % number, b"v" * 1000)
        with capturedLogs() as captured:
            store = self.again(store, kill=False, memory_limit=20_000, evict=False)
        self.assertEqual(len(store._memory.table.items), 50)
        (line,) = (formatEvent(event) for event in captured)
        used = store._memory.table.used
        self.assertIn(f"takes {used} bytes of memory and may take 20000: writes are ref", line)
        self.assertIs(store.set(b"new", b""), Refusal.NO_MEMORY)
        for number in range(40):
            self.assertIsInstance(store.delete(b"%d" % number), Document)
        self.assertIsInstance(store.set(b"new", b""), Document)
        store = self.again(store, evict=False)
        self.assertEqual(len(store._memory.table.items), 11)

    def test_less_memory_than_a_new_value(self) -> None:
        """Where the last value of a document does not fit, an older one does not come back."""
        store = self.open()
        store.set(b"k", b"old")
        store.set(b"other", b"v")
        store.set(b"k", b"new" * 3000)
        for limit in (5_000, 1 << 20):
            store = self.again(store, memory_limit=limit)
            self.assertEqual(set(store._memory.table.items), {b"other"})

    def test_limits(self) -> None:
        """Other limits are the memory's, at once."""
        store = self.open()
        store.set(b"a", bytes(5000))
        store.limit_values(1000, 1200, evict=True)
        self.assertIs(store.set(b"b", bytes(1001)), Refusal.TOO_BIG)
        self.assertIs(store.set(b"k" * 250, bytes(1000)), Refusal.TOO_BIG)
        self.assertIsInstance(store.set(b"b", bytes(1000)), Document)
        self.assertTrue(store.limit_memory(2000))
        self.assertEqual(set(self.everything(store)), {b"b"})
        store.limit_values(1000, 1200, evict=False)
        self.assertIs(store.set(b"c", bytes(1000)), Refusal.NO_MEMORY)

    def test_progress(self) -> None:
        """While a log is read, `ready` says how much of it has been, within a file too."""
        store = self.open()
        for number in range(1000):
            store.set(b"%d" % number, bytes(100))
        self.assertEqual(len(self.segments()), 1)
        self.close(store)
        again = self.make()
        opened = again.open()
        # A quarter of the records was read; the header and the last record are small.
        self.assertRegex(str(again.ready()), r"^loading .*: 2[3-5] %$")
        self.assertIn(again.status()["loaded_percent"], (23, 24, 25))
        self.pump(opened)
        self.assertIsNone(again.ready())

    def test_locks_are_gone(self) -> None:
        """A lock does not outlive the process, the CAS that it gave does."""
        store = self.open()
        store.set(b"k", b"1")
        locked = store.get_and_lock(b"k", 30)
        store = self.again(store)
        found = store.get(b"k")
        assert found is not None
        self.assertEqual((found.cas, found.locked_until), (locked.cas, 0.0))
        self.assertIsInstance(store.set(b"k", b"2", cas=locked.cas), Document)

    def test_numbers_never_go_back(self) -> None:
        """CAS and sequence numbers grow over restarts, the clock set back or not."""
        last = (0, 0)
        store = self.open()
        for wait in (1.0, -3600.0, 0.0, 5.0):
            for _ in range(3):
                made = store.set(b"k", b"")
                self.assertGreater((made.cas, made.seqno), last)
                last = max(made.cas, last[0]), made.seqno
            gone = store.delete(b"k")
            self.assertGreater((gone.cas, gone.seqno), last)
            last = gone.cas, gone.seqno
            self.kill(store)
            self.clock.rightNow += wait
            store = self.open()
            self.assertEqual(store.seqno, last[1])

    def test_expired(self) -> None:
        """What expires while nobody is there is gone, and leaves nothing older behind."""
        store = self.open()
        store.set(b"k", b"old")
        store.set(b"k", b"new", 0, 10)
        store.set(b"stays", b"", 0, 1000)
        self.kill(store)
        self.clock.advance(11)
        store = self.open()
        self.assertIsNone(store.get(b"k"))
        stays = store.get(b"stays")
        assert stays is not None
        self.assertEqual(stays.expires_at, START + 1000)

    def test_limited(self) -> None:
        """An expiry that was given because all documents expire is kept like one of a client."""
        store = self.open()
        store.limit_ttl(60, {8: 5})
        for key in (b"set", b"touched", (8, b"named")):
            store.set(key, b"v")
        self.clock.advance(1)
        store.touch(b"touched", 0)
        store = self.again(store)
        self.clock.advance(4)
        self.assertIsNone(store.get((8, b"named")))
        self.clock.advance(55)
        self.assertIsNone(store.get(b"set"))
        self.assertEqual(self.value_in(store, b"touched"), b"v")
        self.clock.advance(1)
        self.assertIsNone(store.get(b"touched"))

    def test_flush_and_drop_last(self) -> None:
        """What was flushed, or in a dropped collection, does not come back."""
        store = self.open()
        for key in (b"a", (8, b"a"), (9, b"a")):
            store.set(key, b"1")
        store.drop_collection(8)
        store.set((8, b"b"), b"2")
        store = self.again(store)
        self.assertEqual(set(self.everything(store)), {b"a", (9, b"a"), (8, b"b")})
        store.flush()
        store.set(b"after", b"")
        store = self.again(store)
        self.assertEqual(set(self.everything(store)), {b"after"})

    def test_flush_later(self) -> None:
        """A flush that waits for its moment does so over a restart, whenever that is."""
        for down in (1.0, 20.0):
            self.setUp()
            store = self.open()
            store.set(b"a", b"")
            store.flush(10)
            self.kill(store)
            self.clock.advance(down)
            store = self.open()
            self.assertEqual(store.get(b"a") is not None, down < 10)
            self.clock.advance(10)
            self.assertIsNone(store.get(b"a"))
            store.set(b"b", b"")
            store = self.again(store)
            self.clock.advance(100)
            self.assertIsNotNone(store.get(b"b"))

    def test_evicted_means_gone(self) -> None:
        """What was evicted does not return, with more memory either."""
        store = self.open(memory_limit=4000)
        for number in range(20):
            store.set(b"%d" % number, b"x" * 100)
        before = self.everything(store)
        self.assertLess(len(before), 8)
        store = self.again(store, memory_limit=1 << 20)
        self.assertEqual(self.everything(store), before)
        store = self.again(store, memory_limit=1500)
        left = self.everything(store)
        self.assertLess(len(left), len(before))
        store = self.again(store, memory_limit=1 << 20)
        self.assertEqual(self.everything(store), left)

    def test_collections(self) -> None:
        """Ids of collections are kept."""
        store = self.open()
        store.collections = {"s.c": 8}
        store = self.again(store)
        self.assertEqual(store.collections, {"s.c": 8})

    def test_collection_dropped_twice(self) -> None:
        """What was stored again where a collection was dropped goes when it is dropped again."""
        store = self.open()
        for _ in range(2):
            store.set((8, b"a"), b"1")
            store.drop_collection(8)
        store = self.again(store)
        self.assertIsNone(store.get((8, b"a")))
        store.set((8, b"a"), b"2")
        store.drop_collection(8)
        store.set((8, b"a"), b"3")
        store = self.again(store)
        self.assertEqual([found[0] for found in self.everything(store).values()], [b"3"])

    def test_random(self) -> None:
        """Whatever is done, a killed store comes back as it was."""

        @examples(2000)
        @given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2), st.integers(0, 3))))
        def check(steps: list[tuple[int, int, int]]) -> None:
            self.setUp()
            store = self.open(memory_limit=8000)
            for what, name, number in steps:
                self.do(store, what, (b"%d" % name, (8, b"%d" % name))[number % 2], number)
            before = self.everything(store)
            again = self.again(store, memory_limit=8000)
            self.assertEqual(self.everything(again), before)
            self.assertEqual(again.seqno, store.seqno)
            self.kill(again)

        check()

    def do(self, store: Any, what: int, key: Key, number: int) -> None:
        """Do one of many things."""
        acts: list[Callable[[], Any]] = [
            lambda: store.set(key, b"v" * number * 300),
            lambda: store.set(key, b"1", number, 0),
            lambda: store.add(key, b"5"),
            lambda: store.append(key, b"x"),
            lambda: store.delete(key),
            lambda: store.increment(key, 1, number, 0),
            lambda: store.touch(key, number),
            lambda: store.get_and_lock(key, 1),
            lambda: store.mutate_in(key, XATTRS, DocFlag.MKDOC | DocFlag.ACCESS_DELETED),
            lambda: store.discard(key),
            lambda: store.flush() if number == 3 else store.drop_collection(8),
            lambda: self.clock.advance(0.3),
        ]
        acts[what]()

    def test_put_back(self) -> None:
        """What was put back from a backup is there again after a restart, with its own CAS."""
        store = self.open()
        store.set(b"replaced", b"old")
        store.set(b"expired", b"old")
        before = store.seqno
        for key, document in (
            (b"replaced", Document(b"new", 7, 77)),
            ((8, b"named"), Document(b"", 0, 78, xattrs={"user": b"1"})),
            (
                (9, b"gone"),
                Document(b"", 0, 79, START + 9, deleted=True, xattrs={"_sys": b"1"}),
            ),
            (b"expired", Document(b"dead", 0, 80, expires_at=START - 1)),
        ):
            self.assertIsNone(store.put_back(key, document))
        there = self.everything(store)
        self.assertEqual(set(there), {b"replaced", (8, b"named"), (9, b"gone")})
        self.assertEqual(there[b"replaced"][:3], (b"new", 7, 77))
        self.assertEqual(there[(9, b"gone")][2], 79)
        self.assertEqual(store.seqno, before + 4)
        # A client may have brought any number; the store's own do not go on from there.
        store.put_back(b"replaced", Document(b"new", 7, 1 << 62))
        there = self.everything(store)
        store = self.again(store)
        self.assertEqual(self.everything(store), there)
        self.assertLess(store.set(b"another", b"").cas, 1 << 62)

    def test_put_back_faster_than_the_disk(self) -> None:
        """It waits for the next segment, and is stored once there is one."""
        threads = Threads()
        store = self.make(run=threads.run)
        opened = store.open()
        while not opened.called:
            threads.step()
            self.clock.advance(0)
        document = Document(bytes(20_000), 0, 77)
        answers = [store.put_back(b"%d" % number, document) for number in range(20)]
        waiting = [answer for answer in answers if answer is not None]
        self.assertEqual({type(answer) for answer in waiting}, {Deferred})
        self.assertFalse(waiting[-1].called)
        while threads.step() or not waiting[-1].called:
            self.clock.advance(0)
        self.assertEqual({self.successResultOf(answer) for answer in waiting}, {None})
        self.assertEqual(len(self.everything(store)), 20)
        closing = Deferred.fromCoroutine(store.close())
        while not closing.called:
            threads.step()
            self.clock.advance(0)
        self.stores.remove(store)


class DurabilityTests(FileCase):
    """When answers leave, and what they promise."""

    def open_with_threads(self, sync: Sync) -> tuple[Any, Threads]:
        """Open a store whose threads the test moves."""
        threads = Threads()
        store = self.make(run=threads.run, sync=sync)
        opened = store.open()
        while not opened.called:
            if not threads.step():
                self.clock.advance(0)
        self.successResultOf(opened)
        while threads.step():
            pass
        self.addCleanup(self.finish, store, threads)
        return store, threads

    def finish(self, store: Any, threads: Threads) -> None:
        if store in self.stores:
            closed = Deferred.fromCoroutine(store.close())
            while not closed.called:
                if not threads.step():
                    self.clock.advance(0)
            self.stores.remove(store)

    def test_always(self) -> None:
        """With ``always`` no answer leaves before the disk has it; a turn's share one sync."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        synced = self.disk.synced
        first = store.set(b"a", b"1")
        others = [store.set(b"%d" % number, b"") for number in range(20)]
        self.assertNoResult(first)
        self.assertIsInstance(store.get(b"a"), Document)
        self.assertEqual(threads.waiting, [])
        self.clock.advance(0)
        late = store.set(b"late", b"")
        threads.step()
        self.assertIsInstance(self.successResultOf(first), Document)
        for answer in others:
            self.successResultOf(answer)
        self.assertNoResult(late)
        self.assertEqual((self.disk.synced - synced, store.persisted_seqno), (1, 21))
        threads.step()
        self.successResultOf(late)
        self.assertEqual((self.disk.synced - synced, threads.waiting), (2, []))
        self.assertIs(store.add(b"a", b""), Refusal.EXISTS)

    def test_group(self) -> None:
        """What is asked for as a group is answered at once; the group's end waits for the disk."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        store.begin_group()
        self.assertIsNone(store.get(b"a"))
        self.assertIsNone(store.end_group())
        store.begin_group()
        self.assertIsInstance(store.set(b"a", b"1"), Document)
        self.assertIsInstance(store.add(b"b", b"1"), Document)
        durable = store.durable(3, None).set(b"c", b"")
        self.assertNoResult(durable)
        saved = store.end_group()
        self.assertNoResult(store.set(b"d", b""))
        self.clock.advance(0)
        self.assertNoResult(saved)
        threads.step()
        self.successResultOf(saved)
        self.successResultOf(durable)
        self.assertEqual((store.persisted_seqno, threads.waiting), (4, []))

    def test_group_before_large_value(self) -> None:
        """What takes long is answered after its group has ended, and waits for the disk itself."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        memory = store._memory
        memory._pieces.run = lambda work: deferLater(self.clock, 1, at_once, work)
        store.begin_group()
        store.set(b"a", bytes(PIECE + 1))
        answer = store.append(b"a", b"1")
        first = store.end_group()
        self.clock.advance(0)
        threads.step()
        self.successResultOf(first)
        self.assertNoResult(answer)
        self.clock.advance(1)
        self.assertNoResult(answer)
        while threads.step() or self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertIsInstance(self.successResultOf(answer), Document)

    def test_group_of_none(self) -> None:
        """Everything that is removed at once waits for the disk as a single write does."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        for act in (store.flush, lambda: store.drop_collection(8)):
            answer = act()
            self.assertNoResult(answer)
            self.clock.advance(0)
            self.assertNoResult(answer)
            threads.step()
            self.successResultOf(answer)
        store, threads = self.open_with_threads(Sync.EVERY_SECOND)
        self.assertIsNone(store.flush())
        self.assertIsNone(store.drop_collection(8))

    def slow_down(self, store: Any) -> None:
        """Let what is done in pieces take half a second."""
        store._memory._pieces.run = lambda work: deferLater(self.clock, 0.5, at_once, work)

    def test_large_value(self) -> None:
        """A change that takes long is answered when it is made, or when the disk has it."""
        store, threads = self.open_with_threads(Sync.EVERY_SECOND)
        store.set(b"a", bytes(PIECE + 1))
        self.slow_down(store)
        answer = store.append(b"a", b"1")
        self.clock.advance(0.5)
        self.assertIsInstance(self.successResultOf(answer), Document)
        self.assertEqual(threads.waiting, [])
        durable = store.durable(3, 2.5).append(b"a", b"2")
        self.clock.advance(0.5)
        self.assertEqual(self.value_in(store, b"a"), bytes(PIECE + 1) + b"12")
        self.assertNoResult(durable)
        self.clock.advance(2.1)
        self.failureResultOf(durable, OutcomeUnknown)

    def test_large_value_without_room(self) -> None:
        """A change that takes long and finds no room at its end is made as soon as there is."""
        for sync in (Sync.EVERY_SECOND, Sync.ALWAYS):
            store, threads = self.open_with_threads(sync)
            store.set(b"a", bytes(PIECE + 1))
            while store._journal.has_room(2 * PIECE):
                store.set(b"filler", bytes(5000))
            self.slow_down(store)
            answer = store.append(b"a", b"1")
            self.clock.advance(0.5)
            self.assertNoResult(answer)
            self.assertEqual(len(store.get(b"a").value), PIECE + 1)
            answered: list[Any] = []
            answer.addCallback(answered.append)
            for _ in range(100):
                if not answered and not threads.step():
                    self.clock.advance(0.1)
            (document,) = answered
            self.assertEqual(self.value_in(store, b"a"), bytes(PIECE + 1) + b"1")
            if sync is Sync.ALWAYS:
                self.assertGreaterEqual(store.persisted_seqno, document.seqno)
            self.finish(store, threads)
            store = self.open()
            self.assertEqual(self.value_in(store, b"a"), bytes(PIECE + 1) + b"1")
            self.close(store)

    def test_commit_is_cancelled(self) -> None:
        """A store that closes before the end of the turn saves at once and leaves no timer."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        answer = store.set(b"a", b"1")
        self.finish(store, threads)
        self.successResultOf(answer)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def overlap(self, store: Any, threads: Threads) -> Deferred[Any]:
        """Let a write come while another one is on its way to the disk; return its answer."""
        first = store.set(b"a", b"")
        self.clock.advance(0)
        second = store.set(b"b", b"")
        threads.step()
        self.assertIsInstance(self.successResultOf(first), Document)
        self.assertNoResult(second)
        answer: Deferred[Any] = second
        return answer

    def test_two_become_one_group(self) -> None:
        """A write that came late waits for who was answered just now: one sync for both."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        waiting = self.overlap(store, threads)
        synced = self.disk.synced
        for _ in range(3):
            self.clock.advance(TOGETHER_S / 2)
            self.assertEqual(threads.waiting, [])
            other = store.set(b"a", b"")
            self.assertEqual(self.clock.getDelayedCalls(), [])
            threads.step()
            self.successResultOf(waiting)
            self.successResultOf(other)
            waiting = store.set(b"b", b"")
            self.clock.advance(0)
        self.assertEqual((self.disk.synced - synced, threads.waiting), (3, []))

    def test_nobody_joins(self) -> None:
        """A write waits a moment only, and not again the next times, ever more of them."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        hurried = []
        for _ in range(3):
            hurried.append(0)
            while True:
                waiting = self.overlap(store, threads)
                if threads.waiting:
                    hurried[-1] += 1
                    threads.step()
                    self.successResultOf(waiting)
                else:
                    break
            self.clock.advance(TOGETHER_S * 0.9)
            self.assertEqual(threads.waiting, [])
            self.clock.advance(TOGETHER_S * 0.2)
            threads.step()
            self.successResultOf(waiting)
        self.assertEqual(hurried, [0, 2, 6])

    def test_many_wait_for_nobody(self) -> None:
        """Where more than a few write, what came while the disk was busy goes there at once."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        first = [store.set(b"%d" % number, b"") for number in range(4)]
        self.clock.advance(0)
        late = store.set(b"late", b"")
        threads.step()
        for answer in first:
            self.successResultOf(answer)
        threads.step()
        self.successResultOf(late)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_wait_for_others_is_cancelled(self) -> None:
        """A store that closes while a write waits for others saves it and leaves no timer."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        waiting = self.overlap(store, threads)
        self.assertEqual(threads.waiting, [])
        self.finish(store, threads)
        self.successResultOf(waiting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closed_between_syncs(self) -> None:
        """What came while the disk was busy is saved once before a store has closed."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        first = store.set(b"a", b"")
        self.clock.advance(0)
        late = store.set(b"b", b"")
        synced = self.disk.synced
        closed = Deferred.fromCoroutine(store.close())
        threads.step()
        self.successResultOf(first)
        self.assertEqual(len(threads.waiting), 1)
        while not closed.called:
            threads.step()
        self.stores.remove(store)
        self.successResultOf(late)
        self.assertEqual(self.disk.synced - synced, 2)

    def test_segment_ends_while_waiting_for_others(self) -> None:
        """The sync that a new segment begins takes with it who waits; there is one timer."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        waiting = self.overlap(store, threads)
        store._journal._roll()
        late = store.set(b"late", b"")
        threads.waiting.sort(key=lambda job: job[1] != self.disk.sync)
        threads.step()
        self.successResultOf(waiting)
        self.assertNoResult(late)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(TOGETHER_S)
        while threads.step():
            pass
        self.assertIsInstance(self.successResultOf(late), Document)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_every_second(self) -> None:
        """With ``everysec`` answers leave at once, and the disk follows once a second."""
        store, threads = self.open_with_threads(Sync.EVERY_SECOND)
        synced = self.disk.synced
        for _ in range(100):
            self.assertIsInstance(store.set(b"a", b"1"), Document)
        self.assertEqual((threads.waiting, store.persisted_seqno), ([], 0))
        self.clock.advance(1)
        threads.step()
        self.assertEqual(store.persisted_seqno, 100)
        self.clock.pump([1] * 10)
        self.assertEqual((self.disk.synced - synced, threads.waiting), (1, []))

    def test_never(self) -> None:
        """With ``never`` nothing is forced to the disk until somebody asks."""
        store, threads = self.open_with_threads(Sync.NEVER)
        store.set(b"a", b"1")
        self.clock.pump([1] * 10)
        self.assertEqual((threads.waiting, store.persisted_seqno), ([], 0))

    def test_persistence_levels(self) -> None:
        """A write with a persistence level waits for the disk, whatever the policy is."""
        for sync in Sync:
            store, threads = self.open_with_threads(sync)
            self.assertIs(store.durable(1, None), store)
            for level in (2, 3):
                answer = store.durable(level, None).set(b"k%d" % level, b"")
                self.assertNoResult(answer)
                self.clock.advance(0)
                threads.step()
                self.assertIsInstance(self.successResultOf(answer), Document)
                refused = store.durable(level, None).add(b"k%d" % level, b"")
                self.assertIs(refused, Refusal.EXISTS)
            self.finish(store, threads)

    def test_attributes(self) -> None:
        """Changes within documents wait for the disk exactly as others do."""
        for sync, waits in ((Sync.ALWAYS, True), (Sync.EVERY_SECOND, False), (Sync.NEVER, False)):
            store, threads = self.open_with_threads(sync)
            for ask, waiting in ((store, waits), (store.durable(3, 2.5), True)):
                answer = ask.mutate_in(b"a", XATTRS, DocFlag.MKDOC)
                self.assertIs(isinstance(answer, Deferred), waiting, sync)
                if waiting:
                    self.assertNoResult(answer)
                    self.clock.advance(0)
                    threads.step()
                    self.successResultOf(answer)
            late = store.durable(3, 2.5).mutate_in(b"a", XATTRS, DocFlag.MKDOC)
            self.clock.advance(2.6)
            failure = self.failureResultOf(late, OutcomeUnknown)
            self.assertIn("not answered in time", str(failure.value))
            while threads.step():
                pass
            self.finish(store, threads)

    def test_macros(self) -> None:
        """What a durable change says of itself within the document is true."""
        store, threads = self.open_with_threads(Sync.EVERY_SECOND)
        flags = PathFlag.XATTR | PathFlag.EXPAND_MACROS | PathFlag.CREATE_PARENTS
        spec = MutationSpec(PathOp.DICT_UPSERT, flags, b"sys.cas", b'"${Mutation.CAS}"')
        answer = store.durable(3, None).mutate_in(b"a", [spec], DocFlag.MKDOC)
        self.clock.advance(0)
        threads.step()
        document = self.successResultOf(answer).document
        cas = "0x" + document.cas.to_bytes(8, "little").hex()
        self.assertEqual(document.xattrs, {"sys": b'{"cas":"%b"}' % cas.encode()})

    def test_what_persists_is_the_store(self) -> None:
        """What reads, and what concerns all of a store, is the store's own."""
        store, _ = self.open_with_threads(Sync.EVERY_SECOND)
        persisting = store.durable(2, None)
        for name in ("get", "flush", "drop_collection", "stats", "ready", "durable"):
            self.assertEqual(getattr(persisting, name), getattr(store, name), name)
        self.assertEqual((persisting.uuid, persisting.seqno), (store.uuid, store.seqno))

    def test_names_are_forced_too(self) -> None:
        """The first record in a new file is there after a power cut only if its name is."""
        forced: list[bool] = []
        sync = self.disk.sync

        def spy(ended: Any, descriptor: int, directory: int | None) -> None:
            forced.append(directory is not None)
            sync(ended, descriptor, directory)

        self.patch(self.disk, "sync", spy)
        store, threads = self.open_with_threads(Sync.ALWAYS)
        journal = store._journal
        number, begun = 0, 0
        for _ in range(40):
            before = len(forced)
            stored: list[object] = []
            store.set(b"a", b"v" * 100_000).addCallback(stored.append)
            for _ in range(1000):
                if stored:
                    break
                if not threads.step():
                    self.clock.advance(0)
            self.assertTrue(stored)
            if journal._active.number != number:
                number, begun = journal._active.number, begun + 1
                self.assertIn(True, forced[before:], number)
        self.assertGreater(begun, 5)
        self.assertIn(False, forced)

    def test_slow_disk(self) -> None:
        """A durable write whose time is over is ambiguous: it may still reach the disk."""
        store, threads = self.open_with_threads(Sync.EVERY_SECOND)
        answer = store.durable(3, 2.5).set(b"a", b"1")
        self.clock.advance(2.6)
        self.failureResultOf(answer, OutcomeUnknown)
        threads.step()

    def test_broken_disk(self) -> None:
        """When the disk refuses to save, waiting writes are ambiguous and later ones refused."""
        store, threads = self.open_with_threads(Sync.ALWAYS)
        self.disk.broken = OSError(5, "Input/output error")
        answer = store.set(b"a", b"1")
        self.clock.advance(0)
        threads.step()
        failure = self.failureResultOf(answer, OutcomeUnknown)
        self.assertIn("Input/output error", str(failure.value))
        self.assertIn("Input/output error", store.status()["fault"])
        self.assertIsNotNone(store.get(b"a"))
        self.assertRaises(StoreUnavailable, store.set, b"b", b"")
        self.assertRaises(StoreUnavailable, store.delete, b"a")
        self.disk.broken = None

    def test_closed(self) -> None:
        """A closed store refuses, and its timers are cancelled."""
        store = self.open()
        store.set(b"a", b"")
        self.close(store)
        for refused in (lambda: store.add(b"b", b""), store.flush):
            error = self.assertRaises(StoreUnavailable, refused)
            self.assertEqual(str(error), f"{self.directory} is not open")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNotNone(store.ready())

    def test_looked_through(self) -> None:
        """What memory can tell for statistics and for those who watch, the store can as well."""
        store = self.open()
        store.set(b"a", b"1")
        found: list[Key] = []
        store.survey(lambda key, document: found.append(key))
        self.assertEqual(found, [b"a"])
        self.assertIs(store.peek(b"a"), store.get(b"a"))
        store.watch_evictions(lambda key, document: found.append(key))
        store._memory.table.limit = 1
        store._memory.table.make_room(0, START)
        self.assertEqual(found, [b"a", b"a"])
        self.close(store)
