"""Several sub-document operations on one document: what may be asked together, and doing it.

Pure: a document and specs in, results or a new body out.  Operations on extended attributes
come first, in the request and in the answer; inside they are done after those on the body,
because a macro may want the checksum of the body that comes out.  Neither sees the other.

Source: kv_engine ``docs/SubDocument.md``, "Multi-path Commands", and mcbp request validators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvproto.store.document import Document
from kvproto.store.jsontext import Kind, kind, kind_of
from kvproto.store.paths import PathRefused
from kvproto.store.subdoc import look_up, mutate
from kvproto.store.virtual import expand_macro, is_macro, virtual_attribute
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
_DOC_FLAGS = 0x1F
# Plain numbers: the complement of an IntFlag has only the bits that the flag knows.
_PATH_FLAGS: dict[int, int] = {
    op: int(
        PathFlag.XATTR
        | (PathFlag.CREATE_PARENTS if op in _CREATING else 0)
        | (PathFlag.EXPAND_MACROS if op in _MUTATIONS else 0)
    )
    for op in PathOp
}


def check_lookup(specs: Sequence[LookupSpec], doc_flags: int = 0) -> PathStatus:
    """Say whether a lookup is well formed: SUCCESS, or the status to refuse it with."""
    if doc_flags & ~int(DocFlag.ACCESS_DELETED):
        return PathStatus.INVALID
    return _check_all(specs, _LOOKUPS)


def check_mutation(specs: Sequence[MutationSpec], doc_flags: int = 0, cas: int = 0) -> PathStatus:
    """Say whether a mutation is well formed: SUCCESS, or the status to refuse it with."""
    flags = doc_flags
    if (
        flags & ~_DOC_FLAGS
        or (flags & DocFlag.ADD and (flags & DocFlag.MKDOC or cas))
        or (flags & DocFlag.CREATE_AS_DELETED and not flags & (DocFlag.ADD | DocFlag.MKDOC))
        or (flags & DocFlag.REVIVE and not flags & DocFlag.ACCESS_DELETED)
        or (flags & DocFlag.REVIVE and flags & DocFlag.CREATE_AS_DELETED)
    ):
        return PathStatus.INVALID
    status = _check_all(specs, _MUTATIONS)
    if status is not PathStatus.SUCCESS:
        return status
    body = [spec for spec in specs if not spec.flags & PathFlag.XATTR]
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
    """Say why a mutation of a deleted document may not go ahead; None when it may."""
    has_body = any(not spec.flags & PathFlag.XATTR for spec in specs)
    if has_body and not doc_flags & (DocFlag.REVIVE | DocFlag.MKDOC):
        return PathStatus.DELETED_HAS_NO_VALUE
    return None


def stays_deleted(base: Document | None, specs: Sequence[MutationSpec], doc_flags: int) -> bool:
    """Say whether a mutation that started from a tombstone, or nothing, leaves a tombstone."""
    if base is None:
        return bool(doc_flags & DocFlag.CREATE_AS_DELETED)
    only_xattrs = all(spec.flags & PathFlag.XATTR for spec in specs)
    return base.deleted and only_xattrs and not doc_flags & DocFlag.REVIVE


def _check_all(
    specs: Sequence[LookupSpec] | Sequence[MutationSpec], known: frozenset[PathOp]
) -> PathStatus:
    if not 0 < len(specs) <= MAX_SPECS:
        return PathStatus.BAD_COMBINATION
    body_seen = False
    for spec in specs:
        if spec.op not in known:
            return PathStatus.BAD_COMBINATION
        status = _check_path(spec)
        if status is not PathStatus.SUCCESS:
            return status
        if not spec.flags & PathFlag.XATTR:
            body_seen = True
        elif body_seen:
            return PathStatus.XATTRS_NOT_FIRST
    return PathStatus.SUCCESS


def _check_path(spec: LookupSpec | MutationSpec) -> PathStatus:
    if len(spec.path) > MAX_PATH_BYTES:
        return PathStatus.INVALID
    if spec.op in _WHOLE and (spec.flags or spec.path):
        return PathStatus.INVALID
    if spec.flags & ~_PATH_FLAGS[spec.op]:
        return PathStatus.INVALID
    if spec.flags & PathFlag.XATTR:
        return PathStatus.SUCCESS if _xattr_name(spec.path) else PathStatus.XATTR_INVALID
    if spec.flags & PathFlag.EXPAND_MACROS:
        return PathStatus.XATTR_BAD_FLAGS
    return PathStatus.SUCCESS if spec.path or spec.op in _ROOT_ALLOWED else PathStatus.INVALID


def _check_mutation(spec: MutationSpec) -> PathStatus:
    if bool(spec.value) == (spec.op in _WITHOUT_VALUE):
        return PathStatus.INVALID
    if spec.flags & PathFlag.XATTR and spec.path.startswith(b"$"):
        return PathStatus.VATTR_READ_ONLY
    if spec.flags & PathFlag.EXPAND_MACROS and not is_macro(spec.value):
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


def look_up_all(document: Document, specs: Sequence[LookupSpec], uuid: int) -> LookupResult:
    """Answer a lookup that `check_lookup` found well formed."""
    texts: list[str] = []
    results: list[tuple[PathStatus, bytes]] = []
    failed = False
    for spec in specs:
        try:
            results.append((PathStatus.SUCCESS, _look_up_one(document, spec, uuid, texts)))
        except PathRefused as refused:
            failed = True
            results.append((refused.status, b""))
    status = PathStatus.SOME_FAILED if failed else PathStatus.SUCCESS
    if document.deleted:
        status = PathStatus.SOME_FAILED_DELETED if failed else PathStatus.SUCCESS_DELETED
    return LookupResult(status, document, results)


def _look_up_one(document: Document, spec: LookupSpec, uuid: int, texts: list[str]) -> bytes:
    """Answer one lookup; ``texts`` keeps the decoded body for the next one."""
    if spec.flags & PathFlag.XATTR:
        if spec.path.startswith(b"$"):
            return virtual_attribute(document, uuid, spec.op, spec.path)
        return look_up(_xattr_text(document.xattrs, spec.path), spec.op, spec.path)
    if document.deleted:
        raise PathRefused(PathStatus.NOT_FOUND)
    if spec.op == PathOp.GET_DOC:
        return document.value
    if not texts:
        _refuse_kind(kind(document))
        texts.append(document.value.decode())
    return look_up(texts[0], spec.op, spec.path)


def _xattr_text(xattrs: dict[str, bytes] | None, path: bytes) -> str:
    """Return an object with the one extended attribute that a path is about, if it is there."""
    name = _xattr_name(path)
    value = (xattrs or {}).get(name)
    return "{}" if value is None else f'{{"{name}":{value.decode()}}}'


def _refuse_kind(kind: Kind) -> None:
    if kind is Kind.OPAQUE:
        raise PathRefused(PathStatus.NOT_JSON)
    if kind is Kind.TOO_DEEP:
        raise PathRefused(PathStatus.DOC_TOO_DEEP)


# -- changing ---------------------------------------------------------------------------------


def mutate_all(
    old: Document | None, specs: Sequence[MutationSpec], new: Document, doc_flags: int, uuid: int
) -> Changes | MutationResult:
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
    body_specs = [item for item in numbered if not item[1].flags & PathFlag.XATTR]
    xattr_specs = [item for item in numbered if item[1].flags & PathFlag.XATTR]
    changes = Changes(b"", dict(old.xattrs) if old is not None and old.xattrs else {})
    failed = _mutate_body(old, body_specs, changes, create)
    new.value = changes.value
    failed = _mutate_xattrs(old, xattr_specs, changes, create, new, uuid) or failed
    if failed is not None:
        return MutationResult(PathStatus.SOME_FAILED, None, [failed])
    changes.results.sort()
    return changes


def _mutate_body(
    old: Document | None,
    specs: Sequence[tuple[int, MutationSpec]],
    changes: Changes,
    create: bool,
) -> PathResult | None:
    """Change the body; return what failed, if anything did."""
    is_new = old is None or old.deleted
    changes.value = _empty_body(specs) if old is None or is_new else old.value
    known = Kind.JSON if old is None or is_new else None
    text: str | None = None
    for index, spec in specs:
        if spec.op in _WHOLE:
            changes.delete = spec.op == PathOp.DELETE_DOC
            changes.value, text, known = spec.value, None, None
            continue
        try:
            if text is None:
                _refuse_kind(known or _kind_now(old, changes.value))
                text = changes.value.decode()
            parents = create or bool(spec.flags & PathFlag.CREATE_PARENTS)
            edit = mutate(text, spec.op, spec.path, spec.value, parents)
        except PathRefused as refused:
            return PathResult(index, refused.status)
        text = edit.text
        if edit.answer is not None:
            changes.results.append(PathResult(index, PathStatus.SUCCESS, edit.answer))
    if text is not None:
        changes.value, changes.kind = text.encode(), Kind.JSON
    return None


def _kind_now(old: Document | None, value: bytes) -> Kind:
    """Return the kind of a body in work; an unchanged one may be known already."""
    return kind(old) if old is not None and value is old.value else kind_of(value)


def _empty_body(specs: Sequence[tuple[int, MutationSpec]]) -> bytes:
    """Return the root that the first operation on a new body wants."""
    if not specs:
        return b"{}"
    _, first = specs[0]
    return b"[]" if first.path.startswith(b"[") or not first.path else b"{}"


def _mutate_xattrs(
    old: Document | None,
    specs: Sequence[tuple[int, MutationSpec]],
    changes: Changes,
    create: bool,
    new: Document,
    uuid: int,
) -> PathResult | None:
    """Change the extended attributes; return what failed, if anything did."""
    xattrs = changes.xattrs or {}
    for index, spec in specs:
        name = _xattr_name(spec.path)
        try:
            value = spec.value
            if spec.flags & PathFlag.EXPAND_MACROS:
                value = expand_macro(value, new, old, uuid)
            parents = create or bool(spec.flags & PathFlag.CREATE_PARENTS)
            edit = mutate(_xattr_text(xattrs, spec.path), spec.op, spec.path, value, parents)
        except PathRefused as refused:
            return PathResult(index, refused.status)
        prefix = f'{{"{name}":'
        if edit.text.startswith(prefix):
            xattrs[name] = edit.text[len(prefix) : -1].encode()
        else:
            xattrs.pop(name, None)
        if edit.answer is not None:
            changes.results.append(PathResult(index, PathStatus.SUCCESS, edit.answer))
    changes.xattrs = xattrs or None
    return None
