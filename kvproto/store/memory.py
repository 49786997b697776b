"""`MemoryStore`: every operation of the store contract, on documents in memory.

Owns the rules of each operation.  How documents are kept within the memory limit is
`kvproto.store.shelf`'s; what an expiry means is `kvproto.store.expiry`'s.

Source: memcached ``doc/protocol.txt``; Couchbase kv_engine
``docs/BinaryProtocol.md``.  Where the two differ, the reference page "Stores" says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from zope.interface import implementer

from kvproto.store.document import DO_NOT_CREATE, Document, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.interfaces import IStore
from kvproto.store.multi import (
    DocFlag,
    LookupResult,
    MutationResult,
    check_lookup,
    check_mutation,
    check_tombstone,
    look_up_all,
    mutate_all,
    stays_deleted,
)
from kvproto.store.paths import PathStatus
from kvproto.store.shelf import Shelf
from kvproto.store.subdoc import LookupSpec, MutationSpec

__all__ = ["DEFAULT_MAX_VALUE", "DEFAULT_MEMORY_LIMIT", "MemoryStore"]

DEFAULT_MEMORY_LIMIT = 64 << 20
"""Bytes; memcached's ``-m 64``."""

DEFAULT_MAX_VALUE = 20 << 20
"""Bytes of one value; Couchbase's ``max_item_size``."""

_DEFAULT_LOCK_S = 15
_MAX_LOCK_S = 30
_COUNTER_MASK = 0xFFFFFFFF_FFFFFFFF
_COUNTER_DIGITS = 20
_JSON = 1


