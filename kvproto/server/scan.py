"""The seam to the compiled scan: decoding and executing usual requests in one go.

A scan is given a read and serves requests from its beginning, as the dialect would: it cuts them
out of the bytes, executes them one after the other and encodes the replies.  What it leaves to the
dialect, by stopping there, is what does not fit into that: a request that has not come whole, one
beyond a limit, a broken stream, all that follows a reply that must be waited for.

Two requests it need not ask the dialect about, and these are most of what is ever asked: the plain
GET, and the plain SET, of a store that answers at once (`kvproto.store.IImmediateStore`).

There is only a compiled scan, ``kvproto.server._scan``, where the installation had a C compiler.
Elsewhere every request takes the dialect's own way; what it answers is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvproto.compiled import compiled
from kvproto.store import IStore, Key

__all__ = ["COMPILED", "PlainState", "scan_binary", "scan_text"]


class PlainState:
    """What a scan needs to know of a binary dialect, side by side in memory.

    A thousand busy connections do not fit into a core's cache, so every line of it counts.

    Attributes:
        collections: Whether keys begin with the id of their collection.
        json: Whether responses say what is JSON.
        max_body: Longest body that is accepted now, in bytes.
        plain_get: The ``get`` of a store that answers at once, None where there is none.
        plain_set: The ``set_plainly`` of the same store.
        store: The bucket's store.
        timer: The server's timer where replies say how long they took, otherwise None.
        tokens: Whether mutations answer with a mutation token.
    """

    __slots__ = (
        "collections",
        "json",
        "max_body",
        "plain_get",
        "plain_set",
        "store",
        "timer",
        "tokens",
    )

    collections: bool
    json: bool
    max_body: int
    plain_get: Callable[[Key], Any] | None
    plain_set: Callable[[bytes, bytes, int, int, int], Any] | None
    store: IStore
    timer: Callable[[], float] | None
    tokens: bool


_scan = compiled("kvproto.server._scan")

COMPILED = _scan is not None
"""Whether there is a scan."""

scan_binary = _scan.scan_binary if COMPILED else None
scan_text = _scan.scan_text if COMPILED else None
