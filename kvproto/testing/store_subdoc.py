"""The contract of a store's sub-document operations, as tests: `SubdocContract`.

Mix it into a trial test case beside `kvproto.testing.store.StoreContract`.
"""

from __future__ import annotations

import json
from typing import Any

from kvproto.store import (
    DocFlag,
    LookupResult,
    LookupSpec,
    MutationResult,
    MutationSpec,
    PathFlag,
    PathOp,
    PathStatus,
    Refusal,
)
from kvproto.testing.store_case import KEY, NAMED, START, WRONG_CAS, StoreCase

__all__ = ["SubdocContract"]

XATTR = PathFlag.XATTR
MACRO = PathFlag.XATTR | PathFlag.EXPAND_MACROS
OK, FAILED = PathStatus.SUCCESS, PathStatus.SOME_FAILED


def get(path: str, flags: int = 0) -> LookupSpec:
    """Spell a GET."""
    return LookupSpec(PathOp.GET, flags, path.encode())


def upsert(path: str, value: str, flags: int = 0) -> MutationSpec:
    """Spell an UPSERT."""
    return MutationSpec(PathOp.DICT_UPSERT, flags, path.encode(), value.encode())


def count(path: str, delta: str, flags: int = 0) -> MutationSpec:
    """Spell a COUNTER."""
    return MutationSpec(PathOp.COUNTER, flags, path.encode(), delta.encode())


