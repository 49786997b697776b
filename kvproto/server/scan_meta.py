"""Plain ``mg`` and ``ms``, from the bytes of a read: what the compiled scan of text asks for them.

Anything else than the usual flags, and any document of which meta commands know more than others,
is left to the dialect.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, cast

from kvproto.server.meta import ttl
from kvproto.server.replies import COPY_LIMIT
from kvproto.store import Document, Mark
from kvproto.wire.constants import MAX_KEY

__all__ = ["scan_meta"]

_match_mg = re.compile(rb"mg ([!-~]{1,%d})((?: (?:[vkstcfq]|O[!-~]{0,31}))*)\r\n" % MAX_KEY).match
_match_ms = re.compile(rb"ms ([!-~]{1,%d}) (\d{1,8})((?: [TF]\d{1,9}| [qI])*)\r\n" % MAX_KEY).match
_OPAQUE, _KEY, _SIZE, _TTL, _CAS = b"Okstc"
_UNUSUAL = int(Mark.STALE | Mark.WON)
"""Marks of documents that mg tells more about."""


@lru_cache(maxsize=256)
def _mg_flags(text: bytes) -> tuple[bool, bool, tuple[bytes, ...]] | None:
    """Read mg's flags: whether the value is wanted, whether EN is not, and what is given back."""
    flags = text.split()
    if len({flag[0] for flag in flags}) < len(flags):
        return None
    given = tuple(flag for flag in flags if flag not in {b"v", b"q"})
    return b"v" in flags, b"q" in flags, given


@lru_cache(maxsize=256)
def _ms_flags(text: bytes) -> tuple[int, int, bool] | None:
    """Read ms's flags: client flags, expiry, and whether HD is not wanted."""
    flags = text.split()
    arguments = {flag[:1]: flag[1:] for flag in flags}
    if len(arguments) < len(flags):
        return None
    return int(arguments.get(b"F", 0)), int(arguments.get(b"T", 0)), b"q" in arguments


def scan_meta(dialect: Any, data: bytes, at: int, max_value: int, out: list[bytes]) -> int:
    """Serve one plain meta command.

    Args:
        dialect: Whose command it is; its store answers at once.
        data: What was read.
        at: Where the command begins; it begins with ``m``.
        max_value: Longest value that is served, in bytes.
        out: Takes the reply.

    Returns:
        Where the next command begins; 0 for what is left to the dialect.
    """
    # The store must know that somebody wants to know which documents are read.
    if not dialect.meta_seen:
        return 0
    line = _match_mg(data, at)
    if line is None:
        return _serve_ms(dialect, data, at, max_value, out)
    key, text = line.groups()
    # Each request of a client has another opaque: there is no use in remembering those.
    wanted = _mg_flags(text) if b"O" not in text else _mg_flags.__wrapped__(text)
    if wanted is None:
        return 0
    with_value, quiet, flags = wanted
    document: Any = dialect.store.get(key)
    given = b""
    if document is None:
        for flag in flags:
            if flag[0] == _OPAQUE:
                given += b" " + flag
            elif flag[0] == _KEY:
                given += b" k" + key
        if not quiet:
            out.append(b"EN%b\r\n" % given)
    elif document.marks & _UNUSUAL or document.locked_until:
        return 0
    else:
        value = document.value
        if flags:
            given = _given(dialect, key, document, flags)
        if not with_value:
            out.append(b"HD%b\r\n" % given)
        elif len(value) <= COPY_LIMIT:
            out.append(b"VA %d%b\r\n%b\r\n" % (len(value), given, value))
        else:
            out += (b"VA %d%b\r\n" % (len(value), given), value, b"\r\n")
    dialect.server.counters.meta_cmds += 1
    return line.end()


def _given(dialect: Any, key: bytes, document: Any, flags: tuple[bytes, ...]) -> bytes:
    """Encode what the flags of a hit give back."""
    given = b""
    for flag in flags:
        letter = flag[0]
        if letter == _OPAQUE:
            given += b" " + flag
        elif letter == _KEY:
            given += b" k" + key
        elif letter == _SIZE:
            given += b" s%d" % len(document.value)
        elif letter == _TTL:
            given += b" t%d" % ttl(document.expires_at, dialect.server.now())
        elif letter == _CAS:
            given += b" c%d" % document.cas
        else:
            given += b" f%d" % document.flags
    return given


def _serve_ms(dialect: Any, data: bytes, at: int, max_value: int, out: list[bytes]) -> int:
    line = _match_ms(data, at)
    if line is None:
        return 0
    key, digits, text = line.groups()
    flags = _ms_flags(text)
    value_at = line.end()
    value_end = value_at + int(digits)
    stop = value_end + 2
    if flags is None or value_end - value_at > max_value or data[value_end:stop] != b"\r\n":
        return 0
    client_flags, expiry, quiet = flags
    store: Any = dialect.store
    value = data[value_at:value_end]
    stored: Any
    if store.at_once:
        stored = store.set(key, value, client_flags, expiry)
    else:
        stored = store.set_plainly(key, value, client_flags, expiry, 0)
        if stored is None:
            return 0
    dialect.server.counters.meta_cmds += 1
    if stored.__class__ is Document:
        if not quiet:
            out.append(b"HD\r\n")
    else:
        out.append(cast("bytes", dialect.refuse_meta(stored, key)))
    return stop
