"""The seam to the compiled scan: decoding and executing usual requests in one go.

A scan is given a read and serves requests from its beginning, as the dialect would: it cuts them
out of the bytes, executes them one after the other and encodes the replies.  What it leaves to the
dialect, by stopping there, is what does not fit into that: a request that has not come whole, one
beyond a limit, a broken stream, all that follows a reply that must be waited for.

Two requests it need not ask the dialect about, and these are most of what is ever asked: the plain
GET, and the plain SET, of a store that answers at once (`kvproto.store.IImmediateStore`); in the
words of meta commands they are ``mg`` and ``ms`` with flags that need no more of the store.

There is only a compiled scan, ``kvproto.server._scan``, where the installation had a C compiler.
Elsewhere every request takes the dialect's own way; what it answers is the same.
"""

from __future__ import annotations

from kvproto.base.compiled import compiled

__all__ = ["COMPILED", "scan_binary", "scan_text"]


_scan = compiled("kvproto.server._scan")

COMPILED = _scan is not None
"""Whether there is a scan."""

scan_binary = _scan.scan_binary if COMPILED else None
scan_text = _scan.scan_text if COMPILED else None
