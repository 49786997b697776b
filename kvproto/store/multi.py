"""Several sub-document operations on one document: what may be asked together, and doing it.

Pure: a document and specs in, results or a new body out.  Operations on extended attributes
come first, in the request and in the answer; inside they are done after those on the body,
because a macro may want the checksum of the body that comes out.  Neither sees the other.

Source: kv_engine ``docs/SubDocument.md``, "Multi-path Commands", and mcbp request validators.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from kvproto.store.document import Document, Refusal
from kvproto.store.jsoncheck import Kind, kind_of
from kvproto.store.jsontext import Text, kind
from kvproto.store.paths import PathRefused, parse_path
from kvproto.store.pieces import PIECE, Work
from kvproto.store.subdoc import look_up, mutate
from kvproto.store.virtual import VirtualAttributes, expand_macro, is_macro
from kvproto.wire.subdoc_terms import (
    MAX_PATH_BYTES,
    MAX_SPECS,
    DocFlag,
    LookupSpec,
    MutationSpec,
    PathFlag,
    PathOp,
    PathResult,
    PathStatus,
)

__all__ = [
    "MAX_RESULTS",
    "MAX_XATTRS",
    "LookupResult",
    "MutationResult",
    "check_lookup",
    "check_mutation",
    "check_tombstone",
    "look_up_all",
    "mutate_all",
    "stays_deleted",
]

MAX_XATTR_NAME_BYTES = 16

MAX_XATTRS = 1024
"""Extended attributes that one document may have."""

MAX_RESULTS = 20 << 20
"""Bytes that one lookup may answer with, unless its document alone is larger."""


@dataclass(slots=True)
class LookupResult:
    """Answer of a lookup that found its document.

    Attributes:
        status: SUCCESS or SOME_FAILED, or their forms for a deleted document.
        document: The document.
        results: For each spec its status and, if it has one, value.
    """

    status: PathStatus
    document: Document
    results: list[tuple[PathStatus, bytes]]


@dataclass(slots=True)
class MutationResult:
    """Answer of a mutation whose document could be worked on.

    Attributes:
        status: SUCCESS (or SUCCESS_DELETED); SOME_FAILED: nothing was changed.
        document: The document as it is now; None when nothing was changed.
        results: Of each spec that has a value, or of the one that failed.
    """

    status: PathStatus
    document: Document | None
    results: list[PathResult]


@dataclass(slots=True)
class Changes:
    """What a mutation makes of a document.

    Attributes:
        value: The new body.
        xattrs: The new extended attributes, None for none.
        kind: What is known of the new body.
        delete: Whether the document is to be deleted.
        results: As in `MutationResult`.
    """

    value: bytes
    xattrs: dict[str, bytes] | None
    kind: Kind = Kind.UNKNOWN
    delete: bool = False
    results: list[PathResult] = field(default_factory=list)


# -- what may be asked ------------------------------------------------------------------------

_LOOKUPS = frozenset({PathOp.GET_DOC, PathOp.GET, PathOp.EXISTS, PathOp.GET_COUNT})
_WHOLE = frozenset({PathOp.GET_DOC, PathOp.SET_DOC, PathOp.DELETE_DOC})
_MUTATIONS = frozenset(PathOp) - _LOOKUPS
_WITHOUT_VALUE = frozenset({PathOp.REMOVE, PathOp.DELETE_DOC})
_CREATING = frozenset({
    PathOp.DICT_ADD, PathOp.DICT_UPSERT, PathOp.ARRAY_PUSH_LAST, PathOp.ARRAY_PUSH_FIRST,
    PathOp.ARRAY_ADD_UNIQUE, PathOp.COUNTER,
})  # fmt: skip
_ROOT_ALLOWED = frozenset({
    PathOp.GET_COUNT, PathOp.ARRAY_PUSH_LAST, PathOp.ARRAY_PUSH_FIRST, PathOp.ARRAY_ADD_UNIQUE,
}) | _WHOLE  # fmt: skip
_XATTR, _CREATE_PARENTS = int(PathFlag.XATTR), int(PathFlag.CREATE_PARENTS)
_EXPAND_MACROS = int(PathFlag.EXPAND_MACROS)
_EXPANDING = _CREATING - {PathOp.ARRAY_ADD_UNIQUE, PathOp.COUNTER} | {
    PathOp.REPLACE, PathOp.ARRAY_INSERT,
}  # fmt: skip
# Plain numbers: the complement of an IntFlag has only the bits that the flag knows.
_PATH_FLAGS: dict[int, int] = {
    op: int(
        (0 if op in _WHOLE else PathFlag.XATTR)
        | (PathFlag.CREATE_PARENTS if op in _CREATING else 0)
        | (PathFlag.EXPAND_MACROS if op in _EXPANDING else 0)
    )
    for op in PathOp
}
_OF_DELETED = int(DocFlag.ACCESS_DELETED | DocFlag.REVIVE)
_MAKING = int(DocFlag.MKDOC | DocFlag.ADD)
_DOC_FLAGS: dict[int, int] = {
    **dict.fromkeys(_LOOKUPS, _OF_DELETED | int(DocFlag.REPLICA_READ)),
    **dict.fromkeys(_CREATING, _OF_DELETED | _MAKING | int(DocFlag.CREATE_AS_DELETED)),
    PathOp.SET_DOC: _MAKING,
    PathOp.DELETE_DOC: _OF_DELETED,
    PathOp.REMOVE: _OF_DELETED,
    PathOp.REPLACE: _OF_DELETED | int(DocFlag.ADD),
    PathOp.ARRAY_INSERT: _OF_DELETED | int(DocFlag.ADD | DocFlag.CREATE_AS_DELETED),
}
"""Flags that each operation may come with; kv_engine ``daemon/subdocument_traits.h``."""


def check_lookup(specs: Sequence[LookupSpec], doc_flags: int = 0) -> PathStatus:
    """Return whether a lookup is well formed: SUCCESS, or the status to refuse it with."""
    if doc_flags & DocFlag.REVIVE and not doc_flags & DocFlag.ACCESS_DELETED:
        return PathStatus.INVALID
    status = _check_all(specs, _LOOKUPS, doc_flags)
    if status is PathStatus.SUCCESS and doc_flags & DocFlag.REPLICA_READ:
        return PathStatus.NOT_A_REPLICA  # every partition is active where it is
    return status


def check_mutation(specs: Sequence[MutationSpec], doc_flags: int = 0, cas: int = 0) -> PathStatus:
    """Return whether a mutation is well formed: SUCCESS, or the status to refuse it with."""
    flags = doc_flags
    if (
        (flags & DocFlag.ADD and (flags & DocFlag.MKDOC or cas))
        or (flags & DocFlag.REVIVE and not flags & DocFlag.ACCESS_DELETED)
        or (flags & DocFlag.REVIVE and flags & DocFlag.CREATE_AS_DELETED)
    ):
        return PathStatus.INVALID
    status = _check_all(specs, _MUTATIONS, flags)
    if status is not PathStatus.SUCCESS:
        return status
    body = [spec for spec in specs if not spec.flags & _XATTR]
    if body and flags & DocFlag.CREATE_AS_DELETED:
        return PathStatus.INVALID
    if len(body) > 1 and any(spec.op == PathOp.DELETE_DOC for spec in body):
        return PathStatus.BAD_COMBINATION
    for spec in specs:
        status = _check_mutation(spec)
        if status is not PathStatus.SUCCESS:
            return status
    return PathStatus.SUCCESS


def check_tombstone(specs: Sequence[MutationSpec], doc_flags: int) -> PathStatus | None:
    """Return why a mutation of a deleted document may not go ahead; None when it may."""
    has_body = any(not spec.flags & _XATTR for spec in specs)
    if has_body and not doc_flags & (DocFlag.REVIVE | DocFlag.MKDOC):
        return PathStatus.DELETED_HAS_NO_VALUE
    return None


def stays_deleted(base: Document | None, specs: Sequence[MutationSpec], doc_flags: int) -> bool:
    """Return whether a mutation that started from a tombstone, or nothing, leaves a tombstone."""
    if base is None:
        return bool(doc_flags & DocFlag.CREATE_AS_DELETED)
    only_xattrs = all(spec.flags & _XATTR for spec in specs)
    return base.deleted and only_xattrs and not doc_flags & DocFlag.REVIVE


def _check_all(
    specs: Sequence[LookupSpec] | Sequence[MutationSpec], known: frozenset[PathOp], doc_flags: int
) -> PathStatus:
    if not 0 < len(specs) <= MAX_SPECS:
        return PathStatus.BAD_COMBINATION
    body_seen = False
    for spec in specs:
        if spec.op not in known:
            return PathStatus.BAD_COMBINATION
        status = _check_path(spec, doc_flags)
        if status is not PathStatus.SUCCESS:
            return status
        if not spec.flags & _XATTR:
            body_seen = True
        elif body_seen:
            return PathStatus.XATTRS_NOT_FIRST
    return PathStatus.SUCCESS


def _check_path(spec: LookupSpec | MutationSpec, doc_flags: int) -> PathStatus:
    if len(spec.path) > MAX_PATH_BYTES:
        return PathStatus.INVALID
    if spec.op in _WHOLE and spec.path:
        return PathStatus.INVALID
    if spec.flags & ~_PATH_FLAGS[spec.op] or doc_flags & ~_DOC_FLAGS[spec.op]:
        return PathStatus.INVALID
    if spec.flags & _XATTR:
        return PathStatus.SUCCESS if _xattr_name(spec.path) else PathStatus.XATTR_INVALID
    if spec.flags & _EXPAND_MACROS:
        return PathStatus.XATTR_BAD_FLAGS
    return PathStatus.SUCCESS if spec.path or spec.op in _ROOT_ALLOWED else PathStatus.INVALID


def _check_mutation(spec: MutationSpec) -> PathStatus:
    if bool(spec.value) == (spec.op in _WITHOUT_VALUE):
        return PathStatus.INVALID
    if spec.flags & _XATTR and spec.path.startswith(b"$"):
        return PathStatus.VATTR_READ_ONLY
    if spec.flags & _EXPAND_MACROS and not is_macro(spec.value):
        return PathStatus.UNKNOWN_MACRO
    return PathStatus.SUCCESS


def _xattr_name(path: bytes) -> str:
    """Return the name of the extended attribute that a path begins with, "" if it is none."""
    name = path.partition(b".")[0].partition(b"[")[0]
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return ""
    if not 0 < len(name) <= MAX_XATTR_NAME_BYTES:
        return ""
    begins_well = text[0].isalnum() or text[0] in "_$" or text[0] > "\x7f"
    return text if begins_well and not set(text) & set('`"\\') and text.isprintable() else ""


# -- looking up -------------------------------------------------------------------------------


class _Lookups:
    """The lookups of one request, in one document; what one found out is kept for the next.

    Args:
        document: The document.
        specs: All of them.
        uuid: Name of its store's history.
    """

    def __init__(self, document: Document, specs: Sequence[LookupSpec], uuid: int) -> None:
        self._document = document
        self._specs = specs
        self._virtual = VirtualAttributes(document, uuid)
        self._texts: dict[str, Text] = {}
        self._answers: dict[tuple[int, int, bytes], tuple[PathStatus, bytes]] = {}

    def answer(self, spec: LookupSpec) -> Work[tuple[PathStatus, bytes]]:
        """Answer one of them: status and value."""
        question = spec.op, spec.flags, spec.path
        answer = self._answers.get(question)
        if answer is None:
            try:
                answer = PathStatus.SUCCESS, (yield from self._look_up(spec))
            except PathRefused as refused:
                answer = refused.status, b""
            self._answers[question] = answer
        return answer

    def _look_up(self, spec: LookupSpec) -> Work[bytes]:
        document = self._document
        if spec.flags & _XATTR:
            if spec.path.startswith(b"$"):
                return (yield from self._virtual.look_up(spec.op, spec.path))
            name = _xattr_name(spec.path)
            text = self._texts.get(name)
            if text is None:
                text = self._texts[name] = Text(_xattr_text(document.xattrs, name))
            return (yield from look_up(text, spec.op, spec.path))
        if document.deleted:
            raise PathRefused(PathStatus.NOT_FOUND)
        if spec.op == PathOp.GET_DOC:
            return document.value
        text = self._texts.get("")
        if text is None:
            _refuse_kind((yield from kind(document)))
            text = self._texts[""] = Text(document.value, self._body_paths())
        return (yield from look_up(text, spec.op, spec.path))

    def _body_paths(self) -> list[tuple[str | int, ...]]:
        """Return the steps of all paths that lead into the body."""
        paths = {spec.path for spec in self._specs if not spec.flags & _XATTR}
        found = []
        for path in paths if len(paths) > 1 else ():
            with suppress(PathRefused):
                found.append(parse_path(path).steps)
        return found


def look_up_all(
    document: Document, specs: Sequence[LookupSpec], uuid: int
) -> Work[LookupResult | PathStatus | Refusal]:
    """Answer a lookup that `check_lookup` found well formed.

    Returns:
        The results; TOO_BIG when they are more than `MAX_RESULTS` bytes, and than the document.
    """
    lookups = _Lookups(document, specs, uuid)
    results: list[tuple[PathStatus, bytes]] = []
    room = max(MAX_RESULTS, len(document.value))
    for spec in specs:
        results.append((yield from lookups.answer(spec)))
        room -= len(results[-1][1])
        if room < 0:
            return Refusal.TOO_BIG
    failed = any(status for status, _ in results)
    status = PathStatus.SOME_FAILED if failed else PathStatus.SUCCESS
    if document.deleted:
        status = PathStatus.SOME_FAILED_DELETED if failed else PathStatus.SUCCESS_DELETED
    return LookupResult(status, document, results)


def _xattr_text(xattrs: dict[str, bytes] | None, name: str) -> bytes:
    """Return an object with one extended attribute, if it is there."""
    value = (xattrs or {}).get(name)
    return b"{}" if value is None else b'{"%b":%b}' % (name.encode(), value)


def _refuse_kind(kind: Kind) -> None:
    if kind is Kind.OPAQUE:
        raise PathRefused(PathStatus.NOT_JSON)
    if kind is Kind.TOO_DEEP:
        raise PathRefused(PathStatus.DOC_TOO_DEEP)


# -- changing ---------------------------------------------------------------------------------


def mutate_all(
    old: Document | None, specs: Sequence[MutationSpec], new: Document, doc_flags: int, uuid: int
) -> Work[Changes | MutationResult]:
    """Work out a mutation that `check_mutation` found well formed.

    Args:
        old: The document, None where one is to be made.
        specs: What to do with it.
        new: Has the CAS and seqno that the document will get; its value is filled in.
        doc_flags: `DocFlag` bits.
        uuid: Name of the store's history.

    Returns:
        The changes; or the answer that says which path failed.
    """
    create = bool(doc_flags & (DocFlag.MKDOC | DocFlag.ADD))
    numbered = list(enumerate(specs))
    body_specs = [item for item in numbered if not item[1].flags & _XATTR]
    xattr_specs = [item for item in numbered if item[1].flags & _XATTR]
    changes = Changes(b"", dict(old.xattrs) if old is not None and old.xattrs else {})
    failed = yield from _mutate_body(old, body_specs, changes, create)
    new.value = changes.value
    macros = VirtualAttributes(new, uuid), VirtualAttributes(old or Document(b""), uuid)
    failed = (yield from _mutate_xattrs(xattr_specs, changes, create, macros)) or failed
    if failed is not None:
        return MutationResult(PathStatus.SOME_FAILED, None, [failed])
    changes.results.sort()
    return changes


def _mutate_body(
    old: Document | None,
    specs: Sequence[tuple[int, MutationSpec]],
    changes: Changes,
    create: bool,
) -> Work[PathResult | None]:
    """Change the body; return what failed, if anything did."""
    if old is None or old.deleted:
        changes.value, changes.kind = _empty_body(specs), Kind.JSON
    else:
        changes.value, changes.kind = old.value, Kind(old.kind)
    for index, spec in specs:
        if spec.op in _WHOLE:
            changes.delete = spec.op == PathOp.DELETE_DOC
            changes.value, changes.kind = spec.value, Kind.UNKNOWN
            continue
        try:
            if changes.kind is Kind.UNKNOWN:
                changes.kind = yield from kind_of(changes.value)
                if old is not None and changes.value is old.value:
                    old.kind = changes.kind
            _refuse_kind(changes.kind)
            parents = create or bool(spec.flags & _CREATE_PARENTS)
            edit = yield from mutate(changes.value, spec.op, spec.path, spec.value, parents)
        except PathRefused as refused:
            return PathResult(index, refused.status)
        changes.value = edit.data
        if edit.answer is not None:
            changes.results.append(PathResult(index, PathStatus.SUCCESS, edit.answer))
        if len(changes.value) > PIECE:  # it was copied
            yield
    return None


def _empty_body(specs: Sequence[tuple[int, MutationSpec]]) -> bytes:
    """Return the root that the first operation on a new body wants."""
    if not specs:
        return b"{}"
    _, first = specs[0]
    return b"[]" if first.path.startswith(b"[") or not first.path else b"{}"


def _mutate_xattrs(
    specs: Sequence[tuple[int, MutationSpec]],
    changes: Changes,
    create: bool,
    macros: tuple[VirtualAttributes, VirtualAttributes],
) -> Work[PathResult | None]:
    """Change the extended attributes; return what failed, if anything did."""
    xattrs = changes.xattrs or {}
    for index, spec in specs:
        name = _xattr_name(spec.path)
        try:
            value = spec.value
            if spec.flags & _EXPAND_MACROS:
                value = yield from expand_macro(value, *macros)
            parents = create or bool(spec.flags & _CREATE_PARENTS)
            data = _xattr_text(xattrs, name)
            edit = yield from mutate(data, spec.op, spec.path, value, parents)
        except PathRefused as refused:
            return PathResult(index, refused.status)
        prefix = b'{"%b":' % name.encode()
        if edit.data.startswith(prefix):
            xattrs[name] = edit.data[len(prefix) : -1]
        else:
            xattrs.pop(name, None)
        if edit.answer is not None:
            changes.results.append(PathResult(index, PathStatus.SUCCESS, edit.answer))
        if len(edit.data) > PIECE:
            yield
    changes.xattrs = xattrs or None
    return None