@implementer(IStore)
class MemoryStore(Shelf):
    """A store in this process's memory.

    Args:
        now: Returns unix time in seconds, e.g. ``reactor.seconds`` or ``time.time``.
        memory_limit: Bytes for all documents, overhead included.
        evict: Whether a full store drops the least recently used, or refuses writes (NO_MEMORY).
        max_item: Bytes of one key and value together, above which a write is TOO_BIG; None
            leaves only ``max_value``.
        max_value: Bytes of one value, above which a write is TOO_BIG.
        uuid: Name of the history of sequence numbers; random when None.
    """

    def __init__(
        self,
        now: Callable[[], float],
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        evict: bool = True,
        max_item: int | None = None,
        *,
        max_value: int = DEFAULT_MAX_VALUE,
        uuid: int | None = None,
    ) -> None:
        super().__init__(now, memory_limit, evict)
        self.uuid = secrets.randbits(48) if uuid is None else uuid
        self._max_item = memory_limit if max_item is None else max_item
        self._max_value = max_value
        self._cas = 0

    # -- reading --------------------------------------------------------------

    def get(self, key: Key) -> Document | None:
        """Read a document; see `IStore.get`."""
        document = self._find(key)
        if document is None:
            self._get_misses += 1
            return None
        if document.expires_at or document.locked_until:
            now = self._now()
            if document.expires_at and document.expires_at <= now:
                self._remove(key, document)
                self._reclaimed += 1
                self._get_expired += 1
                self._get_misses += 1
                return None
            if document.locked_until and document.locked_until <= now:
                document.locked_until = 0.0
        self._get_hits += 1
        self._use(key)
        return document

    # -- storing --------------------------------------------------------------

    def set(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Document | Refusal:
        """Store whatever was there before; see `IStore.set`."""
        self._cmd_set += 1
        now = self._now()
        old = self._live(key, now)
        if cas or (old is not None and old.locked_until):
            refusal = self._check(old, cas)
            if refusal is not None:
                return refusal
        if preserve_expiry and old is not None:
            expires_at = old.expires_at
        else:
            expires_at = deadline(expiry, now) if expiry else 0.0
        return self._commit(key, value, flags, expires_at, datatype, old, now)

    def add(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Document | Refusal:
        """Store only where nothing is; see `IStore.add`."""
        self._cmd_set += 1
        now = self._now()
        if self._live(key, now) is not None:
            return Refusal.EXISTS
        if cas:
            return Refusal.NOT_FOUND
        return self._commit(key, value, flags, deadline(expiry, now), datatype, None, now)

    def replace(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Document | Refusal:
        """Store only where something is; see `IStore.replace`."""
        self._cmd_set += 1
        now = self._now()
        old = self._live(key, now)
        refusal = self._check(old, cas)
        if refusal is not None:
            return refusal
        if preserve_expiry and old is not None:
            expires_at = old.expires_at
        else:
            expires_at = deadline(expiry, now) if expiry else 0.0
        return self._commit(key, value, flags, expires_at, datatype, old, now)

    def append(self, key: Key, value: bytes, cas: int = 0) -> Document | Refusal:
        """Put bytes behind a value; see `IStore.append`."""
        return self._extend(key, b"", value, cas)

    def prepend(self, key: Key, value: bytes, cas: int = 0) -> Document | Refusal:
        """Put bytes before a value; see `IStore.prepend`."""
        return self._extend(key, value, b"", cas)

    def _extend(self, key: Key, before: bytes, after: bytes, cas: int) -> Document | Refusal:
        self._cmd_set += 1
        now = self._now()
        old = self._live(key, now)
        if old is None:
            return Refusal.NOT_STORED
        refusal = self._check(old, cas)
        if refusal is not None:
            return refusal
        return self._change(key, old, before + old.value + after, 0, now)

    def delete(self, key: Key, cas: int = 0) -> Document | Refusal:
        """Remove a document; see `IStore.delete`."""
        now = self._now()
        old = self._live(key, now)
        if old is None:
            self._delete_misses += 1
            return Refusal.NOT_FOUND
        refusal = self._check(old, cas)
        if refusal is not None:
            return refusal
        self._delete_hits += 1
        cas = self._next_cas(now)
        return self._entomb(key, old, Document(b"", 0, cas, seqno=self._seqno + 1), now)

    # -- counters -------------------------------------------------------------

    def increment(
        self, key: Key, delta: int, initial: int, expiry: int, cas: int = 0
    ) -> Document | Refusal:
        """Add to a counter; see `IStore.increment`."""
        result, hit = self._count(key, delta, initial, expiry, cas)
        if hit:
            self._incr_hits += 1
        else:
            self._incr_misses += 1
        return result

    def decrement(
        self, key: Key, delta: int, initial: int, expiry: int, cas: int = 0
    ) -> Document | Refusal:
        """Subtract from a counter; see `IStore.decrement`."""
        result, hit = self._count(key, -delta, initial, expiry, cas)
        if hit:
            self._decr_hits += 1
        else:
            self._decr_misses += 1
        return result

    def _count(
        self, key: Key, delta: int, initial: int, expiry: int, cas: int
    ) -> tuple[Document | Refusal, bool]:
        """Change a counter by a signed delta; also say whether there was one."""
        now = self._now()
        old = self._live(key, now)
        if old is None:
            if cas or expiry == DO_NOT_CREATE:
                return Refusal.NOT_FOUND, False
            expires_at = deadline(expiry, now)
            return self._commit(key, b"%d" % initial, 0, expires_at, _JSON, None, now), False
        refusal = self._check(old, cas)
        if refusal is not None:
            return refusal, True
        digits = old.value
        if not digits.isdigit() or len(digits) > _COUNTER_DIGITS or int(digits) > _COUNTER_MASK:
            return Refusal.NOT_A_NUMBER, True
        number = max(0, int(digits) + delta) & _COUNTER_MASK
        return self._change(key, old, b"%d" % number, _JSON, now), True

    # -- expiry and locks -----------------------------------------------------

    def touch(self, key: Key, expiry: int) -> Document | Refusal:
        """Give a document another expiry; see `IStore.touch`."""
        self._cmd_touch += 1
        now = self._now()
        old = self._live(key, now)
        if old is None:
            self._touch_misses += 1
            return Refusal.NOT_FOUND
        if old.locked_until:
            return Refusal.LOCKED
        self._touch_hits += 1
        expires_at = deadline(expiry, now)
        if expires_at == old.expires_at:
            self._use(key)
            return old
        return self._commit(key, old.value, old.flags, expires_at, old.datatype, old, now)

    def get_and_touch(self, key: Key, expiry: int) -> Document | Refusal:
        """Do as `touch`, counted as a read too; see `IStore.get_and_touch`."""
        result = self.touch(key, expiry)
        if result is Refusal.NOT_FOUND:
            self._get_misses += 1
        elif result is not Refusal.LOCKED:
            self._get_hits += 1
        return result

    def get_and_lock(self, key: Key, seconds: int) -> Document | Refusal:
        """Lock a document; see `IStore.get_and_lock`."""
        now = self._now()
        old = self._live(key, now)
        if old is None:
            self._get_misses += 1
            return Refusal.NOT_FOUND
        if old.locked_until:
            return Refusal.LOCKED
        if not 0 < seconds <= _MAX_LOCK_S:
            seconds = _DEFAULT_LOCK_S
        self._get_hits += 1
        self._use(key)
        locked = Document(
            old.value,
            old.flags,
            self._next_cas(now),
            old.expires_at,
            now + seconds,
            old.seqno,
            old.datatype,
            old.due,
            old.xattrs,
        )
        self._items[key] = locked
        return locked

    def unlock(self, key: Key, cas: int) -> Refusal | None:
        """Release a lock; see `IStore.unlock`."""
        document = self._live(key, self._now())
        if document is None:
            return Refusal.NOT_FOUND
        if not document.locked_until:
            return Refusal.NOT_LOCKED
        if cas != document.cas:
            return Refusal.LOCKED
        document.locked_until = 0.0
        return None

    # -- all at once ----------------------------------------------------------

    def discard(self, key: Key) -> None:
        """Remove a document, locked or not; see `IStore.discard`."""
        old = self._live(key, self._now())
        if old is not None:
            self._remove(key, old)
            self._seqno += 1

    def flush(self, delay: int = 0) -> None:
        """Remove all documents, now or later; see `IStore.flush`."""
        self._cmd_flush += 1
        self._flush(delay)

    def stats(self) -> dict[str, int | str]:
        """Return counters, named as memcached's ``stats`` names them."""
        if self._flush_at <= self._now():
            self._discard_all()
        return {
            **self._counters(),
            "limit_maxbytes": self._limit,
            "bytes": self._used,
            "curr_items": len(self._items),
        }

    # -- parts of documents ---------------------------------------------------

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

    def _entomb(
        self, key: Key, old: Document | None, tombstone: Document, now: float
    ) -> Document | Refusal:
        """Put a tombstone in the place of a document; one without attributes is not kept.

        Attributes whose names begin with ``_`` (the system's) outlive their document, those of
        users do not, unless the tombstone was made with them.
        """
        tombstone.value, tombstone.deleted = b"", True
        if old is not None:
            xattrs = tombstone.xattrs or old.xattrs or {}
            system = {name: text for name, text in xattrs.items() if name[0] == "_"}
            tombstone.xattrs = system or None
            self._remove(key, old)
        if tombstone.xattrs is None:
            self._exhume(key)
        elif not self._bury(key, tombstone, now) and old is None:
            # Where something was deleted, it stays deleted; only its attributes are lost.
            self._no_memory += 1
            return Refusal.NO_MEMORY
        self._seqno += 1
        return tombstone

    # -- the rules that operations share --------------------------------------

    def _check(self, old: Document | None, cas: int) -> Refusal | None:
        """Say why a mutation of what is there may not go ahead; None when it may."""
        if old is None:
            if cas:
                self._cas_misses += 1
            return Refusal.NOT_FOUND
        if old.locked_until and cas != old.cas:
            return Refusal.LOCKED
        if not cas:
            return None
        if cas != old.cas:
            self._cas_badval += 1
            return Refusal.EXISTS
        self._cas_hits += 1
        return None

    def _next_cas(self, now: float) -> int:
        """Return the clock in nanoseconds with the low 16 bits free, or the last CAS and one.

        So a CAS grows even when the clock does not, tells when a document changed, and is not
        repeated by the next process.  Source: kv_engine's hybrid logical clock.
        """
        cas = int(now * 1e9) & 0x7FFFFFFF_FFFF0000
        if cas <= self._cas:
            cas = self._cas + 1
        self._cas = cas
        return cas

    def _change(
        self, key: Key, old: Document, value: bytes, datatype: int, now: float
    ) -> Document | Refusal:
        """Store another value; flags and expiry stay as they were."""
        return self._commit(key, value, old.flags, old.expires_at, datatype, old, now)

    def _commit(
        self,
        key: Key,
        value: bytes,
        flags: int,
        expires_at: float,
        datatype: int,
        old: Document | None,
        now: float,
    ) -> Document | Refusal:
        """Let a mutation that was found right happen, if there is room for it."""
        cas = self._next_cas(now)
        document = Document(value, flags, cas, expires_at, 0.0, self._seqno + 1, datatype)
        if old is not None:
            document.xattrs = old.xattrs
            if value is old.value:
                document.kind = old.kind
        return self._keep(key, document, old, now)

    def _keep(
        self, key: Key, document: Document, old: Document | None, now: float
    ) -> Document | Refusal:
        """Put a document that is ready into its place, if there is room for it."""
        length = len(document.value)
        if document.xattrs is not None:
            length += sum(map(len, document.xattrs.values()))
        key_length = len(key[1]) if key.__class__ is tuple else len(key)
        if length > self._max_value or length + key_length > self._max_item:
            self._too_large += 1
            return Refusal.TOO_BIG
        if document.expires_at and document.expires_at <= now:
            if old is not None:
                self._remove(key, old)
        else:
            refusal = self._put(key, document, old, now)
            if refusal is not None:
                if refusal is Refusal.TOO_BIG:
                    self._too_large += 1
                else:
                    self._no_memory += 1
                return refusal
        self._seqno += 1
        return document
