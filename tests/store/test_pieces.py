"""Work in pieces: how much is done at once, and what happens between the pieces."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import (
    DocFlag,
    Document,
    LookupResult,
    LookupSpec,
    MemoryStore,
    MutationResult,
    MutationSpec,
    PathFlag,
    PathOp,
    PathStatus,
    Refusal,
    jsoncheck,
    jsontext,
    multi,
    virtual,
)
from kvproto.store.jsontext import kind
from kvproto.store.multi import MAX_RESULTS, MAX_XATTRS, look_up_all, mutate_all
from kvproto.store.pieces import AT_ONCE, PIECE, TURN_S, Pieces, Work, at_once
from kvproto.wire.meta import MetaCommand

SIZE = 3 * PIECE

SMALL = 2048
"""A piece for tests that count, which takes its time."""

LAST = LookupSpec(PathOp.GET, 0, b"[-1]" * 31)


def filled(start: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """Make a document of about a size: a unit again and again between a start and an end."""
    return start + unit * (size // len(unit)) + end


SHAPES: dict[str, tuple[bytes, bytes, bytes]] = {
    "numbers": (b"[", b"1,", b"1]"),
    "one number": (b"[", b"1", b"]"),
    "strings": (b"[", b'"a",', b"1]"),
    "one string": (b'["', b"a", b'"]'),
    "escapes": (b'["', b"\\n", b'"]'),
    "escaped quotes": (b'["', b'\\"', b'"]'),
    "not ASCII": (b'["', b"\xc3\xa9", b'"]'),
    "white space": (b"[", b" ", b"]"),
    "empty arrays": (b"[", b"[],", b"1]"),
    "nested arrays": (b"[", b"[[[[[[1]]]]]],", b"1]"),
    "deep and wide": (b"[" * 31, b"1,", b"1" + b"]" * 31),
    "deep and bushy": (b"[" * 28, b"[[],1],", b"1" + b"]" * 28),
    "chains": (b"[", b"[" * 30 + b"1" + b"]" * 30 + b",", b"1]"),
    "mixed chains": (b"[", b'[{"a":' * 15 + b"1" + b"}]" * 15 + b",", b"1]"),
    "members": (b"{", b'"a":1,', b'"b":1}'),
    "escaped names": (b"{", b'"\\n":1,', b'"b":1}'),
    "open": (b"", b"[", b""),
    "open objects": (b"", b'{"a":', b""),
    "no JSON": (b"[", b"1 ", b""),
}

LOOKUPS = {
    "last": LAST,
    "mixed": LookupSpec(PathOp.GET, 0, b"[-1].a" * 15 + b"[-1]"),
    "first": LookupSpec(PathOp.GET, 0, b"[0]" * 31),
    "beyond": LookupSpec(PathOp.GET, 0, b"[99999999]"),
    "name": LookupSpec(PathOp.GET, 0, b"b"),
    "missing": LookupSpec(PathOp.EXISTS, 0, b"c"),
    "count": LookupSpec(PathOp.GET_COUNT, 0, b""),
    "checksum": LookupSpec(PathOp.GET, PathFlag.XATTR, b"$document.value_crc32c"),
}

MUTATIONS = {
    "last": MutationSpec(PathOp.ARRAY_PUSH_LAST, 0, b"", b"1"),
    "first": MutationSpec(PathOp.ARRAY_PUSH_FIRST, 0, b"", b"1"),
    "unique": MutationSpec(PathOp.ARRAY_ADD_UNIQUE, 0, b"", b"7"),
    "insert": MutationSpec(PathOp.ARRAY_INSERT, 0, b"[99999]", b"7"),
    "add": MutationSpec(PathOp.DICT_ADD, 0, b"c", b"7"),
    "remove": MutationSpec(PathOp.REMOVE, 0, b"[-1]", b""),
    "count": MutationSpec(PathOp.COUNTER, 0, b"b", b"7"),
}


def measure(work: Work[Any]) -> tuple[int, int]:
    """Do work; return the calls of all its pieces, and of the one that has most.

    Each call looks at no more than a piece (the rule of `kvproto.store.pieces`), so their number
    says what a piece can take without a clock.
    """
    calls = most = total = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    done = False
    while not done:
        calls = 0
        sys.setprofile(count)
        try:
            next(work)
        except StopIteration:
            done = True
        finally:
            sys.setprofile(None)
        most, total = max(most, calls), total + calls + 1
    return total, most


class BoundTests(SynchronousTestCase):
    """However a document is made, work on it is linear, and no piece of it is large."""

    def setUp(self) -> None:
        for module in (jsoncheck, jsontext, multi, virtual):
            self.patch(module, "PIECE", SMALL)

    def look_up(self, specs: list[LookupSpec], value: bytes) -> Work[Any]:
        """Look up in a new document."""
        return look_up_all(Document(value), specs, 1)

    def mutate(self, specs: list[MutationSpec], value: bytes) -> Work[Any]:
        """Change a new document."""
        return mutate_all(Document(value), specs, Document(b""), 0, 1)

    def each(self) -> list[tuple[str, Callable[[bytes], Work[Any]]]]:
        """Return everything that may be asked about a document."""
        asked: list[tuple[str, Callable[[bytes], Work[Any]]]] = [
            ("kind", lambda value: kind(Document(value)))
        ]
        for name, lookup in LOOKUPS.items():
            asked.append((f"look up {name}", partial(self.look_up, [lookup])))
        for name, mutation in MUTATIONS.items():
            asked.append((f"mutate {name}", partial(self.mutate, [mutation])))
        return asked

    def test_pieces_are_small(self) -> None:
        """No piece makes more calls than it has bytes, each of which is bounded."""
        for shape, parts in SHAPES.items():
            value = filled(*parts, 3 * SMALL)
            for what, make in self.each():
                _, most = measure(make(value))
                self.assertLess(most, SMALL, f"{what}: {shape}")

    def test_linear(self) -> None:
        """Twice the document is about twice the work, even asked for sixteen times."""
        for shape, parts in SHAPES.items():
            for what, make in self.each():
                once, _ = measure(make(filled(*parts, 3 * SMALL)))
                twice, _ = measure(make(filled(*parts, 6 * SMALL)))
                self.assertLess(twice, 2.3 * once + 200, f"{what}: {shape}")

    def test_asked_for_again(self) -> None:
        """What one spec has found out costs the others nothing."""
        for shape, parts in SHAPES.items():
            value = filled(*parts, 3 * SMALL)
            document = Document(value)
            at_once(kind(document))
            for name, spec in LOOKUPS.items():
                once, _ = measure(look_up_all(document, [spec], 1))
                often, _ = measure(look_up_all(document, [spec] * 16, 1))
                self.assertLess(often, once + 200, f"{name}: {shape}")

    def test_one_way_for_several(self) -> None:
        """Paths that begin alike share their way."""
        value = filled(b'{"x":{"y":[', b"1,", b'1],"a":1,"b":2}}', 3 * SMALL)
        names = [b"x.a", b"x.b", b"x.y", b"x.y[0]", b"x.y[1]", b"x.c"]
        document = Document(b'{"w":' + value + b"," + value[1:])
        specs = [LookupSpec(PathOp.EXISTS, 0, name) for name in names]
        at_once(kind(document))
        alone = sum(measure(look_up_all(document, [spec], 1))[0] for spec in specs)
        together, _ = measure(look_up_all(document, specs, 1))
        self.assertLess(together, 0.7 * alone)

    def test_one_walk_for_several(self) -> None:
        """Sixteen names of one object, or indexes of one array, are one walk through it."""
        wide = Document(filled(b"{", b'"a":1,', b'"b":1}', 3 * SMALL))
        long = Document(filled(b"[", b"1,", b"1]", 3 * SMALL))
        escaped = Document(filled(b"{", b'"\\n":1,', b'"b":1}', 3 * SMALL))
        names = [LookupSpec(PathOp.EXISTS, 0, b"name%d" % at) for at in range(16)]
        indexes = [LookupSpec(PathOp.EXISTS, 0, b"[%d]" % (9000 - at)) for at in range(16)]
        for document, specs in ((wide, names), (long, indexes), (escaped, names)):
            at_once(kind(document))
            once, _ = measure(look_up_all(document, specs[:1], 1))
            all_, _ = measure(look_up_all(document, specs, 1))
            self.assertLess(all_, 1.2 * once + 2_500)

    def test_results_are_bounded(self) -> None:
        """A lookup answers with 20 MiB, or with one document where that is larger."""
        half = Document(b"1" * (MAX_RESULTS // 2))
        whole = LookupSpec(PathOp.GET_DOC, 0, b"")
        self.assertIsInstance(at_once(look_up_all(half, [whole] * 2, 1)), LookupResult)
        self.assertIs(at_once(look_up_all(half, [whole] * 3, 1)), Refusal.TOO_BIG)
        large = Document(b"1" * (2 * MAX_RESULTS))
        self.assertIsInstance(at_once(look_up_all(large, [whole], 1)), LookupResult)


class Turns:
    """Turns of an event loop, one at a time; a `Clock` would take all that follow at once."""

    def __init__(self) -> None:
        self.clock = Clock()

    def later(self, call: Callable[[], None]) -> IDelayedCall:
        """Call something in the next turn."""
        delayed: IDelayedCall = self.clock.callLater(1, call)
        return delayed

    def next(self) -> None:
        """Let one turn pass."""
        self.clock.advance(1)

    def idle(self) -> bool:
        """Say whether nothing waits for the next turn."""
        return not self.clock.getDelayedCalls()


class PiecesTests(SynchronousTestCase):
    """What is over within a piece is answered at once, all else later and in turn."""

    def setUp(self) -> None:
        self.turns = Turns()
        self.time = 100.0
        self.pieces = Pieces(self.turns.later, lambda: self.time)
        self.done: list[str] = []

    def work(self, name: str, pieces: int) -> Work[str]:
        """Note each piece."""
        for number in range(pieces):
            self.done.append(f"{name}{number}")
            yield
        return name

    def test_small(self) -> None:
        """No Deferred where nothing is left to do, and no timer."""
        self.assertEqual(self.pieces.run(self.work("a", 0)), "a")
        self.assertTrue(self.turns.idle())

    def test_without_a_clock(self) -> None:
        """Who has no event loop gets everything at once."""
        self.assertEqual(Pieces().run(self.work("a", 5)), "a")

    def test_in_turn(self) -> None:
        """One piece of one request for each turn of the event loop."""
        first, second = self.pieces.run(self.work("a", 3)), self.pieces.run(self.work("b", 2))
        assert isinstance(first, Deferred)
        assert isinstance(second, Deferred)
        self.assertEqual(self.done, ["a0", "b0"])
        for count in range(3, 6):
            self.turns.next()
            self.assertEqual(len(self.done), count)
        self.assertEqual(self.done[2:4], ["a1", "b1"])
        self.turns.next()
        self.turns.next()
        self.assertEqual(self.successResultOf(first), "a")
        self.assertEqual(self.successResultOf(second), "b")
        self.assertTrue(self.turns.idle())

    def slow(self, name: str, seconds: float, pieces: int = 0) -> Work[str]:
        """Take some time for the first piece."""
        self.done.append(name)
        self.time += seconds
        yield from self.work(name, pieces)
        return name

    def test_many_small_ones(self) -> None:
        """What small work adds up to is bounded too: the rest waits for the next turn."""
        answers = [self.pieces.run(self.slow(name, 0.4 * TURN_S)) for name in "abcdefgh"]
        self.assertEqual(answers[:3], ["a", "b", "c"])
        self.assertEqual(self.done, ["a", "b", "c"])
        self.turns.next()
        self.assertEqual(self.done, ["a", "b", "c", "d", "e", "f"])
        self.assertIsInstance(self.pieces.run(self.slow("i", 0.0)), Deferred)
        self.turns.next()
        self.assertEqual("".join(self.done), "abcdefghi")
        for name, answer in zip("defgh", answers[3:], strict=True):
            assert isinstance(answer, Deferred)
            self.assertEqual(self.successResultOf(answer), name)
        self.assertTrue(self.turns.idle())
        self.time += 1
        self.assertEqual(self.pieces.run(self.slow("j", 0.0)), "j")

    def test_small_ones_pass_large_ones(self) -> None:
        """Small work that had to wait does not wait for large work."""
        large = [self.pieces.run(self.work(name, 100)) for name in "abcde"]
        self.assertEqual(self.pieces.run(self.slow("f", 1.5 * TURN_S)), "f")
        small = self.pieces.run(self.slow("g", 0.0))
        broken = self.pieces.run(self.broken())
        gone = self.pieces.run(self.slow("h", 0.0))
        assert isinstance(small, Deferred)
        assert isinstance(broken, Deferred)
        assert isinstance(gone, Deferred)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.turns.next()
        self.assertEqual(self.successResultOf(small), "g")
        self.failureResultOf(broken, KeyError)
        self.assertNotIn("h", self.done)
        for answer in large:
            assert isinstance(answer, Deferred)
            self.assertNoResult(answer)

    def broken(self) -> Work[str]:
        """Fail at once."""
        yield from ()
        raise KeyError("x")

    def test_failure(self) -> None:
        """An error of the work is the answer, at once or later."""

        def broken(pieces: int) -> Work[str]:
            yield from self.work("a", pieces)
            raise KeyError("x")

        self.assertRaises(KeyError, self.pieces.run, broken(0))
        later = self.pieces.run(broken(1))
        assert isinstance(later, Deferred)
        for _ in range(3):
            self.turns.next()
        self.failureResultOf(later, KeyError)

    def test_cancelled(self) -> None:
        """Whoever gives up ends the work, and its timer."""
        later = self.pieces.run(self.work("a", 9))
        assert isinstance(later, Deferred)
        self.turns.next()
        later.cancel()
        self.failureResultOf(later, CancelledError)
        self.assertTrue(self.turns.idle())
        for _ in range(3):
            self.turns.next()
        self.assertLess(len(self.done), 4)

    def test_only_some_at_once(self) -> None:
        """A few are worked on, the others wait their turn; who gives up while waiting is none."""
        answers = [self.pieces.run(self.work(name, 3)) for name in "abcdefg"]
        deferreds = [answer for answer in answers if isinstance(answer, Deferred)]
        self.assertEqual(len(deferreds), 7)
        self.turns.next()
        self.assertEqual(self.done[7:], ["a1"])
        deferreds[0].cancel()
        deferreds[4].cancel()
        for at in (0, 4):
            self.failureResultOf(deferreds[at], CancelledError)
        while not self.turns.idle():
            self.turns.next()
        self.assertEqual(
            [self.successResultOf(deferreds[at]) for at in (1, 2, 3, 5, 6)], [*"bcdfg"]
        )
        at_work: set[str] = set()
        most = 0
        for piece in self.done[8:]:
            (at_work.discard if piece[1] == "2" else at_work.add)(piece[0])
            most = max(most, len(at_work))
        self.assertEqual(most, AT_ONCE)
        after = self.done.index("f1")
        self.assertLess(after, self.done.index("g1"))
        self.assertNotIn("e1", self.done)
        self.assertEqual(self.pieces.run(self.work("h", 0)), "h")


class RaceTests(SynchronousTestCase):
    """A document may change while somebody works on it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_700_000_000.0
        self.turns = Turns()
        self.store = MemoryStore(self.clock.seconds, later=self.turns.later)
        self.store._pieces._timer = lambda: 0.0
        self.value = filled(b"[", b"1,", b"1]", SIZE)
        self.store.set(b"k", self.value)

    def push(self, *specs: MutationSpec, doc_flags: int = 0, cas: int = 0) -> Deferred[Any]:
        """Begin a mutation that takes a while."""
        every = [*specs, MutationSpec(PathOp.ARRAY_PUSH_LAST, 0, b"", b"2")]
        answer = self.store.mutate_in(b"k", every, doc_flags, cas=cas)
        assert isinstance(answer, Deferred)
        self.turns.next()
        self.assertFalse(answer.called)
        return answer

    def value_is(self, value: bytes) -> bool:
        """Compare without showing a hundred thousand bytes."""
        document = self.store.get(b"k")
        return document is not None and document.value == value

    def settle(self, answer: Deferred[Any]) -> Any:
        """Let everything come to its end."""
        while not answer.called:
            self.turns.next()
        return self.successResultOf(answer)

    def test_nothing_else_waits(self) -> None:
        """Other documents and this one can be read and written meanwhile."""
        answer = self.push()
        other = self.store.set(b"other", b"1")
        assert isinstance(other, Document)
        self.assertTrue(self.value_is(self.value))
        made = self.settle(answer).document
        self.assertTrue(self.value_is(self.value[:-1] + b",2]"))
        self.assertEqual(len({made.seqno, other.seqno, 1}), 3)
        self.assertNotEqual(made.cas, other.cas)
        self.assertIs(self.store.get(b"k"), made)
        after = self.store.set(b"other", b"2")
        assert isinstance(after, Document)
        self.assertGreater(after.seqno, max(made.seqno, other.seqno))

    def test_overtaken(self) -> None:
        """Whoever is overtaken works on what is there then: nothing is lost."""
        answer = self.push()
        self.store.append(b"k", b" ")
        self.settle(answer)
        self.assertTrue(self.value_is(self.value[:-1] + b",2] "))

    def test_two_at_once(self) -> None:
        """Two mutations of one document at the same time both happen."""
        first, second = self.push(), self.push()
        for answer in (first, second):
            self.assertEqual(self.settle(answer).status, PathStatus.SUCCESS)
        self.assertTrue(self.value_is(self.value[:-1] + b",2,2]"))

    def test_overtaken_with_a_cas(self) -> None:
        """A CAS that was right and is no longer refuses the mutation."""
        document = self.store.get(b"k")
        assert document is not None
        answer = self.push(cas=document.cas)
        self.store.touch(b"k", 100)
        self.assertIs(self.settle(answer), Refusal.EXISTS)

    def test_locked_deleted_expired_flushed(self) -> None:
        """What happens to the document meanwhile counts."""
        for change, outcome in (
            (lambda: self.store.get_and_lock(b"k", 5), Refusal.LOCKED),
            (lambda: self.store.delete(b"k"), Refusal.NOT_FOUND),
            (self.store.flush, Refusal.NOT_FOUND),
            (lambda: self.clock.advance(11), Refusal.NOT_FOUND),
        ):
            self.store.discard(b"k")
            self.store.set(b"k", self.value, expiry=10)
            answer = self.push()
            change()
            self.assertIs(self.settle(answer), outcome)

    def test_overtaken_again_and_again(self) -> None:
        """Nobody keeps the service working for nothing: after some attempts that is the answer."""
        answer = self.push()
        for _ in range(1_000):
            self.store.append(b"k", b" ")
            self.turns.next()
            if answer.called:
                break
        self.assertIs(self.successResultOf(answer), PathStatus.TEMPORARY_FAILURE)

    def test_created_meanwhile(self) -> None:
        """Two clients that create one document: one creates it, the other finds it."""
        self.store.discard(b"k")
        large = MutationSpec(PathOp.ARRAY_PUSH_LAST, 0, b"", self.value[1:-1])
        first = self.push(large, doc_flags=DocFlag.ADD)
        second = self.push(large, doc_flags=DocFlag.ADD)
        outcomes = [self.settle(first), self.settle(second)]
        self.assertEqual(sum(isinstance(outcome, MutationResult) for outcome in outcomes), 1)
        self.assertIn(Refusal.EXISTS, outcomes)

    def test_macros(self) -> None:
        """A macro tells the CAS and the number that the document gets, whoever comes between."""
        flags = PathFlag.XATTR | PathFlag.EXPAND_MACROS
        answer = self.push(MutationSpec(PathOp.DICT_UPSERT, flags, b"n", b'"${Mutation.seqno}"'))
        for _ in range(3):
            self.store.set(b"other", b"")
        made = self.settle(answer).document
        self.assertEqual(made.xattrs, {"n": b'"0x%016x"' % made.seqno})

    def test_cancelled(self) -> None:
        """A mutation whose client has gone is not carried out."""
        answer = self.push()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertTrue(self.turns.idle())
        self.assertTrue(self.value_is(self.value))

    def test_looking_up_what_is_replaced(self) -> None:
        """A lookup answers from the document that was there when it was asked."""
        answer = self.store.lookup_in(b"k", [LookupSpec(PathOp.GET_COUNT, 0, b""), LAST])
        assert isinstance(answer, Deferred)
        self.store.delete(b"k")
        result = self.settle(answer)
        self.assertEqual(result.results[0], (PathStatus.SUCCESS, b"%d" % (SIZE // 2 + 1)))

    def test_many_appends(self) -> None:
        """Appending to a large value copies it: thousands in a row do not hold up anybody."""
        now = iter(range(10**9))
        self.store._pieces._timer = lambda: next(now) * TURN_S
        answers = [self.store.append(b"k", b"%d" % number) for number in range(5)]
        answers.append(self.store.meta(b"k", MetaCommand("ms", b"k", mode=ord("A"), value=b"5")))
        self.assertEqual(sum(isinstance(answer, Deferred) for answer in answers), 5)
        self.store.append(b"small", b"x")
        for answer in answers[1:]:
            self.assertNotIsInstance(self.settle(answer), Refusal)
        self.assertTrue(self.value_is(self.value + b"012345"))

    def test_number_of_attributes(self) -> None:
        """A document has at most so many extended attributes, which each change copies."""
        self.store.set(b"x", b"{}")
        for start in range(0, MAX_XATTRS, 16):
            self.store.mutate_in(b"x", [
                MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"n%d" % number, b"1")
                for number in range(start, start + 16)
            ])  # fmt: skip
        one = MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"more", b"1")
        self.assertIs(self.store.mutate_in(b"x", [one]), Refusal.TOO_BIG)
        document = self.store.get(b"x")
        assert document is not None
        self.assertEqual(len(document.xattrs or {}), MAX_XATTRS)
