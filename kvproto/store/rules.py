"""The rules that all operations of `kvproto.store.memory.MemoryStore` share.

Owns reading, CAS, limits of one document, and how a mutation that was found right happens.

Source: memcached ``doc/protocol.txt``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from kvproto.store.document import Document, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.table import ITEM_OVERHEAD, DocumentTable

__all__ = ["DEFAULT_MAX_VALUE", "DEFAULT_MEMORY_LIMIT", "Rules"]

DEFAULT_MEMORY_LIMIT = 64 << 20
"""Bytes; memcached's ``-m 64``."""

DEFAULT_MAX_VALUE = 20 << 20
"""Bytes of one value; Couchbase's ``max_item_size``."""

_new = object.__new__


class Rules(DocumentTable):
    """A table with the rules of documents; the arguments are those of `MemoryStore`."""

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
        self._plain_size = min(max_value, self._max_item, memory_limit - ITEM_OVERHEAD)
        self._cas = 0
        self._cas_until = 0.0

    # -- reading --------------------------------------------------------------

    def get(self, key: Key) -> Document | None:
        """Read a document; see `IStore.get`."""
        # The interpreter calls locals sooner than what an instance keeps.
        find = self._find
        document = find(key)
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
        use = self._use
        use(key)
        return document

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
        # Until then the clock cannot be ahead: who is in a hurry may count up without asking here.
        self._cas_until = float((cas | 0xFFFF) + 1)
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

    def set_plainly(
        self, key: bytes, value: bytes, flags: int, expiry: int, datatype: int
    ) -> Document | None:
        """Do as `set` where nothing unusual is in the way, in half of its time.

        It is `_live`, `_next_cas`, `_commit`, `_keep` and `_put` in one, less what they do in other
        cases; `set` comes here first, and so may who calls `set` often.

        Returns:
            None when there is more to consider, so that only `set` will do; nothing has happened
            then that would not happen there.
        """
        find, clock = self._find, self._now
        now = clock()
        old = find(key)
        expires_at = deadline(expiry, now) if expiry else 0.0
        size = len(value)
        item_size = size + len(key)
        if old is None:
            if self._tombstones:  # of this very key, perhaps; beside a document there is none
                return None
            growth = item_size + ITEM_OVERHEAD
        elif (
            old.locked_until or old.xattrs is not None or (old.expires_at and old.expires_at <= now)
        ):
            return None
        else:
            growth = size - len(old.value)
        if (
            item_size > self._plain_size
            or self._due.first <= now
            or self._garbage
            or self._sweeping
            or (expires_at and expires_at <= now)
        ):
            return None
        if old is not None:
            use = self._use
            use(key)
        if self._used + growth > self._limit and not self._make_room(growth, now):
            return None
        self._cmd_set += 1
        self._total_items += 1
        self._used += growth
        self._seqno = seqno = self._seqno + 1
        nanoseconds = now * 1e9
        if nanoseconds < self._cas_until:
            self._cas = cas = self._cas + 1
        else:
            cas = self._next_cas(now)
        # What ``Document(...)`` does, in 0.6 of the time.
        document = _new(Document)
        document.value = value
        document.flags = flags
        document.cas = cas
        document.expires_at = expires_at
        document.locked_until = 0.0
        document.seqno = seqno
        document.datatype = datatype
        document.due = document.kind = 0
        document.xattrs = None
        document.deleted = False
        if old is not None and value is old.value:
            document.kind = old.kind
        self._items[key] = document
        if expires_at:
            self._schedule(key, document, old)
        return document

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
