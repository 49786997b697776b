"""What documents, living and deleted, tell of themselves."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import (
    DocFlag,
    LookupSpec,
    MemoryStore,
    MutationSpec,
    PathFlag,
    PathOp,
    PathStatus,
)

NOW = 1_700_000_000.0
KEY = b"k"
ATTRIBUTES = [
    MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_s", b"1"),
    MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"u", b"2"),
]


class AttributeTests(SynchronousTestCase):
    """A store in memory."""

    def setUp(self) -> None:
        self.store = MemoryStore(lambda: NOW)

    def ask(self, path: bytes, op: int = PathOp.GET, flags: int = 0) -> tuple[int, Any]:
        """Look up one attribute; return its status and its value."""
        found = self.store.lookup_in(KEY, [LookupSpec(op, PathFlag.XATTR, path)], flags)
        status, value = found.results[0]
        return status, value

    def test_document(self) -> None:
        """All fields together, each of them, and what is none."""
        made = self.store.set(KEY, b"12345", 7, 60)
        status, text = self.ask(b"$document")
        self.assertEqual(status, PathStatus.SUCCESS)
        fields = json.loads(text)
        self.assertEqual(text, json.dumps(fields, separators=(",", ":")).encode())
        self.assertEqual(fields["CAS"], f"0x{made.cas:016x}")
        self.assertEqual((fields["flags"], fields["exptime"]), (7, int(NOW) + 60))
        for name, value in fields.items():
            path = b"$document." + name.encode()
            self.assertEqual(self.ask(path), (0, json.dumps(value).encode()), name)
            self.assertEqual(self.ask(path, PathOp.EXISTS), (0, b""), name)
        for path, expected in (
            (b"$document.none", PathStatus.NOT_FOUND),
            (b"$document.\xff", PathStatus.BAD_PATH),
            (b"$document.flags.x", PathStatus.MISMATCH),
            (b"$none", PathStatus.UNKNOWN_VATTR),
        ):
            self.assertEqual(self.ask(path), (expected, b""), path)

    def test_deleted(self) -> None:
        """A lookup in a deleted document says that it is, whether all of it succeeds or not."""
        self.store.mutate_in(KEY, ATTRIBUTES, DocFlag.MKDOC)
        self.store.delete(KEY)
        there = LookupSpec(PathOp.GET, PathFlag.XATTR, b"_s")
        gone = LookupSpec(PathOp.GET, PathFlag.XATTR, b"u")
        for specs, status in (
            ([there], PathStatus.SUCCESS_DELETED),
            ([there, gone], PathStatus.SOME_FAILED_DELETED),
        ):
            found = self.store.lookup_in(KEY, specs, DocFlag.ACCESS_DELETED)
            self.assertEqual(found.status, status)
            self.assertEqual(found.results[0], (0, b"1"))

    def test_parents(self) -> None:
        """Parents are made in the body where that is asked for, and nowhere else."""
        self.store.set(KEY, b"{}")
        for flags, path, status in (
            (0, b"a.b.c", PathStatus.SOME_FAILED),
            (PathFlag.CREATE_PARENTS, b"a.b.c", PathStatus.SUCCESS),
            (0, b"a.b.d", PathStatus.SUCCESS),
            (0, b"a.x.d", PathStatus.SOME_FAILED),
        ):
            spec = MutationSpec(PathOp.DICT_UPSERT, flags, path, b"1")
            self.assertEqual(self.store.mutate_in(KEY, [spec]).status, status, path)
        found = self.store.get(KEY)
        self.assertEqual(found and json.loads(found.value), {"a": {"b": {"c": 1, "d": 1}}})