class SubdocContract(StoreCase):
    """Tests that every `IStore` must pass for its sub-document operations."""

    def looked(self, *specs: LookupSpec, doc_flags: int = 0) -> LookupResult:
        """Look up, which must find the document."""
        result = self.ask(self.store.lookup_in(KEY, specs, doc_flags))
        self.assertIsInstance(result, LookupResult)
        assert isinstance(result, LookupResult)
        return result

    def look(self, path: str, flags: int = 0) -> Any:
        """Return one path's value, parsed."""
        [(status, value)] = self.looked(get(path, flags)).results
        self.assertEqual(status, OK, path)
        return json.loads(value)

    def mutated(self, *specs: MutationSpec, doc_flags: int = 0, **kwargs: Any) -> MutationResult:
        """Mutate, which must succeed."""
        result = self.ask(self.store.mutate_in(KEY, specs, doc_flags, **kwargs))
        self.assertIsInstance(result, MutationResult)
        assert isinstance(result, MutationResult)
        self.assertIn(result.status, {OK, PathStatus.SUCCESS_DELETED})
        return result

    # -- looking up -----------------------------------------------------------

    def test_lookup_several(self) -> None:
        """Each path has its own result, found or not, in the order asked."""
        cas = self.fill(value=b'{"a":{"b":[1, 2.0]},"c":null}').cas
        result = self.looked(
            get("a.b"),
            get("x"),
            LookupSpec(PathOp.EXISTS, 0, b"c"),
            LookupSpec(PathOp.GET_COUNT, 0, b""),
            LookupSpec(PathOp.GET_DOC, 0, b""),
            get("a..b"),
        )
        self.assertIs(result.status, FAILED)
        self.assertEqual(result.document.cas, cas)
        self.assertEqual(
            result.results,
            [
                (OK, b"[1, 2.0]"),
                (PathStatus.NOT_FOUND, b""),
                (OK, b""),
                (OK, b"2"),
                (OK, b'{"a":{"b":[1, 2.0]},"c":null}'),
                (PathStatus.BAD_PATH, b""),
            ],
        )
        self.assertIs(self.looked(get("a")).status, OK)

    def test_lookup_where_nothing_is(self) -> None:
        """A lookup in a missing document is NOT_FOUND as a whole."""
        for key in (KEY, NAMED):
            answer = self.ask(self.store.lookup_in(key, [get("a")]))
            self.assertIs(answer, Refusal.NOT_FOUND)

    def test_lookup_in_what_is_no_json(self) -> None:
        """Paths into a value that is no JSON are NOT_JSON, the whole document is not."""
        self.fill(value=b"\xff")
        result = self.looked(get("a"), LookupSpec(PathOp.GET_DOC, 0, b""))
        self.assertEqual(result.results, [(PathStatus.NOT_JSON, b""), (OK, b"\xff")])
        self.fill(value=b"[" * 40 + b"]" * 40)
        self.assertEqual(self.looked(get("a")).results, [(PathStatus.DOC_TOO_DEEP, b"")])

    def test_lookup_of_a_locked_document(self) -> None:
        """A locked document can be looked into; its CAS is hidden there too."""
        self.fill(value=b'{"a":1}')
        self.done(self.store.get_and_lock(KEY, 5))
        self.assertEqual(self.look("a"), 1)
        self.assertEqual(self.look("$document.CAS", XATTR), "0x" + "f" * 16)

    def test_malformed_requests(self) -> None:
        """A request that is not well formed is refused as a whole."""
        spec = MutationSpec
        add, remove, push = PathOp.DICT_ADD, PathOp.REMOVE, PathOp.ARRAY_PUSH_LAST
        one = upsert("a", "1")
        for specs, flags, cas, status in (
            ([], 0, 0, PathStatus.BAD_COMBINATION),
            ([one] * 17, 0, 0, PathStatus.BAD_COMBINATION),
            ([spec(PathOp.GET, 0, b"a")], 0, 0, PathStatus.BAD_COMBINATION),
            ([spec(0x77, 0, b"a")], 0, 0, PathStatus.BAD_COMBINATION),
            ([spec(PathOp.DELETE_DOC, 0, b""), one], 0, 0, PathStatus.BAD_COMBINATION),
            ([spec(add, 0, b"", b"1")], 0, 0, PathStatus.INVALID),
            ([spec(add, 0, b"a")], 0, 0, PathStatus.INVALID),
            ([spec(remove, 0, b"a", b"1")], 0, 0, PathStatus.INVALID),
            ([spec(remove, 1, b"a")], 0, 0, PathStatus.INVALID),
            ([spec(add, 0x40, b"a", b"1")], 0, 0, PathStatus.INVALID),
            ([spec(PathOp.SET_DOC, 0, b"a", b"1")], 0, 0, PathStatus.INVALID),
            ([spec(push, XATTR, b"", b"1")], 0, 0, PathStatus.XATTR_INVALID),
            ([spec(push, XATTR, b"n" * 17, b"1")], 0, 0, PathStatus.XATTR_INVALID),
            ([spec(push, XATTR, b"!x", b"1")], 0, 0, PathStatus.XATTR_INVALID),
            ([spec(push, XATTR, b"`x`", b"1")], 0, 0, PathStatus.XATTR_INVALID),
            ([spec(push, XATTR, b"\xff", b"1")], 0, 0, PathStatus.XATTR_INVALID),
            ([one, upsert("x", "1", XATTR)], 0, 0, PathStatus.XATTRS_NOT_FIRST),
            ([upsert("$document.x", "1", XATTR)], 0, 0, PathStatus.VATTR_READ_ONLY),
            ([upsert("a", '"${Mutation.CAS}"', 0x10)], 0, 0, PathStatus.XATTR_BAD_FLAGS),
            ([upsert("x", '"${Nonsense}"', MACRO)], 0, 0, PathStatus.UNKNOWN_MACRO),
            ([one], 0x20, 0, PathStatus.INVALID),
            ([one], DocFlag.ADD | DocFlag.MKDOC, 0, PathStatus.INVALID),
            ([one], DocFlag.ADD, 5, PathStatus.INVALID),
            ([one], DocFlag.REVIVE, 0, PathStatus.INVALID),
            ([one], DocFlag.CREATE_AS_DELETED | DocFlag.ADD, 0, PathStatus.INVALID),
        ):
            answer = self.ask(self.store.mutate_in(KEY, specs, flags, cas=cas))
            self.assertIs(answer, status, f"{specs} {flags}")
        for lookups, flags, status in (
            ([], 0, PathStatus.BAD_COMBINATION),
            ([get("a")] * 17, 0, PathStatus.BAD_COMBINATION),
            ([LookupSpec(add, 0, b"a")], 0, PathStatus.BAD_COMBINATION),
            ([get("")], 0, PathStatus.INVALID),
            ([get("a", 1)], 0, PathStatus.INVALID),
            ([get("a", 0x10)], 0, PathStatus.INVALID),
            ([get("a")], DocFlag.MKDOC, PathStatus.INVALID),
            ([get("a")], DocFlag.REPLICA_READ, PathStatus.NOT_A_REPLICA),
            ([get("a"), get("x", XATTR)], 0, PathStatus.XATTRS_NOT_FIRST),
        ):
            answer = self.ask(self.store.lookup_in(KEY, lookups, flags))
            self.assertIs(answer, status, f"{lookups} {flags}")

    # -- changing -------------------------------------------------------------

    def test_mutate_several(self) -> None:
        """All paths are changed in order, each seeing the one before; counters answer."""
        before = self.fill(value=b'{"a":1}')
        result = self.mutated(
            upsert("b", "{}"), upsert("b.c", "1.50"), count("b.n", "3"), count("a", "-5")
        )
        self.assertEqual(result.results, [(2, OK, b"3"), (3, OK, b"-4")])
        self.assertEqual(self.value(), b'{"a":-4,"b":{"c":1.50,"n":3}}')
        after = self.done(self.store.get(KEY))
        self.assertGreater(after.cas, before.cas)
        self.assertGreater(after.seqno, before.seqno)
        self.assertEqual((after.flags, after), (0xCAFE, result.document))

    def test_all_or_none(self) -> None:
        """A path that fails leaves body, attributes, CAS and expiry as they were."""
        self.fill(value=b'{"a":1}')
        self.mutated(upsert("x", "1", XATTR), expiry=50)
        before = self.done(self.store.get(KEY))
        for specs, index, status in (
            ([upsert("x", "2", XATTR), upsert("b", "1"), upsert("a.b", "1")], 2, "MISMATCH"),
            ([upsert("x", "2", XATTR), upsert("y.z", "2", XATTR)], 1, "NOT_FOUND"),
            ([upsert("y.z", "2", XATTR), upsert("a.b", "2")], 0, "NOT_FOUND"),
            ([MutationSpec(PathOp.SET_DOC, 0, b"", b"x"), upsert("a", "2")], 1, "NOT_JSON"),
        ):
            result = self.ask(self.store.mutate_in(KEY, specs))
            self.assertIsInstance(result, MutationResult)
            self.assertEqual(result.status, FAILED)
            self.assertEqual(result.results, [(index, PathStatus[status], b"")])
            self.assertIsNone(result.document)
            self.assertEqual(self.done(self.store.get(KEY)), before)

    def test_mutation_states(self) -> None:
        """Missing, existing and locked documents answer as for other mutations."""
        one = [upsert("a", "1")]
        ask = self.store.mutate_in
        self.assertIs(self.ask(ask(KEY, one)), Refusal.NOT_FOUND)
        self.assertIs(self.ask(ask(KEY, one, DocFlag.MKDOC, cas=5)), Refusal.NOT_FOUND)
        self.fill(value=b"{}")
        self.assertIs(self.ask(ask(KEY, one, DocFlag.ADD)), Refusal.EXISTS)
        self.assertIs(self.ask(ask(KEY, one, cas=WRONG_CAS)), Refusal.EXISTS)
        cas = self.done(self.store.get_and_lock(KEY, 5)).cas
        self.assertIs(self.ask(ask(KEY, one)), Refusal.LOCKED)
        self.assertIs(self.ask(ask(KEY, one, DocFlag.ADD)), Refusal.EXISTS)
        self.mutated(*one, cas=cas)
        self.assertEqual(self.done(self.store.get(KEY)).locked_until, 0.0)

    def test_creating_documents(self) -> None:
        """MKDOC and ADD make a document, its root and the parents of each path."""
        for flag in (DocFlag.MKDOC, DocFlag.ADD):
            for spec, value in (
                (upsert("a.b", "1"), b'{"a":{"b":1}}'),
                (MutationSpec(PathOp.ARRAY_PUSH_LAST, 0, b"", b"1"), b"[1]"),
                (MutationSpec(PathOp.ARRAY_PUSH_LAST, 0, b"a", b"1"), b'{"a":[1]}'),
                (MutationSpec(PathOp.SET_DOC, 0, b"", b"plain"), b"plain"),
                (upsert("x", "1", XATTR), b"{}"),
            ):
                made = self.mutated(spec, doc_flags=flag, expiry=10).document
                assert made is not None
                self.assertEqual((self.value(), made.flags, made.expiry), (value, 0, 1700000011))
                self.done(self.store.delete(KEY))
        self.mutated(MutationSpec(PathOp.ARRAY_INSERT, 0, b"[0]", b"1"), doc_flags=DocFlag.ADD)
        self.assertEqual(self.value(), b"[1]")
        self.done(self.store.delete(KEY))
        failed = self.ask(
            self.store.mutate_in(KEY, [MutationSpec(PathOp.REPLACE, 0, b"a", b"1")], DocFlag.ADD)
        )
        self.assertEqual(failed.results, [(0, PathStatus.NOT_FOUND, b"")])
        self.assertIsNone(self.value())

    def test_expiry_and_flags(self) -> None:
        """Expiry is set or cleared unless preserved; flags stay unless given."""
        self.fill(value=b"{}", expiry=10)
        kept = self.mutated(upsert("a", "1"), expiry=99, preserve_expiry=True).document
        assert kept is not None
        self.assertEqual((kept.expiry, kept.flags), (1700000011, 0xCAFE))
        moved = self.mutated(upsert("a", "2"), expiry=20, flags=7).document
        assert moved is not None
        self.assertEqual((moved.expiry, moved.flags), (1700000021, 7))
        cleared = self.mutated(upsert("a", "3")).document
        assert cleared is not None
        self.assertEqual((cleared.expiry, cleared.flags), (0, 7))

    def test_whole_document(self) -> None:
        """SET_DOC replaces the body, DELETE_DOC removes the document."""
        self.fill(value=b"not json")
        self.mutated(MutationSpec(PathOp.SET_DOC, 0, b"", b'{"a":1}'), upsert("b", "2"))
        self.assertEqual(self.value(), b'{"a":1,"b":2}')
        self.mutated(upsert("x", "1", XATTR), MutationSpec(PathOp.DELETE_DOC, 0, b""))
        self.assertIsNone(self.value())

    # -- extended attributes --------------------------------------------------

    def test_attributes(self) -> None:
        """Attributes are JSON values beside the body, which need not be JSON."""
        self.fill(value=b"\xff")
        self.mutated(
            upsert("x", '{"a": 1.0}', XATTR),
            upsert("x.b", "[2]", XATTR),
            MutationSpec(PathOp.ARRAY_PUSH_LAST, XATTR | 1, b"y.list", b"1,2"),
            count("z", "5", XATTR),
        )
        result = self.looked(get("x", XATTR), get("y.list[-1]", XATTR), get("none", XATTR))
        self.assertEqual(
            result.results,
            [(OK, b'{"a": 1.0,"b":[2]}'), (OK, b"2"), (PathStatus.NOT_FOUND, b"")],
        )
        self.assertEqual(self.value(), b"\xff")
        self.assertEqual(self.look("$XTOC", XATTR), ["x", "y", "z"])
        remove = MutationSpec(PathOp.REMOVE, XATTR, b"y.list[0]")
        self.mutated(remove, MutationSpec(PathOp.REMOVE, XATTR, b"x"))
        self.assertEqual(self.look("$XTOC", XATTR), ["y", "z"])
        self.assertEqual(self.look("y", XATTR), {"list": [2]})

    def test_attributes_survive_writes_and_die_on_delete(self) -> None:
        """Attributes outlive new values, locks and touches, but not the document."""
        self.fill(value=b"{}")
        self.mutated(upsert("x", "1", XATTR))
        self.fill(value=b"5")
        self.done(self.store.append(KEY, b"1"))
        self.done(self.store.increment(KEY, 1, 0, 0))
        self.done(self.store.touch(KEY, 50))
        lock = self.done(self.store.get_and_lock(KEY, 5)).cas
        self.assertIsNone(self.ask(self.store.unlock(KEY, lock)))
        self.assertEqual((self.look("x", XATTR), self.value()), (1, b"52"))
        self.done(self.store.delete(KEY))
        self.fill()
        self.assertEqual(self.looked(get("x", XATTR)).results, [(PathStatus.NOT_FOUND, b"")])

    def test_document_attribute(self) -> None:
        """``$document`` says what the store knows of a document."""
        made = self.fill(value=b"123456789", expiry=10)
        self.assertEqual(
            self.look("$document", XATTR),
            {
                "CAS": f"0x{made.cas:016x}",
                "vbucket_uuid": f"0x{self.store.uuid:016x}",
                "seqno": f"0x{made.seqno:016x}",
                "revid": str(made.seqno),
                "exptime": int(START) + 11,
                "flags": 0xCAFE,
                "value_bytes": 9,
                "datatype": ["json"],
                "deleted": False,
                "last_modified": str(made.cas // 1_000_000_000),
                "value_crc32c": "0xe3069283",
            },
        )
        self.assertEqual(self.look("$document.flags", XATTR), 0xCAFE)
        self.assertEqual(self.look("$document.exptime", XATTR), int(START) + 11)
        self.fill()
        self.assertEqual(self.look("$document.exptime", XATTR), 0)
        self.fill(value=b"\xff")
        self.mutated(upsert("x", "1", XATTR))
        self.assertEqual(self.look("$document.datatype", XATTR), ["xattr"])
        result = self.looked(get("$document.none", XATTR), get("$other", XATTR))
        self.assertEqual(
            [status for status, _ in result.results],
            [PathStatus.NOT_FOUND, PathStatus.UNKNOWN_VATTR],
        )

    def test_macros(self) -> None:
        """Macros stand for what the mutation itself makes."""
        before = self.fill(value=b"{}")
        document = self.mutated(
            upsert("t.cas", '"${Mutation.CAS}"', MACRO | 1),
            upsert("t.seqno", '"${Mutation.seqno}"', MACRO),
            upsert("t.crc", '"${Mutation.value_crc32c}"', MACRO),
            upsert("t.before", '"${$document.CAS}"', MACRO),
            MutationSpec(PathOp.SET_DOC, 0, b"", b"123456789"),
        ).document
        assert document is not None
        self.assertEqual(
            self.look("t", XATTR),
            {
                "cas": "0x" + document.cas.to_bytes(8, "little").hex(),
                "seqno": f"0x{document.seqno:016x}",
                "crc": "0xe3069283",
                "before": f"0x{before.cas:016x}",
            },
        )
        unknown = upsert("t.x", '"${$document.none}"', MACRO)
        failed = self.ask(self.store.mutate_in(KEY, [unknown]))
        self.assertEqual(failed.results, [(0, PathStatus.UNKNOWN_VATTR_MACRO, b"")])

    # -- deleted documents ----------------------------------------------------

    def test_create_as_deleted(self) -> None:
        """A document can be made deleted: only who asks for deleted ones sees its attributes."""
        flags = DocFlag.ADD | DocFlag.CREATE_AS_DELETED | DocFlag.ACCESS_DELETED
        made = self.mutated(upsert("txn.id", "1", XATTR), doc_flags=flags)
        self.assertIs(made.status, PathStatus.SUCCESS_DELETED)
        self.assertIsNone(self.value())
        self.assertIs(self.ask(self.store.lookup_in(KEY, [get("txn", XATTR)])), Refusal.NOT_FOUND)
        seen = self.looked(
            get("txn.id", XATTR), get("$document.deleted", XATTR), get("body"),
            doc_flags=DocFlag.ACCESS_DELETED,
        )  # fmt: skip
        self.assertIs(seen.status, PathStatus.SOME_FAILED_DELETED)
        self.assertEqual(seen.results, [(OK, b"1"), (OK, b"true"), (PathStatus.NOT_FOUND, b"")])

    def test_changing_deleted_documents(self) -> None:
        """A deleted document's attributes can be changed; a body it gets only by revival."""
        access = DocFlag.ACCESS_DELETED
        made = self.mutated(
            upsert("x", "1", XATTR), doc_flags=DocFlag.ADD | DocFlag.CREATE_AS_DELETED | access
        ).document
        assert made is not None
        ask = self.store.mutate_in
        one = upsert("x", "2", XATTR)
        self.assertIs(self.ask(ask(KEY, [one])), Refusal.NOT_FOUND)
        self.assertIs(self.ask(ask(KEY, [one], access, cas=WRONG_CAS)), Refusal.EXISTS)
        self.assertIs(
            self.ask(ask(KEY, [upsert("a", "1")], access)), PathStatus.DELETED_HAS_NO_VALUE
        )
        changed = self.mutated(one, doc_flags=access, cas=made.cas)
        self.assertIs(changed.status, PathStatus.SUCCESS_DELETED)
        # As transactions replace what they are about to insert: nothing is created by that.
        again = access | DocFlag.CREATE_AS_DELETED
        assert changed.document is not None
        changed = self.mutated(one, doc_flags=again, cas=changed.document.cas)
        self.assertIs(changed.status, PathStatus.SUCCESS_DELETED)
        self.assertIs(self.ask(ask(b"none", [one], again)), Refusal.NOT_FOUND)
        self.assertIsNone(self.value())
        self.mutated(upsert("b", "1"), doc_flags=access | DocFlag.REVIVE)
        self.assertEqual((self.value(), self.look("x", XATTR)), (b'{"b":1}', 2))
        self.assertIs(self.ask(ask(KEY, [one], access | DocFlag.REVIVE)), PathStatus.NOT_DELETED)

    def test_system_attributes_outlive_the_document(self) -> None:
        """After DELETE, attributes that begin with ``_`` are there for who asks for deleted."""
        for delete in (
            lambda: self.done(self.store.delete(KEY)),
            lambda: self.mutated(MutationSpec(PathOp.DELETE_DOC, 0, b"")),
        ):
            self.fill(value=b"{}")
            self.mutated(upsert("_sync", "1", XATTR), upsert("user", "1", XATTR))
            delete()
            seen = self.looked(get("$XTOC", XATTR), doc_flags=DocFlag.ACCESS_DELETED)
            self.assertEqual(seen.results, [(OK, b'["_sync"]')])
            self.fill()
            self.assertEqual(self.look("$XTOC", XATTR), [])

    def test_flush_and_drop_take_deleted_documents_too(self) -> None:
        """Nothing is left of deleted documents after FLUSH, or of a dropped collection."""
        flags = DocFlag.ADD | DocFlag.CREATE_AS_DELETED | DocFlag.ACCESS_DELETED
        one = [upsert("x", "1", XATTR)]
        self.ask(self.store.mutate_in(NAMED, one, flags))
        self.ask(self.store.mutate_in(b"\x08key", one, flags))
        self.ask(self.store.drop_collection(8))
        look = [get("x", XATTR)]
        access = DocFlag.ACCESS_DELETED
        self.assertIs(self.ask(self.store.lookup_in(NAMED, look, access)), Refusal.NOT_FOUND)
        self.assertIsInstance(
            self.ask(self.store.lookup_in(b"\x08key", look, access)), LookupResult
        )
        self.ask(self.store.flush())
        self.assertIs(self.ask(self.store.lookup_in(b"\x08key", look, access)), Refusal.NOT_FOUND)
