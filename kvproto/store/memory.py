"""`MemoryStore`: every operation of the store contract, on documents in memory.

Owns the rules of each operation.  How documents are kept within the memory limit is
`kvproto.store.shelf`'s; what an expiry means is `kvproto.store.expiry`'s.

Source: memcached ``doc/protocol.txt``; Couchbase kv_engine
``docs/BinaryProtocol.md``.  Where the two differ, the reference page "Stores" says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from zope.interface import implementer

from kvproto.store.document import DO_NOT_CREATE, Document, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.interfaces import IStore
from kvproto.store.shelf import Shelf

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
        self._get_hits = self._get_misses = self._get_expired = 0
        self._cmd_set = self._cmd_touch = self._cmd_flush = 0
        self._cas_hits = self._cas_misses = self._cas_badval = 0
        self._delete_hits = self._delete_misses = 0
        self._touch_hits = self._touch_misses = 0
        self._incr_hits = self._incr_misses = 0
        self._decr_hits = self._decr_misses = 0
        self._too_large = self._no_memory = 0

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
        self._remove(key, old)
        self._seqno += 1
        return Document(b"", 0, self._next_cas(now), 0.0, 0.0, self._seqno, deleted=True)

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
            "cmd_get": self._get_hits + self._get_misses,
            "cmd_set": self._cmd_set,
            "cmd_flush": self._cmd_flush,
            "cmd_touch": self._cmd_touch,
            "get_hits": self._get_hits,
            "get_misses": self._get_misses,
            "get_expired": self._get_expired,
            "delete_misses": self._delete_misses,
            "delete_hits": self._delete_hits,
            "incr_misses": self._incr_misses,
            "incr_hits": self._incr_hits,
            "decr_misses": self._decr_misses,
            "decr_hits": self._decr_hits,
            "cas_misses": self._cas_misses,
            "cas_hits": self._cas_hits,
            "cas_badval": self._cas_badval,
            "touch_hits": self._touch_hits,
            "touch_misses": self._touch_misses,
            "store_too_large": self._too_large,
            "store_no_memory": self._no_memory,
            "limit_maxbytes": self._limit,
            "bytes": self._used,
            "curr_items": len(self._items),
            "total_items": self._total_items,
            "evictions": self._evictions,
            "reclaimed": self._reclaimed,
        }

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
        length = len(value)
        key_length = len(key[1]) if key.__class__ is tuple else len(key)
        if length > self._max_value or length + key_length > self._max_item:
            self._too_large += 1
            return Refusal.TOO_BIG
        cas = self._next_cas(now)
        document = Document(value, flags, cas, expires_at, 0.0, self._seqno + 1, datatype)
        if old is not None and old.xattrs is not None:
            document.xattrs = old.xattrs
        if expires_at and expires_at <= now:
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
