"""When an expiry ends, and who is due next."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store.document import Key
from kvproto.store.expiry import AT_ONCE, RELATIVE_LIMIT_S, DueQueue, deadline
from tests.examples import examples

NOW = 1_700_000_000.25


def emptied(queue: DueQueue) -> list[tuple[int, Key]]:
    """Take all that is in a queue."""
    found = []
    while (taken := queue.take()) is not None:
        found.append(taken)
    return found


class DeadlineTests(SynchronousTestCase):
    """memcached's exptime."""

    def test_kinds(self) -> None:
        """Never, at once, from now on up to thirty days, unix time above."""
        for expiry, found in (
            (0, 0.0),
            (-1, AT_ONCE),
            (1, NOW + 1),
            (RELATIVE_LIMIT_S, NOW + 2_592_000),
            (RELATIVE_LIMIT_S + 1, 2_592_001.0),
            (2_000_000_000, 2_000_000_000.0),
        ):
            self.assertEqual(deadline(expiry, NOW), found)


class DueQueueTests(SynchronousTestCase):
    """Keys by the second in which they are due."""

    def filled(self, *entries: tuple[int, Key]) -> DueQueue:
        queue = DueQueue()
        for second, key in entries:
            queue.add(second, key)
        return queue

    def test_empty(self) -> None:
        """Nobody is due in an empty queue."""
        queue = DueQueue()
        self.assertEqual((queue.first, queue.entries, queue.sifting), (math.inf, 0, False))
        self.assertIsNone(queue.take())
        self.assertEqual((queue.first, queue.entries), (math.inf, 0))

    def test_in_order(self) -> None:
        """The earliest second comes first, whatever came in first."""
        queue = self.filled((7, b"a"), (5, b"b"), (9, b"c"), (5, b"d"))
        self.assertEqual((queue.first, queue.entries), (5, 4))
        self.assertIn(queue.take(), [(5, b"b"), (5, b"d")])
        self.assertEqual((queue.first, queue.entries), (5, 3))
        self.assertIn(queue.take(), [(5, b"b"), (5, b"d")])
        self.assertEqual((queue.first, queue.entries), (7, 2))
        self.assertEqual(queue.take(), (7, b"a"))
        self.assertEqual(queue.take(), (9, b"c"))
        self.assertEqual((queue.first, queue.entries), (math.inf, 0))
        queue.add(3, b"e")
        self.assertEqual((queue.first, queue.entries), (3, 1))
        self.assertEqual(emptied(queue), [(3, b"e")])

    def test_sifting_step_by_step(self) -> None:
        """What does not matter any more is left out, as is what is there twice; a bit at a time."""
        queue = self.filled((5, b"a"), (5, b"b"), (5, b"a"), (7, b"b"), (9, b"c"), (7, b"d"))
        wanted = {(5, b"a"), (7, b"b"), (7, b"d")}
        steps = 0
        while True:
            queue.sift(lambda second, key: (second, key) in wanted, 1)
            steps += 1
            if not queue.sifting:
                break
            self.assertLess(steps, 20)
        # Each entry is looked at once, and the end of each second.
        self.assertEqual(steps, 6 + 3)
        self.assertEqual((queue.first, queue.entries), (5, 3))
        self.assertEqual(sorted(emptied(queue)), sorted(wanted))

    def test_nothing_matters(self) -> None:
        """A queue of which nothing is left is as good as new."""
        queue = self.filled((5, b"a"), (7, b"b"))
        queue.sift(lambda second, key: False, 100)
        self.assertEqual((queue.sifting, queue.first, queue.entries), (False, math.inf, 0))
        self.assertIsNone(queue.take())

    def test_taken_while_it_is_sifted(self) -> None:
        """Keys may be taken and added between two steps."""
        queue = self.filled(*[(second, b"%d" % key) for second in range(3) for key in range(4)])
        found = []
        queue.sift(lambda second, key: key != b"1", 3)
        while queue.sifting:
            taken = queue.take()
            if taken is not None:
                found.append(taken)
            if len(found) == 2:
                queue.add(1, b"late")
            queue.sift(lambda second, key: key != b"1", 2)
        found += emptied(queue)
        expected = {(second, b"%d" % key) for second in range(3) for key in (0, 2, 3)}
        self.assertTrue(expected | {(1, b"late")} <= set(found))
        self.assertEqual(queue.entries, 0)

    @examples(100)
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from([b"a", b"b", b"c"]))),
        st.sets(st.tuples(st.integers(0, 5), st.sampled_from([b"a", b"b", b"c"]))),
        st.integers(1, 5),
    )
    def test_any_entries(
        self, entries: list[tuple[int, bytes]], wanted: set[tuple[int, bytes]], count: int
    ) -> None:
        """After sifting exactly what matters is left, once each, in order of the seconds."""
        queue = self.filled((0, b"first"), *entries)
        wanted.add((0, b"first"))
        queue.sift(lambda second, key: (second, key) in wanted, count)
        while queue.sifting:
            queue.sift(lambda second, key: (second, key) in wanted, count)
        left = {(0, b"first"), *entries} & wanted
        self.assertEqual(queue.entries, len(left))
        found = emptied(queue)
        self.assertEqual([second for second, _ in found], sorted(second for second, _ in left))
        self.assertEqual(set(found), left)
