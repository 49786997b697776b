"""`MemoryStore`: every operation of the store contract, on documents in memory.

Owns the operations on whole documents.  Rules that they share are `kvproto.store.rules`'; those
on parts of documents are `kvproto.store.partial`'s; how documents are kept within the memory
limit is `kvproto.store.table`'s; what an expiry means is `kvproto.store.expiry`'s.

Source: memcached ``doc/protocol.txt``; Couchbase kv_engine
``docs/BinaryProtocol.md``.  Where the two differ, the reference page "Stores" says so.
"""

from __future__ import annotations

from zope.interface import implementer

from kvproto.store.document import DO_NOT_CREATE, Document, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.interfaces import IStore
from kvproto.store.partial import Partial
from kvproto.store.rules import DEFAULT_MAX_VALUE, DEFAULT_MEMORY_LIMIT

__all__ = ["DEFAULT_MAX_VALUE", "DEFAULT_MEMORY_LIMIT", "MemoryStore"]

_DEFAULT_LOCK_S = 15
_MAX_LOCK_S = 30
_COUNTER_MASK = 0xFFFFFFFF_FFFFFFFF
_COUNTER_DIGITS = 20
_JSON = 1


@implementer(IStore)
class MemoryStore(Partial):
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
        if not cas and not preserve_expiry and key.__class__ is bytes:
            document = self.set_plainly(key, value, flags, expiry, datatype)
            if document is not None:
                return document
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
