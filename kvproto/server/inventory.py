"""What is in a store, told as memcached tells it: by slab class, by size, by key.

Nothing is kept in slabs here; items are counted in the class that they would have in a memcached
with default options (`kvproto.store.slab_classes`).  All of it is counted when it is asked for, in
pieces that hold nobody up, so that writing costs nothing more.  A store that cannot be looked
through (an engine's) has no items as far as this is concerned.

Source: memcached 1.6.45, ``items.c``, ``slabs.c``, ``crawler.c``; ``doc/protocol.txt``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote_from_bytes

from kvproto.server.replies import then
from kvproto.store import Document, Key, Mark, accessed_at
from kvproto.store.slab_classes import CHUNK_SIZES, PAGE_BYTES, item_size, slab_class
from kvproto.store.statistics import ClassCounts
from kvproto.wire.meta import meta_key

__all__ = ["MAX_CLASSES", "cachedump", "dump", "items", "sizes", "slabs"]

Value: TypeAlias = int | str

MAX_CLASSES = 64
"""memcached's ``MAX_NUMBER_OF_SLAB_CLASSES``."""

_CACHEDUMP_BYTES = 2 * 1024 * 1024
_DUMP_BYTES = 64 * 1024 * 1024
"""Most bytes of one listing; what does not fit is left out."""

_SIZE_STEP = 32


@dataclass(slots=True)
class _Class:
    """What there is of one slab class.

    Attributes:
        number: Items.
        requested: Bytes that memcached would need for them.
        oldest: When the one that was not used for longest was used last, unix seconds.
    """

    number: int = 0
    requested: int = 0
    oldest: int = 0


@dataclass(slots=True)
class _Listing:
    """Lines, as many as fit."""

    limit: int
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, line: bytes) -> None:
        if self.size + len(line) <= self.limit:
            self.lines.append(line)
            self.size += len(line)


def _look_through(store: Any, look: Callable[[Key, Document], None]) -> Any:
    """Call ``look`` for each document; return when that is done, or a Deferred of it."""
    survey = getattr(store, "survey", None)
    return None if survey is None else survey(look)


def _classes(store: Any, now: float, tell: Callable[[dict[int, _Class]], Any]) -> Any:
    found: dict[int, _Class] = {}

    def look(key: Key, document: Document) -> None:
        size = item_size(key, document)
        one = found.setdefault(slab_class(size), _Class())
        one.number += 1
        one.requested += size
        used = accessed_at(document) or int(now)
        one.oldest = min(one.oldest or used, used)

    return then(_look_through(store, look), lambda _: tell(dict(sorted(found.items()))))


_ITEM_ZEROS = (
    "outofmemory", "tailrepairs", "evicted_active", "crawler_reclaimed", "crawler_items_checked",
    "lrutail_reflocked", "moves_to_cold", "moves_to_warm", "moves_within_lru", "direct_reclaims",
    "hits_to_hot", "hits_to_warm", "hits_to_cold", "hits_to_temp",
)  # fmt: skip
"""What memcached counts for each class, and what never happens here."""


def items(store: Any, now: float) -> Any:
    """Return ``stats items``: there is one queue, which is called cold."""
    left = getattr(getattr(store, "statistics", None), "classes", {})

    def tell(classes: dict[int, _Class]) -> dict[str, Value]:
        told: dict[str, Value] = {}
        for number, one in classes.items():
            age = max(0, int(now) - one.oldest)
            told |= {
                f"items:{number}:number": one.number,
                f"items:{number}:number_hot": 0,
                f"items:{number}:number_warm": 0,
                f"items:{number}:number_cold": one.number,
                f"items:{number}:age_hot": 0,
                f"items:{number}:age_warm": 0,
                f"items:{number}:age": age,
                f"items:{number}:mem_requested": one.requested,
            }
            counts = asdict(left.get(number, ClassCounts()))
            told |= {f"items:{number}:{name}": value for name, value in counts.items()}
            told |= {f"items:{number}:{name}": 0 for name in _ITEM_ZEROS}
        return told

    return _classes(store, now, tell)


