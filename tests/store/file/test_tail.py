"""The compiled end of a log and its Python twin write the same."""

from __future__ import annotations

import mmap
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Document
from kvproto.store.file.records import MARGIN, decode
from kvproto.store.file.tail import PythonPlainSets, PythonTail
from tests.compiled import require_compiled
from tests.examples import examples

NUMBERS = st.integers(0, (1 << 64) - 1)
DOCUMENTS = st.builds(
    Document,
    value=st.binary(max_size=80),
    flags=st.integers(0, (1 << 32) - 1),
    cas=NUMBERS,
    seqno=NUMBERS,
    expires_at=st.floats(0, 1e10),
    datatype=st.integers(0, 255),
    xattrs=st.sampled_from([None, None, {"_sync": b"{}"}]),
    marks=st.sampled_from([0, 0, 7 << 3, 1]),
)
TOMBSTONES = st.builds(
    Document,
    value=st.just(b""),
    cas=NUMBERS,
    xattrs=st.just({"_sync": b"1"}),
    deleted=st.just(True),
)
KEYS = st.one_of(st.binary(max_size=250), st.tuples(st.integers(1, 99), st.binary(max_size=20)))
PUTS = st.lists(st.tuples(KEYS, st.one_of(DOCUMENTS, TOMBSTONES), st.booleans()), max_size=8)


def tail_of(kind: Any) -> Any:
    """Make a tail that begins another file of 4 KiB when its limit is reached."""
    files: list[Any] = []

    class Ended(kind):
        def _roll(self, size: int) -> None:
            files.append(self._map)
            self._map: Any = mmap.mmap(-1, 4096)
            self.at, self._seed = 32, len(files)

    tail: Any = Ended()
    tail.files = files
    tail._map = mmap.mmap(-1, 4096)
    tail.at, tail.limit, tail.appended, tail._seed = 16, 1000, 0, 0xFFFF_FFF0
    return tail


class TwinTests(SynchronousTestCase):
    """For any documents."""

    def setUp(self) -> None:
        self.compiled = require_compiled("kvproto.store.file._tail").Tail

    @examples(100)
    @given(PUTS)
    def test_same(self, puts: Any) -> None:
        """The same bytes in the same files, and they can be read back."""
        tails = [tail_of(PythonTail), tail_of(self.compiled)]
        for key, document, newest in puts:
            for tail in tails:
                at, seed, files = tail.at, tail._seed, len(tail.files)
                tail.put(key, document, newest=newest)
                if len(tail.files) == files:
                    found = decode(tail._map[:], at, seed)
                    assert found is not None
                    self.assertEqual((found[0].key, found[1]), (key, tail.at))
                    self.assertEqual(found[0].document.value, document.value)
        one, other = (
            (tail.at, tail.appended, tail._seed, [file[:] for file in (*tail.files, tail._map)])
            for tail in tails
        )
        self.assertEqual(one, other)

    def test_no_room(self) -> None:
        """Nothing is written behind the end of a file, nor where there is none."""
        for kind in (PythonTail, self.compiled):
            tail = tail_of(kind)
            tail.limit = 10_000
            self.assertRaises(IndexError, tail.put, b"k", Document(bytes(5000)))
            tail._map = None
            self.assertRaises((AssertionError, TypeError), tail.put, b"k", Document(b""))

    def test_plain_sets(self) -> None:
        """The usual SET is appended; without room, or when answers wait, nothing happens."""
        module = require_compiled("kvproto.store.file._tail")
        outcomes = []
        for kind, tail_kind in ((PythonPlainSets, PythonTail), (module.PlainSets, self.compiled)):
            store: Any = kind()
            tail = store._journal = tail_of(tail_kind)
            calls: list[Any] = []
            answers: list[Any] = [Document(b"v", cas=5), None]

            def set_plainly(*args: Any, calls: Any = calls, answers: Any = answers) -> Any:
                calls.append(args)
                return answers.pop(0)

            store._set_in_memory, tail.limit = set_plainly, MARGIN + 300
            found: list[Any] = []
            for at_once, size in ((False, 1), (True, 200), (True, 1), (True, 2)):
                store._at_once = at_once
                document = store.set_plainly(b"k", bytes(size), 3, 4, 1, size)
                found.append((document, tail.at, tail.appended, len(calls)))
            outcomes.append((found, calls, tail._map[:]))
        self.assertEqual(outcomes[0], outcomes[1])
        self.assertEqual([counts for _, *counts in outcomes[0][0]][-1], [64, 1, 2])
