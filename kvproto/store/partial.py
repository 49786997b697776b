"""The rules of sub-document operations: on which document, and what becomes of it.

As `kvproto.store.rules`; what the operations do to a document is `kvproto.store.subdoc`'s and
`kvproto.store.multi`'s.  Each rule has a form that works in pieces (`IN_PIECES`), for a store that
can answer later; see `kvproto.store.pieces`.  Where the client asks for deleted documents,
``old`` may be a tombstone.

Source: kv_engine ``docs/SubDocument.md``, "Doc Flags"; mcbp rules for deleted documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from kvproto.store.document import Document, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.multi import (
    MAX_XATTRS,
    LookupResult,
    MutationResult,
    check_lookup,
    check_mutation,
    check_tombstone,
    look_up_all,
    mutate_all,
    stays_deleted,
)
from kvproto.store.pieces import Work, at_once
from kvproto.store.rules import (
    Counts,
    Decision,
    Effect,
    Rule,
    Stamp,
    check,
    storing,
    tombstone,
)
from kvproto.wire.subdoc_terms import DocFlag, LookupSpec, MutationSpec, PathFlag, PathStatus

__all__ = [
    "IN_PIECES",
    "RuleInPieces",
    "lookup_in",
    "mutate_in",
    "refuse_lookup",
    "refuse_mutation",
]

_SET: Counts = ("cmd_set",)


def refuse_lookup(specs: Sequence[LookupSpec], doc_flags: int) -> PathStatus | None:
    """Return why a lookup is not well formed, whatever it is asked of; None when it is."""
    status = check_lookup(specs, doc_flags)
    return None if status is PathStatus.SUCCESS else status


def refuse_mutation(specs: Sequence[MutationSpec], doc_flags: int, cas: int) -> PathStatus | None:
    """Return why a mutation is not well formed, whatever it is asked of; None when it is."""
    status = check_mutation(specs, doc_flags, cas)
    return None if status is PathStatus.SUCCESS else status


def look_up_in_pieces(
    old: Document | None, now: float, specs: Sequence[LookupSpec], uuid: int
) -> Work[Decision[LookupResult | PathStatus | Refusal]]:
    """Look up several paths in one document; see `IStore.lookup_in`.

    Args:
        old: The document; a tombstone only with ACCESS_DELETED.
        now: Unix time in seconds.
        specs: What `refuse_lookup` found well formed.
        uuid: Name of the store's history.
    """
    counts = ("get_misses",) if old is None or old.deleted else ("get_hits",)
    if old is None:
        return Decision(Refusal.NOT_FOUND, counts=counts)
    return Decision((yield from look_up_all(old, specs, uuid)), counts=counts)


def mutate_in_pieces(
    old: Document | None,
    now: float,
    specs: Sequence[MutationSpec],
    doc_flags: int,
    expiry: int,
    cas: int,
    flags: int | None,
    preserve_expiry: bool,
    uuid: int,
    stamp: Stamp,
) -> Work[Decision[MutationResult | PathStatus | Refusal]]:
    """Change several paths in one document, all or none; see `IStore.mutate_in`.

    Args:
        old: The document; a tombstone only with ACCESS_DELETED.
        now: Unix time in seconds.
        specs: What `refuse_mutation` found well formed.
        doc_flags: `DocFlag` bits.
        expiry: As the client sent it.
        cas: 0 or the one that the document must have.
        flags: Its new flags; None keeps what it has.
        preserve_expiry: An existing document keeps its own expiry.
        uuid: Name of the store's history.
        stamp: Called, once, only where a macro may want to know the CAS or sequence number.
    """
    base, refused, counts = _base(old, specs, doc_flags, cas)
    if refused is not None:
        return Decision(refused, counts=counts)
    new = Document(b"")
    if any(spec.flags & PathFlag.EXPAND_MACROS for spec in specs):
        stamp(new)
    changes = yield from mutate_all(base, specs, new, doc_flags, uuid)
    if isinstance(changes, MutationResult):
        return Decision(changes, counts=counts)
    if changes.xattrs is not None and len(changes.xattrs) > MAX_XATTRS:
        return Decision(Refusal.TOO_BIG, counts=counts)
    new.value, new.xattrs, new.kind = changes.value, changes.xattrs, changes.kind
    there = None if old is None or old.deleted else old
    effect, keeps = Effect.DELETE, False
    if changes.delete or stays_deleted(base, specs, doc_flags):
        new = tombstone(there, new, now)
    else:
        new.flags = flags if flags is not None else there.flags if there is not None else 0
        keeps = preserve_expiry and there is not None
        new.expires_at = there.expires_at if keeps and there else deadline(expiry, now)
        effect = storing(new, now, counts).effect
    is_tombstone = new.deleted and not changes.delete
    status = PathStatus.SUCCESS_DELETED if is_tombstone else PathStatus.SUCCESS
    return Decision(MutationResult(status, new, changes.results), effect, new, counts, keeps)


def lookup_in(*args: Any) -> Decision[LookupResult | PathStatus | Refusal]:
    """Do as `look_up_in_pieces`, at once."""
    return at_once(look_up_in_pieces(*args))


def mutate_in(*args: Any) -> Decision[MutationResult | PathStatus | Refusal]:
    """Do as `mutate_in_pieces`, at once."""
    return at_once(mutate_in_pieces(*args))


RuleInPieces: TypeAlias = Callable[..., Work[Decision[Any]]]

IN_PIECES: dict[Rule[Any], RuleInPieces] = {
    lookup_in: look_up_in_pieces,
    mutate_in: mutate_in_pieces,
}
"""The form of each rule that works in pieces; while it waits the document may be changed."""


def _base(
    old: Document | None, specs: Sequence[MutationSpec], doc_flags: int, cas: int
) -> tuple[Document | None, PathStatus | Refusal | None, Counts]:
    """Return what a mutation starts from (document, tombstone, nothing); why not; what counts."""
    if old is not None and not old.deleted:
        if doc_flags & DocFlag.ADD:
            return None, Refusal.EXISTS, _SET
        if doc_flags & DocFlag.REVIVE:
            return None, PathStatus.NOT_DELETED, _SET
        refusal, counts = check(old, cas, _SET)
        return old, refusal, counts
    if old is not None and not doc_flags & DocFlag.ADD:
        if cas and cas != old.cas:
            return None, Refusal.EXISTS, _SET
        return old, check_tombstone(specs, doc_flags), _SET
    if cas or not doc_flags & (DocFlag.ADD | DocFlag.MKDOC):
        return None, Refusal.NOT_FOUND, _SET
    return None, None, _SET
