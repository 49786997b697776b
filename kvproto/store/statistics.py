"""What a store counts, under the names that memcached's ``stats`` uses.

Source: memcached ``doc/protocol.txt``, "General-purpose statistics".
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Statistics"]


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
        self.evictions = 0
        self.reclaimed = 0

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
            "reclaimed": self.reclaimed,
        }
