"""What a store counts, under the names that memcached's ``stats`` uses.

Source: memcached ``doc/protocol.txt``, "General-purpose statistics".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvproto.store.document import Document, Key, accessed_at
from kvproto.store.slab_classes import item_size, slab_class

__all__ = ["ClassCounts", "Statistics"]


@dataclass(slots=True)
class ClassCounts:
    """What left the store of one slab class, under the names of ``stats items``.

    Attributes:
        evicted: Documents that made room for others.
        evicted_nonzero: Those of them that would have expired.
        evicted_time: Seconds since the last of them was used.
        evicted_unfetched: Those that nobody had read, as far as that is noted.
        reclaimed: Documents whose memory was given back, as they had expired or been flushed.
        expired_unfetched: Those of them that nobody had read, as far as that is noted.
    """

    evicted: int = 0
    evicted_nonzero: int = 0
    evicted_time: int = 0
    evicted_unfetched: int = 0
    reclaimed: int = 0
    expired_unfetched: int = 0


class Statistics:
    """Counters, all from 0 at the start; attributes, because GET and SET count themselves."""

    def __init__(self) -> None:
        self.get_hits = 0
        self.get_misses = 0
        self.get_expired = 0
        self.cmd_set = 0
        self.cmd_touch = 0
        self.cmd_flush = 0
        self.cas_hits = 0
        self.cas_misses = 0
        self.cas_badval = 0
        self.delete_hits = 0
        self.delete_misses = 0
        self.touch_hits = 0
        self.touch_misses = 0
        self.incr_hits = 0
        self.incr_misses = 0
        self.decr_hits = 0
        self.decr_misses = 0
        self.too_large = 0
        self.no_memory = 0
        self.total_items = 0
        self.get_flushed = 0
        self.evictions = 0
        self.evicted_unfetched = 0
        self.reclaimed = 0
        self.expired_unfetched = 0
        self.classes: dict[int, ClassCounts] = {}

    def evicted(self, key: Key, document: Document, now: float, *, unfetched: bool) -> None:
        """Count a document that made room for others.

        Args:
            key: Its key.
            document: It.
            now: Unix time in seconds.
            unfetched: Whether it is known that nobody has read it.
        """
        self.evictions += 1
        self.evicted_unfetched += unfetched
        counts = self.of_class(key, document)
        counts.evicted += 1
        counts.evicted_nonzero += document.expires_at != 0.0
        counts.evicted_unfetched += unfetched
        counts.evicted_time = max(0, int(now) - (accessed_at(document) or int(now)))

    def expired(self, key: Key, document: Document, *, unfetched: bool) -> None:
        """Count a document that had expired, or had been flushed, and whose memory is free now."""
        self.reclaimed += 1
        self.expired_unfetched += unfetched
        counts = self.of_class(key, document)
        counts.reclaimed += 1
        counts.expired_unfetched += unfetched

    def of_class(self, key: Key, document: Document) -> ClassCounts:
        """Return the counts of the slab class that a document would have in memcached."""
        number = slab_class(item_size(key, document))
        found = self.classes.get(number)
        if found is None:
            found = self.classes[number] = ClassCounts()
        return found

    def count(self, names: Iterable[str]) -> None:
        """Let some counters grow by one."""
        for name in names:
            setattr(self, name, getattr(self, name) + 1)

    def report(self) -> dict[str, int | str]:
        """Return all counters, named as memcached names them."""
        return {
            "cmd_get": self.get_hits + self.get_misses,
            "cmd_set": self.cmd_set,
            "cmd_flush": self.cmd_flush,
            "cmd_touch": self.cmd_touch,
            "get_hits": self.get_hits,
            "get_misses": self.get_misses,
            "get_expired": self.get_expired,
            "get_flushed": self.get_flushed,
            "delete_misses": self.delete_misses,
            "delete_hits": self.delete_hits,
            "incr_misses": self.incr_misses,
            "incr_hits": self.incr_hits,
            "decr_misses": self.decr_misses,
            "decr_hits": self.decr_hits,
            "cas_misses": self.cas_misses,
            "cas_hits": self.cas_hits,
            "cas_badval": self.cas_badval,
            "touch_hits": self.touch_hits,
            "touch_misses": self.touch_misses,
            "store_too_large": self.too_large,
            "store_no_memory": self.no_memory,
            "total_items": self.total_items,
            "evictions": self.evictions,
            "evicted_unfetched": self.evicted_unfetched,
            "reclaimed": self.reclaimed,
            "expired_unfetched": self.expired_unfetched,
        }
