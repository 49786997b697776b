"""Sub-document operations of `kvproto.store.memory.MemoryStore`: on which document, and when.

What they do to a text is `kvproto.store.subdoc`'s and `kvproto.store.multi`'s.

Source: kv_engine ``docs/SubDocument.md``, "Doc Flags"; mcbp rules for deleted documents.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvproto.store.document import Document, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.multi import (
    LookupResult,
    MutationResult,
    check_lookup,
    check_mutation,
    check_tombstone,
    look_up_all,
    mutate_all,
    stays_deleted,
)
from kvproto.store.rules import Rules
from kvproto.wire.subdoc_terms import DocFlag, LookupSpec, MutationSpec, PathStatus

__all__ = ["Partial"]


class Partial(Rules):
    """Operations on parts of documents."""

    def lookup_in(
        self, key: Key, specs: Sequence[LookupSpec], doc_flags: int = 0
    ) -> LookupResult | PathStatus | Refusal:
        """Look up several paths in one document; see `IStore.lookup_in`."""
        status = check_lookup(specs, doc_flags)
        if status is not PathStatus.SUCCESS:
            return status
        document = self.get(key)
        if document is None and doc_flags & DocFlag.ACCESS_DELETED:
            document = self._tombstones.get(key)
        if document is None:
            return Refusal.NOT_FOUND
        return look_up_all(document, specs, self.uuid)

    def mutate_in(
        self,
        key: Key,
        specs: Sequence[MutationSpec],
        doc_flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        flags: int | None = None,
        preserve_expiry: bool = False,
    ) -> MutationResult | PathStatus | Refusal:
        """Change several paths in one document, all or none; see `IStore.mutate_in`."""
        status = check_mutation(specs, doc_flags, cas)
        if status is not PathStatus.SUCCESS:
            return status
        self._cmd_set += 1
        now = self._now()
        old = self._live(key, now)
        base, refused = self._base(key, old, specs, doc_flags, cas)
        if refused is not None:
            return refused
        new = Document(b"", 0, self._next_cas(now), seqno=self._seqno + 1)
        changes = mutate_all(base, specs, new, doc_flags, self.uuid)
        if isinstance(changes, MutationResult):
            return changes
        new.value, new.xattrs, new.kind = changes.value, changes.xattrs, changes.kind
        if changes.delete or stays_deleted(base, specs, doc_flags):
            kept: Document | Refusal = self._entomb(key, old, new, now)
        else:
            new.flags = flags if flags is not None else old.flags if old is not None else 0
            keeps = preserve_expiry and old is not None
            new.expires_at = old.expires_at if keeps and old else deadline(expiry, now)
            kept = self._keep(key, new, old, now)
        if isinstance(kept, Refusal):
            return kept
        is_tombstone = kept.deleted and not changes.delete
        status = PathStatus.SUCCESS_DELETED if is_tombstone else PathStatus.SUCCESS
        return MutationResult(status, kept, changes.results)

    def _base(
        self,
        key: Key,
        old: Document | None,
        specs: Sequence[MutationSpec],
        doc_flags: int,
        cas: int,
    ) -> tuple[Document | None, PathStatus | Refusal | None]:
        """Say what a mutation starts from: a document, a tombstone or nothing; or why not."""
        if old is not None:
            if doc_flags & DocFlag.ADD:
                return None, Refusal.EXISTS
            if doc_flags & DocFlag.REVIVE:
                return None, PathStatus.NOT_DELETED
            return old, self._check(old, cas)
        tombstone = self._tombstones.get(key) if doc_flags & DocFlag.ACCESS_DELETED else None
        if tombstone is not None and not doc_flags & DocFlag.ADD:
            if cas and cas != tombstone.cas:
                return None, Refusal.EXISTS
            return tombstone, check_tombstone(specs, doc_flags)
        if cas or not doc_flags & (DocFlag.ADD | DocFlag.MKDOC):
            return None, Refusal.NOT_FOUND
        return None, None
