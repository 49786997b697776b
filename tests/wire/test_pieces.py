"""Values that arrive in parts."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.pieces import Pieces
from tests.examples import examples


class PiecesTests(SynchronousTestCase):
    """Parts of any size are joined in order, and cost about their size."""

    @examples(50)
    @given(st.lists(st.integers(0, 20000), max_size=20))
    def test_join(self, sizes):
        """The join is the parts, in order, whatever their sizes."""
        parts = [bytes([number]) * size for number, size in enumerate(sizes)]
        pieces = Pieces()
        for part in parts:
            pieces.add(part)
        self.assertEqual(pieces.size, sum(sizes))
        self.assertEqual(pieces.join(), b"".join(parts))

    def test_large_parts_are_not_copied(self):
        """One large part comes back as the very object that was added."""
        part = bytes(100_000)
        self.assertIs(Pieces(part).join(), part)

    def test_crumbs_do_not_multiply(self):
        """A peer that sends crumbs cannot make them cost many times their size."""
        pieces = Pieces()
        for _ in range(50_000):
            pieces.add(bytes(2))
        held = sum(map(sys.getsizeof, pieces._parts)) + sys.getsizeof(pieces._gathering)
        self.assertLess(held, 2 * 100_000)