_SLAB_COUNTS = (
    "get_hits", "cmd_set", "delete_hits", "incr_hits", "decr_hits", "cas_hits", "cas_badval",
    "touch_hits",
)  # fmt: skip


def slabs(store: Any, counted: dict[str, Value]) -> Any:
    """Return ``stats slabs``: as many pages as the items would need.

    Args:
        store: Whose items.
        counted: What was counted for all classes together; it is told of the first.
    """

    def tell(classes: dict[int, _Class]) -> dict[str, Value]:
        told: dict[str, Value] = {}
        pages = 0
        for number, one in classes.items():
            chunk = CHUNK_SIZES[number - 1]
            per_page = PAGE_BYTES // chunk
            of_class = -(-one.number // per_page)
            counts = {name: 0 if told else counted.get(name, 0) for name in _SLAB_COUNTS}
            told |= {
                f"{number}:chunk_size": chunk,
                f"{number}:chunks_per_page": per_page,
                f"{number}:total_pages": of_class,
                f"{number}:total_chunks": of_class * per_page,
                f"{number}:used_chunks": one.number,
                f"{number}:free_chunks": of_class * per_page - one.number,
                f"{number}:free_chunks_end": 0,
                f"{number}:mem_requested": one.requested,
                **{f"{number}:{name}": value for name, value in counts.items()},
            }
            pages += of_class
        return told | {"active_slabs": len(classes), "total_malloced": pages * PAGE_BYTES}

    return _classes(store, 0.0, tell)


def sizes(store: Any) -> Any:
    """Return ``stats sizes``: how many items there are of each size, in steps of 32 bytes."""
    found: dict[int, int] = {}

    def look(key: Key, document: Document) -> None:
        step = -(-item_size(key, document) // _SIZE_STEP) * _SIZE_STEP
        found[step] = found.get(step, 0) + 1

    def tell(_: None) -> dict[str, Value]:
        return {str(size): number for size, number in sorted(found.items())}

    return then(_look_through(store, look), tell)


def cachedump(store: Any, number: int, limit: int, started: float) -> Any:
    """Return ``stats cachedump``: lines about items of a class.

    Args:
        store: Whose items.
        number: The class.
        limit: Most items; 0 for all that fit.
        started: When the server was, which is what memcached says of items that never expire.
    """
    listing = _Listing(_CACHEDUMP_BYTES)

    def look(key: Key, document: Document) -> None:
        if not isinstance(key, bytes) or (limit and len(listing.lines) >= limit):
            return
        if slab_class(item_size(key, document)) == number:
            expires = document.expiry or int(started)
            listing.add(b"ITEM %b [%d b; %d s]\r\n" % (key, len(document.value), expires))

    return then(_look_through(store, look), lambda _: listing.lines)


def dump(store: Any, classes: frozenset[int] | None, now: float, *, for_mg: bool = False) -> Any:
    """Return ``lru_crawler metadump``, or ``mgdump``: a line for each key.

    Args:
        store: Whose items.
        classes: Which slab classes, None for all.
        now: Unix time in seconds, for what nobody knows when it was used.
        for_mg: Whether lines are commands, as mgdump has them.
    """
    listing = _Listing(_DUMP_BYTES)

    def look(key: Key, document: Document) -> None:
        if not isinstance(key, bytes):
            return
        size = item_size(key, document)
        number = slab_class(size)
        if classes is not None and number not in classes:
            return
        if for_mg:
            binary = any(byte <= 0x20 or byte == 0x7F for byte in key)
            listing.add(b"mg %b\r\n" % meta_key(key, binary=binary)[1:])
            return
        listing.add(
            b"key=%b exp=%d la=%d cas=%d fetch=%b cls=%d size=%d flags=%d\n"
            % (
                quote_from_bytes(key, safe="").encode(),
                document.expiry or -1,
                accessed_at(document) or int(now),
                document.cas,
                b"yes" if document.marks & Mark.FETCHED else b"no",
                number,
                size,
                document.flags,
            )
        )

    end = b"EN\r\n" if for_mg else b"END\r\n"
    return then(_look_through(store, look), lambda _: [*listing.lines, end])
