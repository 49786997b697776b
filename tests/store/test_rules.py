"""The rules, over a store that can only read and compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.store import (
    DocFlag,
    Document,
    IStore,
    Key,
    MutationSpec,
    PathFlag,
    PathOp,
    Refusal,
    partial,
    rules,
)
from kvproto.store.document import Mark, marks_at
from kvproto.store.expiry import deadline
from kvproto.store.operations import Operations
from kvproto.store.rules import Effect, Limits, Rule
from kvproto.store.statistics import Statistics
from kvproto.testing.store import StoreContract
from kvproto.testing.store_subdoc import SubdocContract

NOW = 1_700_000_000.0


@implementer(IStore)
class SwappingStore(Operations):
    """The rules in a loop of read, decide, compare and swap, as over a network.

    Attributes:
        before_swap: Called between reading and swapping; what it does to `kept` is what another
            client did in the meantime.
    """

    uuid = 7
    seqno = persisted_seqno = 0
    persists = tokens = False

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.kept: dict[Key, Document] = {}
        self._statistics = Statistics()
        self._limits = Limits(20 << 20, 20 << 20)
        self._numbers = (0, 0)
        self._flush_at = float("inf")
        self.before_swap: Callable[[Key], None] = lambda key: None

    def _read(self, key: Key) -> Document | None:
        if self._flush_at <= self._now():
            self.kept, self._flush_at = {}, float("inf")
        found = self.kept.get(key)
        return None if found is None else replace(found)

    def _stamp(self, document: Document) -> None:
        cas, seqno = self._numbers
        document.cas = document.cas or max(cas + 1, int(self._now() * 1e9))
        document.seqno = document.seqno or seqno + 1

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        for _ in range(10):
            now = self._now()
            found = self._read(key)
            old = rules.live(found, now)
            if old is not None and old.deleted and not doc_flags & DocFlag.ACCESS_DELETED:
                old = None
            before = replace(old) if old is not None else None
            decision = rule(old, now, *args)
            assert old == before, "a rule has changed what it was given"
            self.before_swap(key)
            if self._read(key) == found:
                break
        else:
            raise AssertionError("the loop does not end")
        self._statistics.count(decision.counts)
        document = decision.document
        if document is not None and decision.effect is not Effect.UNLOCK:
            if self._limits.refuse(key, document):
                return Refusal.TOO_BIG
            self._stamp(document)
            if decision.effect is Effect.LOCK:
                assert old is not None
                document.cas = max(self._numbers[0] + 1, int(now * 1e9))
                self._numbers = (document.cas, self._numbers[1])
            else:
                self._numbers = (document.cas, document.seqno)
        gone = decision.effect is Effect.DELETE and document is not None and not document.xattrs
        if decision.effect is Effect.REMOVE or gone:
            self.kept.pop(key, None)
        elif decision.effect is not Effect.NOTHING:
            assert document is not None
            self.kept[key] = replace(document)
        return decision.answer

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        return self._apply_to_any(key, 0, rule, *args)

    def get(self, key: Key) -> Any:
        return self._apply(key, rules.get)

    def ready(self) -> None:
        return None

    def durable(self, level: int, timeout: float | None) -> None:
        return None

    def flush(self, delay: int = 0) -> None:
        self._statistics.cmd_flush += 1
        self._read(b"")
        moment = deadline(delay, self._now())
        self._flush_at = float("inf")
        if moment <= self._now():
            self.kept = {}
        else:
            self._flush_at = moment

    def drop_collection(self, collection: int) -> None:
        self.kept = {
            key: document
            for key, document in self.kept.items()
            if not (isinstance(key, tuple) and key[0] == collection)
        }

    def stats(self) -> dict[str, int | str]:
        return {**self._statistics.report(), "curr_items": len(self.kept)}


class SwappingStoreContractTests(StoreContract, SubdocContract, SynchronousTestCase):
    """A store that is nothing but the rules and compare-and-swap keeps the contract."""

    def make_store(self, now: Callable[[], float]) -> IStore:
        return SwappingStore(now)


class RepeatTests(SynchronousTestCase):
    """A rule that has to run again, because somebody came in between, starts from what is there."""

    def setUp(self) -> None:
        self.store = SwappingStore(lambda: NOW)
        self.interruptions = 3

    def interrupt(self, change: Callable[[Document], None]) -> None:
        """Let others change a document before each of the next swaps."""

        def before_swap(key: Key) -> None:
            if self.interruptions:
                self.interruptions -= 1
                document = replace(self.store.kept[key])
                document.cas += 1
                change(document)
                self.store.kept[key] = document

        self.store.before_swap = before_swap

    def test_counter(self) -> None:
        """Nobody's increment is lost or counted twice, neither in the value nor in statistics."""
        self.store.set(b"n", b"10")

        def increment(document: Document) -> None:
            document.value = b"%d" % (int(document.value) + 1)

        self.interrupt(increment)
        self.assertEqual(self.store.increment(b"n", 5, 0, 0).value, b"18")
        self.assertEqual(self.store.stats()["incr_hits"], 1)

    def test_append_and_paths(self) -> None:
        """What others appended stays, to a value and to an array."""
        self.store.set(b"t", b"a")

        def append(document: Document) -> None:
            document.value += b"b"

        self.interrupt(append)
        self.assertEqual(self.store.append(b"t", b"c").value, b"abbbc")
        self.store.set(b"j", b"[0]")
        self.interruptions = 3

        def push(document: Document) -> None:
            document.value = document.value[:-1] + b",1]"

        self.interrupt(push)
        specs = [
            MutationSpec(PathOp.DICT_UPSERT, 0x14, b"_x", b'"${Mutation.CAS}"'),
            MutationSpec(PathOp.ARRAY_PUSH_LAST, 0, b"", b"2"),
        ]
        made = self.store.mutate_in(b"j", specs).document
        self.assertEqual(made.value, b"[0,1,1,1,2]")
        assert made.xattrs is not None
        expected = f'"0x{made.cas.to_bytes(8, "little").hex()}"'.encode()
        self.assertEqual(made.xattrs["_x"], expected)

    def test_lock_taken_meanwhile(self) -> None:
        """Who reads an open document and finds it locked when swapping is refused."""
        self.store.set(b"k", b"1")

        def lock(document: Document) -> None:
            document.locked_until = NOW + 10

        self.interrupt(lock)
        self.assertIs(self.store.append(b"k", b"2"), Refusal.LOCKED)

    def test_only_macros_ask_for_numbers(self) -> None:
        """A mutation without macros leaves the CAS to the store."""
        asked: list[Document] = []
        plain = [MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_x", b"1")]
        partial.mutate_in(None, NOW, plain, DocFlag.ADD, 0, 0, None, False, 7, asked.append)
        self.assertEqual(asked, [])
        macro = [MutationSpec(PathOp.DICT_UPSERT, 0x14, b"_x", b'"${Mutation.seqno}"')]
        partial.mutate_in(None, NOW, macro, DocFlag.ADD, 0, 0, None, False, 7, asked.append)
        self.assertEqual(len(asked), 1)


class DecisionTests(SynchronousTestCase):
    """What rules say, where a store would hide it: marks, counts and effects."""

    def document(self, **fields: Any) -> Document:
        kept: dict[str, Any] = {"flags": 3, "cas": 8, "expires_at": NOW + 50, "datatype": 1}
        return Document(b"9", **{**kept, **fields})

    def test_add(self) -> None:
        """What is added is as the client says, and each attempt is counted."""
        made = rules.add(None, NOW, b"value", 5, 60, 0, 1, False)
        self.assertIs(made.effect, Effect.STORE)
        self.assertEqual(
            made.document, Document(b"value", flags=5, expires_at=NOW + 60, datatype=1)
        )
        there = rules.add(self.document(), NOW, b"value", 5, 60, 0, 1, False)
        cas = rules.add(None, NOW, b"value", 5, 60, 8, 1, False)
        self.assertEqual((there.answer, cas.answer), (Refusal.EXISTS, Refusal.NOT_FOUND))
        for decision in (made, there, cas):
            self.assertEqual(decision.counts, ("cmd_set",))

    def test_too_large(self) -> None:
        """Value and attributes count together, and the key with them; not its collection's id."""
        limits = Limits(max_value=10, max_item=12)
        for size, attributes, key, refused in (
            (10, 0, b"ke", False),
            (11, 0, b"k", True),
            (10, 0, b"key", True),
            (6, 4, b"ke", False),
            (6, 5, b"k", True),
            (6, 4, (9, b"ke"), False),
            (6, 4, (9, b"key"), True),
        ):
            document = Document(bytes(size), xattrs={"a": bytes(attributes)})
            self.assertIs(limits.refuse(key, document), refused, (size, attributes, key))

    def test_stored_when_it_is_over(self) -> None:
        """What has expired when it is stored goes, with what it replaces, and is counted."""
        for expires_at, effect in ((NOW, Effect.REMOVE), (NOW + 1, Effect.STORE)):
            document = self.document(expires_at=expires_at)
            decision = rules.storing(document, NOW, ("cmd_set",))
            self.assertIs(decision.effect, effect)
            self.assertIs(decision.document, document)
            self.assertEqual(decision.counts, ("cmd_set",))

    def test_deleted(self) -> None:
        """A tombstone is empty; it is kept for a while if it has attributes of the system's."""
        for xattrs, kept, expires_at in (
            ({"_sync": b"1", "mine": b"2"}, {"_sync": b"1"}, NOW + rules.TOMBSTONE_LIFETIME_S),
            ({"mine": b"2"}, None, 0.0),
            (None, None, 0.0),
        ):
            decision = rules.delete(self.document(xattrs=xattrs), NOW, 8)
            self.assertIs(decision.effect, Effect.DELETE)
            self.assertEqual(
                decision.document,
                Document(b"", expires_at=expires_at, xattrs=kept, deleted=True),
            )
            self.assertEqual(decision.counts, ("cas_hits", "delete_hits"))

    def test_extended(self) -> None:
        """Nobody says any more that the value is JSON; flags and expiry stay."""
        for extend, value in ((rules.append, b"9x"), (rules.prepend, b"x9")):
            self.assertEqual(
                extend(self.document(), NOW, b"x", 0).document,
                Document(value, flags=3, expires_at=NOW + 50, datatype=0),
            )

    def test_another_cas_is_counted(self) -> None:
        """Whatever is refused for its CAS is counted under what was tried, and as such."""
        old = self.document()
        for decision, counts in (
            (rules.append(old, NOW, b"", 9), ("cmd_set", "cas_badval")),
            (rules.delete(old, NOW, 9), ("cas_badval",)),
            (rules.increment(old, NOW, 1, 0, 0, 9), ("incr_hits", "cas_badval")),
            (rules.decrement(old, NOW, 1, 0, 0, 9), ("decr_hits", "cas_badval")),
        ):
            self.assertEqual((decision.answer, decision.counts), (Refusal.EXISTS, counts))
        word = self.document()
        word.value = b"word"
        decision = rules.increment(word, NOW, 1, 0, 0, 0)
        self.assertEqual((decision.answer, decision.counts), (Refusal.NOT_A_NUMBER, ("incr_hits",)))

    def test_counters_that_are_made(self) -> None:
        """A counter begins as the client says, as JSON, and the miss is counted."""
        for rule, missed in ((rules.increment, "incr_misses"), (rules.decrement, "decr_misses")):
            decision = rule(None, NOW, 1, 40, 60, 0)
            self.assertEqual(decision.document, Document(b"40", expires_at=NOW + 60, datatype=1))
            self.assertEqual(decision.counts, (missed,))

    def test_discard(self) -> None:
        """Nothing is removed where nothing is; a locked document is."""
        self.assertIs(rules.discard(None, NOW).effect, Effect.NOTHING)
        locked = self.document(locked_until=NOW + 9)
        self.assertIs(rules.discard(locked, NOW).effect, Effect.REMOVE)

    def test_counters_keep_marks_where_they_fit(self) -> None:
        """As memcached has it: a number that does not grow longer is written in place."""
        old = self.document(marks=6)
        for value, marks in ((b"8", 6), (b"", 6), (b"10", 0)):
            self.assertEqual(rules.counted_marks(old, value), marks)

    def test_counters_are_json(self) -> None:
        """A number is JSON, whatever the value before it was said to be."""
        counted = rules.increment(self.document(datatype=0), NOW, 1, 0, 0, 0)
        assert counted.document is not None
        self.assertEqual((counted.document.value, counted.document.datatype), (b"10", 1))

    def test_counted_in_place(self) -> None:
        """The next number of a counter has the marks of the one before where it fits."""
        for delta, marks in ((0, 6), (1, 0)):
            counted = rules.increment(self.document(marks=6), NOW, delta, 0, 0, 0)
            assert counted.document is not None
            self.assertEqual(counted.document.marks, marks)
        self.assertEqual(
            rules.touch(self.document(locked_until=NOW + 9), NOW, 60).counts, ("cmd_touch",)
        )

    def test_read(self) -> None:
        """Hits and misses are counted apart."""
        self.assertEqual(rules.get(None, NOW).counts, ("get_misses",))
        self.assertEqual(rules.get(self.document(), NOW).counts, ("get_hits",))

    def test_touched_and_read(self) -> None:
        """A touch that reads is counted twice, one of a locked document is no read."""
        for old, counts in (
            (None, ("cmd_touch", "touch_misses", "get_misses")),
            (self.document(), ("cmd_touch", "touch_hits", "get_hits")),
            (self.document(locked_until=NOW + 9), ("cmd_touch",)),
        ):
            self.assertEqual(rules.get_and_touch(old, NOW, 70).counts, counts)

    def test_touched_where_reads_are_noted(self) -> None:
        """A document with marks is marked as read, whether its expiry changes or not."""
        read = marks_at(Mark.STALE | Mark.FETCHED, NOW)
        same = rules.touch(self.document(marks=Mark.STALE), NOW, 50)
        other = rules.touch(self.document(marks=Mark.STALE), NOW, 60, True)
        unmarked = rules.touch(self.document(), NOW, 50)
        assert same.document is not None
        assert other.document is not None
        self.assertEqual((same.effect, same.document.marks), (Effect.MARK, read))
        self.assertEqual(same.document, self.document())
        self.assertEqual((other.effect, other.document.marks), (Effect.STORE, read))
        self.assertEqual(other.document, self.document(expires_at=NOW + 60))
        self.assertEqual((unmarked.effect, unmarked.document), (Effect.NOTHING, None))

    def test_attempts_count(self) -> None:
        """What could not be stored is counted as an attempt, and a CAS that missed as one."""
        for decision, counts in (
            (rules.replace(None, NOW, b"", 0, 0, 0, 0, False), ("cmd_set",)),
            (rules.replace(None, NOW, b"", 0, 0, 8, 0, False), ("cmd_set", "cas_misses")),
            (rules.append(None, NOW, b"", 0), ("cmd_set",)),
            (rules.prepend(None, NOW, b"", 0), ("cmd_set",)),
            (rules.delete(None, NOW, 0), ("delete_misses",)),
        ):
            self.assertEqual((decision.effect, decision.counts), (Effect.NOTHING, counts))

    def test_replaced(self) -> None:
        """What replaces is as the client says, with another datatype, too."""
        decision = rules.replace(self.document(datatype=0), NOW, b"value", 5, 60, 0, 1, False)
        self.assertEqual(
            decision.document, Document(b"value", flags=5, expires_at=NOW + 60, datatype=1)
        )

    def test_unlocked(self) -> None:
        """The document takes its place again as it is, without its lock."""
        decision = rules.unlock(self.document(locked_until=NOW + 9, marks=6), NOW, 8)
        assert decision.document is not None
        self.assertIs(decision.effect, Effect.UNLOCK)
        self.assertEqual(decision.document, self.document())
        self.assertEqual(decision.document.marks, 6)

    def test_locked(self) -> None:
        """A lock lasts as long as asked, 15 seconds where that is not possible."""
        for seconds, lasts in ((1, 1), (30, 30), (31, 15), (0, 15), (-1, 15)):
            decision = rules.get_and_lock(self.document(marks=6), NOW, seconds)
            assert decision.document is not None
            self.assertIs(decision.effect, Effect.LOCK)
            self.assertEqual(decision.document, self.document(locked_until=NOW + lasts))
            self.assertEqual(decision.document.marks, 6)
            self.assertEqual(decision.counts, ("get_hits",))
        self.assertEqual(rules.get_and_lock(None, NOW, 1).counts, ("get_misses",))
