"""What a store counts, under the names that memcached's ``stats`` uses.

Source: memcached ``doc/protocol.txt``, "General-purpose statistics".
"""

from __future__ import annotations

__all__ = ["Statistics"]


class Statistics:
    """Counters, all from 0 at the start; plain attributes, because reads count themselves."""

    _get_hits = 0
    _get_misses = 0
    _get_expired = 0
    _cmd_set = 0
    _cmd_touch = 0
    _cmd_flush = 0
    _cas_hits = 0
    _cas_misses = 0
    _cas_badval = 0
    _delete_hits = 0
    _delete_misses = 0
    _touch_hits = 0
    _touch_misses = 0
    _incr_hits = 0
    _incr_misses = 0
    _decr_hits = 0
    _decr_misses = 0
    _too_large = 0
    _no_memory = 0
    _total_items = 0
    _evictions = 0
    _reclaimed = 0

    def _counters(self) -> dict[str, int | str]:
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
            "total_items": self._total_items,
            "evictions": self._evictions,
            "reclaimed": self._reclaimed,
        }
