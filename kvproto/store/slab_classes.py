"""memcached's sizes and slab classes, for statistics that tools read.

Nothing here is kept in slabs.  Tools, tests and people count items by class, though, so each size
has the class that it would have in a memcached with default options.

Source: memcached 1.6.45, ``slabs.c``, ``items.c``: chunks grow by 1.25 from 96 bytes, aligned to 8,
up to half of a page of 1 MiB; the class behind the last is a whole page's half, for chunked items.
"""

from __future__ import annotations

from bisect import bisect_left

from kvproto.store.document import Document, Key

__all__ = ["CHUNK_SIZES", "PAGE_BYTES", "item_size", "slab_class"]

PAGE_BYTES = 1 << 20
_HEADER = 48
_CAS = 8
_FACTOR = 1.25
_LARGEST = PAGE_BYTES // 2
_SMALLEST = 96
_MOST_CLASSES = 62


def _chunk_sizes() -> list[int]:
    sizes: list[int] = []
    size = _SMALLEST
    while len(sizes) < _MOST_CLASSES and size <= _LARGEST / _FACTOR:
        sizes.append(size)
        size = (int(size * _FACTOR) + 7) // 8 * 8
    return [*sizes, _LARGEST]


CHUNK_SIZES: tuple[int, ...] = tuple(_chunk_sizes())
"""Bytes of a chunk of each class, from class 1."""


def item_size(key: Key, document: Document) -> int:
    """Return how many bytes memcached would need for a document: header, key, flags and value."""
    key_length = len(key[1]) if isinstance(key, tuple) else len(key)
    flags = 4 if document.flags else 0
    return _HEADER + _CAS + key_length + 1 + flags + len(document.value) + 2


def slab_class(size: int) -> int:
    """Return the number of the class for items of this size; the last is for all larger ones."""
    return min(bisect_left(CHUNK_SIZES, size), len(CHUNK_SIZES) - 1) + 1
