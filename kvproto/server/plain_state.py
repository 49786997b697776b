"""What a compiled scan needs to know of the connection whose requests it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kvproto.store import IStore, Key

__all__ = ["PlainState"]


class PlainState(NamedTuple):
    """What a scan needs to know of a binary dialect.

    One object for all connections of a bucket that have agreed on the same: a thousand busy ones
    do not fit into a core's cache, so every line of it counts.

    Attributes:
        collections: Whether keys begin with the id of their collection.
        max_body: Longest body that is accepted now, in bytes.
        json: Whether responses say what is JSON.
        tokens: Whether mutations answer with a mutation token.
        timer: The server's timer where replies say how long they took, otherwise None.
        get: The ``get`` of a store that answers at once, None where there is none.
        set: The ``set_plainly`` of the same store.
        store: The bucket's store.
    """

    collections: bool
    max_body: int
    json: bool
    tokens: bool
    timer: Callable[[], float] | None
    get: Callable[[Key], Any] | None = None
    set: Callable[[bytes, bytes, int, int, int], Any] | None = None
    store: IStore | None = None
