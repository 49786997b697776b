"""`Walk`: through a dictionary that changes meanwhile, some keys at a time.

Python's iterators end when a dictionary has changed its size, and a list of a million keys takes
tens of milliseconds.  Theory: a dictionary keeps its entries in one array, in the order in which
they were added.  An entry keeps its place until the array is full; then those that are left move
together into a new one, in their order.  So all that is needed is a place in the array, and, when
it was replaced, a place before which there is only what the walk has passed.  How many passed
entries are left is not known, but at least as many as were passed less all that were removed.

Whatever is there from the beginning to the end of a walk comes at least once.  What is removed, or
added, meanwhile may come or not; in a dictionary that was moved, a key may come twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvproto.base.compiled import compiled

__all__ = ["Walk"]

_MOST_MOVES = 3
"""How often a dictionary may be moved before the rest is listed at once.

Each time as many keys were added as it has, which takes longer than a list of them."""


class Walk:
    """A walk through the keys of a dictionary.  Whoever changes the dictionary tells it so.

    Args:
        entries: The dictionary.
    """

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        self._native = compiled("kvproto.store._walk")
        self._entries = entries
        # What is there now comes before everything that is added.
        self._all = len(entries)
        self._at = 0
        self._passed = 0
        self._removed = 0
        self._moves = 0
        self._listed: list[Any] = []
        if self._native is not None:
            self._layout = self._native.layout(entries)
        else:
            # The dictionary's own way through itself: that of an ordered one takes 30 times as
            # long.
            self._listed = [*dict.keys(entries)]  # type: ignore[arg-type]

    def take(self, most: int) -> list[Any]:
        """Return the next keys; none at the end."""
        if self._moves > _MOST_MOVES:
            self._listed, _ = self._native.take(self._entries, self._at, self._all - self._passed)
            self._native, self._moves, self._passed = None, 0, 0
        if self._native is None:
            keys = self._listed[self._passed : self._passed + most]
        else:
            most = min(most, self._all - self._passed)
            keys, self._at = self._native.take(self._entries, self._at, most)
        self._passed += len(keys)
        return keys

    def added(self) -> None:
        """Hear that a key has just been added; to be called for each."""
        if self._native is None:
            return
        layout = self._native.layout(self._entries)
        if layout != self._layout:
            self._layout = layout
            self._moves += 1
            self._passed = self._at = max(0, self._passed - self._removed)
            self._removed = 0

    def removed(self) -> None:
        """Hear that a key has been, or will be, removed, of this dictionary or another one."""
        self._removed += 1
