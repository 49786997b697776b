"""Which flags each sub-document operation takes: Couchbase's own table, against ours."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.store.multi import check_lookup, check_mutation
from kvproto.wire.subdoc_terms import (
    DocFlag,
    LookupSpec,
    MutationSpec,
    PathFlag,
    PathOp,
    PathStatus,
)

PARENTS, XATTR, EXPAND = PathFlag.CREATE_PARENTS, PathFlag.XATTR, PathFlag.EXPAND_MACROS
MKDOC, ADD, DEAD = DocFlag.MKDOC, DocFlag.ADD, DocFlag.CREATE_AS_DELETED
ACCESS, REVIVE, REPLICA = DocFlag.ACCESS_DELETED, DocFlag.REVIVE, DocFlag.REPLICA_READ

READING = ACCESS | REVIVE | REPLICA
CREATING = MKDOC | ADD | ACCESS | REVIVE | DEAD

TABLE: dict[PathOp, tuple[int, int]] = {
    PathOp.GET_DOC: (0, READING),
    PathOp.GET: (XATTR, READING),
    PathOp.EXISTS: (XATTR, READING),
    PathOp.GET_COUNT: (XATTR, READING),
    PathOp.SET_DOC: (0, MKDOC | ADD),
    PathOp.DELETE_DOC: (0, ACCESS | REVIVE),
    PathOp.DICT_ADD: (PARENTS | XATTR | EXPAND, CREATING),
    PathOp.DICT_UPSERT: (PARENTS | XATTR | EXPAND, CREATING),
    PathOp.REMOVE: (XATTR, ACCESS | REVIVE),
    PathOp.REPLACE: (XATTR | EXPAND, ACCESS | REVIVE | ADD),
    PathOp.ARRAY_PUSH_LAST: (PARENTS | XATTR | EXPAND, CREATING),
    PathOp.ARRAY_PUSH_FIRST: (PARENTS | XATTR | EXPAND, CREATING),
    PathOp.ARRAY_INSERT: (XATTR | EXPAND, ACCESS | REVIVE | ADD | DEAD),
    PathOp.ARRAY_ADD_UNIQUE: (PARENTS | XATTR, CREATING),
    PathOp.COUNTER: (PARENTS | XATTR, CREATING),
}
"""Path flags and document flags; kv_engine ``daemon/subdocument_traits.h``."""

LOOKUPS = {PathOp.GET_DOC, PathOp.GET, PathOp.EXISTS, PathOp.GET_COUNT}
WHOLE = {PathOp.GET_DOC, PathOp.SET_DOC, PathOp.DELETE_DOC}
WITHOUT_VALUE = LOOKUPS | {PathOp.REMOVE, PathOp.DELETE_DOC}
NEEDS: dict[int, int] = {REVIVE: ACCESS}
"""What a document flag means nothing without."""


def ask(op: PathOp, path_flags: int, doc_flags: int) -> PathStatus:
    """Return what is made of an operation that has nothing wrong but its flags."""
    path = b"" if op in WHOLE else b"x"
    if op in LOOKUPS:
        return check_lookup([LookupSpec(op, path_flags, path)], doc_flags)
    value = b"" if op in WITHOUT_VALUE else b'"${Mutation.CAS}"'
    return check_mutation([MutationSpec(op, path_flags, path, value)], doc_flags)


class FlagTests(SynchronousTestCase):
    """Each operation with each flag."""

    def test_all_operations(self) -> None:
        """The table has them all."""
        self.assertEqual(set(TABLE), set(PathOp))

    def test_path_flags(self) -> None:
        """An operation refuses the flags that mean nothing to it, and takes the others."""
        for op, (flags, _) in TABLE.items():
            for bit in (1 << shift for shift in range(8)):
                asked = bit | XATTR if bit == EXPAND and flags & XATTR else bit
                wanted = PathStatus.SUCCESS if bit & flags else PathStatus.INVALID
                self.assertIs(ask(op, asked, 0), wanted, (op, asked))

    def test_document_flags(self) -> None:
        """The same of flags about the document."""
        for op, (path_flags, flags) in TABLE.items():
            for bit in (1 << shift for shift in range(8)):
                asked = bit | int(NEEDS.get(bit, 0))
                wanted = PathStatus.SUCCESS if not asked & ~int(flags) else PathStatus.INVALID
                if wanted is PathStatus.SUCCESS and bit == REPLICA:
                    wanted = PathStatus.NOT_A_REPLICA
                self.assertIs(ask(op, XATTR & path_flags, asked), wanted, (op, asked))

    def test_what_goes_together(self) -> None:
        """Flags that mean nothing without others, or with others, are refused."""
        for op, flags in (
            (PathOp.GET, REVIVE),
            (PathOp.DICT_UPSERT, REVIVE),
            (PathOp.DICT_UPSERT, ADD | MKDOC),
            (PathOp.DICT_UPSERT, ADD | DEAD | REVIVE | ACCESS),
        ):
            self.assertIs(ask(op, XATTR, flags), PathStatus.INVALID, (op, flags))

    def test_one_of_several(self) -> None:
        """Flags of the document are for all operations: each has to know them."""
        upsert = MutationSpec(PathOp.DICT_UPSERT, XATTR, b"x", b"1")
        remove = MutationSpec(PathOp.REMOVE, XATTR, b"y")
        self.assertIs(check_mutation([upsert, remove], ACCESS), PathStatus.SUCCESS)
        self.assertIs(check_mutation([upsert, remove], MKDOC), PathStatus.INVALID)
