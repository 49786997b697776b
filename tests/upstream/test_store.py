"""The store on an engine in memory: the contract, losses, and what failures are told as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import OutcomeUnknown, StoreUnavailable, UpstreamError
from kvproto.store import Document, IStore, Refusal
from kvproto.testing.store import StoreContract
from kvproto.testing.store_meta import MetaContract, meta_command
from kvproto.testing.store_subdoc import SubdocContract
from kvproto.upstream import EngineStore
from kvproto.upstream.change import MOST_LOSSES
from kvproto.upstream.codec import decode, encode
from kvproto.upstream.resp import EngineFailure, Fate
from tests.upstream.fake_engine import FakeEngine


def turn(clock: Clock, answer: Any, turns: int = 5000) -> Any:
    """Let the clock turn until an answer is there."""
    for _ in range(turns):
        if not isinstance(answer, Deferred) or answer.called:
            break
        clock.advance(0)
    return answer


class EngineStoreContractTests(StoreContract, SubdocContract, MetaContract, SynchronousTestCase):
    """The contract of stores."""

    def make_store(self, now: Callable[[], float]) -> IStore:
        return EngineStore(FakeEngine(self.clock, {}), "b", now)

    def ask(self, answer: Any) -> Any:
        turn(self.clock, answer)
        return self.successResultOf(answer) if isinstance(answer, Deferred) else answer

    def test_total_items(self) -> None:
        """To keep a document for longer stores nothing."""
        for answer in (
            self.store.set(b"a", b"1"),
            self.store.touch(b"a", 30),
            self.store.get_and_touch(b"a", 40),
            self.store.meta(b"a", meta_command("mg a v T50")),
            self.store.append(b"a", b"2"),
        ):
            self.ask(answer)
        self.assertEqual(self.ask(self.store.stats())["total_items"], 2)


class TroubleTests(SynchronousTestCase):
    """Others in between, and engines that do not answer."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_700_000_000.0
        self.content: dict[bytes, bytes] = {}
        self.engines = [FakeEngine(self.clock, self.content) for _ in range(2)]
        self.stores = [EngineStore(engine, "b", self.clock.seconds) for engine in self.engines]

    def ask(self, answer: Any) -> Any:
        return self.successResultOf(turn(self.clock, answer))

    def failure(self, answer: Any) -> Any:
        return self.failureResultOf(turn(self.clock, answer), UpstreamError).value

    def test_somebody_comes_in_between(self) -> None:
        """A change that finds another document begins with that one."""
        one, other = self.stores
        self.ask(one.set(b"n", b"0"))
        answers = [store.increment(b"n", 1, 0, 0) for store in (one, other) * 50]
        values = {self.ask(answer).value for answer in answers}
        self.assertEqual(values, {b"%d" % number for number in range(1, 101)})

    def test_somebody_always_comes_in_between(self) -> None:
        """A change that always loses is given up as not performed."""
        one, other = self.stores
        self.ask(one.set(b"n", b"0"))
        self.ask(other.get(b"n"))
        seen = 0

        def interfere(words: list[bytes]) -> None:
            nonlocal seen
            if words[0] == b"EVALSHA" and words[4:]:
                seen += 1
                key = next(key for key in self.content if key.endswith(b":n"))
                document = decode(self.content[key])
                document.cas += 1
                self.content[key] = encode(document)

        self.engines[0].before = interfere
        self.assertIsInstance(self.failure(one.append(b"n", b"x")), StoreUnavailable)
        self.assertEqual(seen, MOST_LOSSES + 1)
        self.assertEqual(self.ask(other.get(b"n")).value, b"0")

    def failing_writes(self, trouble: EngineFailure) -> Callable[[list[bytes]], Any]:
        return lambda words: None if words[0] in {b"GET", b"TIME"} else trouble

    def test_fates(self) -> None:
        """What is known of a command decides what is told."""
        store = self.stores[0]
        self.ask(store.set(b"k", b"1"))
        for fate, kind in (
            (Fate.NOT_PERFORMED, StoreUnavailable),
            (Fate.UNANSWERED, StoreUnavailable),
            (Fate.UNKNOWN, OutcomeUnknown),
        ):
            trouble = EngineFailure(fate, "timeout", "a test")
            self.engines[0].before = self.failing_writes(trouble)
            for answer in (store.set(b"k", b"2"), store.append(b"k", b"2"), store.delete(b"k")):
                self.assertIs(type(self.failure(answer)), kind)
        self.engines[0].before = lambda words: (
            None
            if words[0] in {b"GET", b"TIME"}
            else EngineFailure(Fate.NO_MEMORY, "no-memory", "")
        )
        for answer in (store.set(b"k", b"2"), store.append(b"k", b"2")):
            self.assertIs(self.ask(answer), Refusal.NO_MEMORY)
        self.engines[0].before = lambda words: None
        self.assertEqual(self.ask(store.get(b"k")).value, b"1")

    def test_a_failure_holds_up_nobody(self) -> None:
        """Changes of a key that wait behind one that fails are done."""
        store = self.stores[0]
        self.ask(store.set(b"n", b"0"))
        lost = [EngineFailure(Fate.UNKNOWN, "disconnected", "a test")]
        self.engines[0].before = lambda words: (
            lost.pop() if words[0] == b"EVALSHA" and lost else None
        )
        first, second = store.increment(b"n", 1, 0, 0), store.increment(b"n", 1, 0, 0)
        self.assertIsInstance(self.failure(first), OutcomeUnknown)
        self.assertEqual(self.ask(second).value, b"1")

    def test_a_lost_record_of_epochs(self) -> None:
        """What an engine has lost is written there again, and a flush stays done."""
        one, other = self.stores
        self.ask(one.set(b"k", b"1"))
        self.ask(one.flush())
        records = [key for key in self.content if key.startswith(b"kvtls-epochs:")]
        kept = self.content[records[0]]
        for key in records:
            del self.content[key]
        self.assertIsNone(self.ask(one.get(b"k")))
        self.clock.advance(0)
        self.assertEqual(self.content[records[0]], kept)
        self.assertIsNone(self.ask(other.get(b"k")))

    def test_what_is_no_document(self) -> None:
        """What somebody else has put there is an error, and is left alone."""
        store = self.stores[0]
        self.ask(store.set(b"k", b"1"))
        key = next(key for key in self.content if key.endswith(b":k"))
        for foreign in (b"", b"something else that is long enough to hold a header, but none"):
            self.content[key] = foreign
            self.assertIsInstance(self.failure(store.get(b"k")), UpstreamError)
            self.assertIsInstance(self.failure(store.append(b"k", b"x")), UpstreamError)
            self.assertEqual(self.content[key], foreign)
        self.flushLoggedErrors(UpstreamError)

    def test_not_read(self) -> None:
        """Until the record of epochs was read the reason is the engine's."""
        store, engine = self.stores[0], self.engines[0]
        self.assertEqual(store.ready(), "the engine was not read yet")
        engine.before = lambda words: EngineFailure(Fate.NOT_PERFORMED, "read-only", "READONLY")
        store.load()
        turn(self.clock, Deferred(), 10)
        self.assertEqual(store.ready(), "engine read-only: READONLY")
        engine.before = lambda words: None
        store.load()
        turn(self.clock, Deferred(), 10)
        self.assertIsNone(store.ready())

    def test_codec(self) -> None:
        """What is written is what is read."""
        for document in (
            Document(b""),
            Document(b"v", 0xFFFFFFFF, 1 << 62, 1.25, 2.5, 7, 1, 0, {"a": b"1", "ü": b'"x"'}),
            Document(b"", deleted=True, xattrs={"_s": b"{}"}, marks=1_700_000_000 << 3 | 5),
        ):
            self.assertEqual(decode(encode(document)), document)
            self.assertEqual(decode(encode(document)).marks, document.marks)
