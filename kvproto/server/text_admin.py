"""``slabs``, ``lru``, ``lru_crawler``, ``shutdown``: memcached's commands about itself.

There are no slabs, no segmented LRU and no crawler here, so what steers them is read as strictly as
memcached reads it, answered as by a memcached that has nothing to do, and changes nothing: scripts
that tune a memcached at its start go on.  The crawler's listings are real (`inventory.dump`).  How
much memory there is, is the operator's decision.

Source: memcached 1.6.45, ``proto_text.c``, and its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvproto.server import inventory
from kvproto.server.replies import Hangup, Reply
from kvproto.wire import text as wire

__all__ = ["ADMIN_HANDLERS"]

BAD_CLASS = b"BADCLASS invalid class id\r\n"
MEMORY_TOO_SMALL = b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"
MEMORY_IN_BYTES = b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n"
MEMORY_FIXED = b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n"
# The words of a memcached that was started without ``-A``.
BAD_SHUTDOWN = wire.client_error(b"invalid shutdown mode")
NO_SHUTDOWN = b"SERVER_ERROR: shutdown not enabled\r\n"

_LEAST_MEGABYTES = 8
_MOST_MEGABYTES = 1_000_000_000
_MOST_PERCENT = 80
"""Of the hot and the warm queue together."""


def _unsigned(text: bytes) -> int | None:
    return wire.number(text, 0, 2**32 - 1)


def _factor(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cache_memlimit(session: Any, args: tuple[bytes, ...]) -> Reply:
    megabytes = _unsigned(args[0]) if args else None
    if megabytes is None:
        return wire.ERROR
    if megabytes < _LEAST_MEGABYTES:
        return MEMORY_TOO_SMALL
    return MEMORY_IN_BYTES if megabytes > _MOST_MEGABYTES else MEMORY_FIXED


def _shutdown(session: Any, args: tuple[bytes, ...]) -> Reply:
    """End the service, where the operator lets clients do so; always gracefully."""
    end = session.server.shutdown
    if end is None:
        return NO_SHUTDOWN
    if args not in {(), (b"graceful",)}:
        return BAD_SHUTDOWN
    end()
    return Hangup()


def _debugtime(session: Any, args: tuple[bytes, ...]) -> Reply:
    """Move the clock on, as a memcached that was built for debugging does, in whole seconds."""
    advance = session.server.advance
    seconds = wire.number(args[0], 0, 2**31 - 1) if args else None
    if advance is None or seconds is None:
        return wire.ERROR
    advance(seconds)
    return wire.OK


def _slabs(session: Any, args: tuple[bytes, ...]) -> Reply:
    match args:
        case (b"reassign", source, destination):
            return _reassign(wire.number(source, -(2**31), 2**31 - 1), _unsigned(destination))
        case (b"automove", (b"ratio" | b"freeratio" | b"window"), value):
            return wire.OK if _factor(value) is not None else wire.ERROR
        case (b"automove", level):
            number = _unsigned(level)
            if number is None:
                return wire.BAD_FORMAT
            return wire.OK if number <= 2 else wire.ERROR
        case _:
            return wire.ERROR


def _reassign(source: int | None, destination: int | None) -> bytes:
    if source is None or destination is None:
        return wire.BAD_FORMAT
    if source == destination:
        return b"SAME src and dst class are identical\r\n"
    if source >= inventory.MAX_CLASSES or destination >= inventory.MAX_CLASSES:
        return b"BADCLASS invalid src or dst class id\r\n"
    return b"NOSPARE source class has no spare pages\r\n"


def _lru(session: Any, args: tuple[bytes, ...]) -> Reply:
    match args:
        case (b"tune", hot, warm, hot_factor, warm_factor):
            percents = [_unsigned(hot), _unsigned(warm)]
            factors = [_factor(hot_factor), _factor(warm_factor)]
            return _tune([n for n in percents if n is not None], [f for f in factors if f])
        case (b"mode", b"flat" | b"segmented"):
            return wire.OK
        case (b"temp_ttl", seconds) if wire.number(seconds, -(2**31), 2**31 - 1) is not None:
            return wire.OK
        case _:
            return wire.ERROR


def _tune(percents: list[int], factors: list[float]) -> bytes:
    if len(percents) < 2 or not factors:
        return wire.ERROR
    if sum(percents) > _MOST_PERCENT:
        return b"ERROR hot and warm pcts must not exceed 80\r\n"
    if len(factors) < 2 or min(factors) <= 0:
        return b"ERROR hot/warm age factors must be greater than 0\r\n"
    return wire.OK


def _lru_crawler(session: Any, args: tuple[bytes, ...]) -> Reply:
    """Serve the crawler's listings; there is nothing else for it to do."""
    match args:
        case (b"metadump" | b"mgdump" as what, which):
            classes = _crawled(which)
            if classes is None:
                return BAD_CLASS
            for_mg, now = what == b"mgdump", session.server.now()
            listing: Reply = inventory.dump(session.store, classes or None, now, for_mg=for_mg)
            return listing
        case (b"crawl", which):
            return wire.OK if _crawled(which) is not None else BAD_CLASS
        case (b"enable" | b"disable",):
            return wire.OK
        case (b"tocrawl", number) if _unsigned(number) is not None:
            return wire.OK
        case (b"sleep", number) if (micros := _unsigned(number)) is not None:
            too_long = b"sleep must be one second or less"
            return wire.OK if micros <= 1_000_000 else wire.client_error(too_long)
        case (b"tocrawl" | b"sleep", _):
            return wire.BAD_FORMAT
        case _:
            return wire.ERROR


def _crawled(which: bytes) -> frozenset[int] | None:
    """Read which slab classes are meant: none stands for all; None where they are no classes."""
    if which in {b"all", b"hash"}:
        return frozenset()
    numbers = [wire.number(one, 1, inventory.MAX_CLASSES - 1) for one in which.split(b",")]
    found = frozenset(number for number in numbers if number is not None)
    return found if len(found) == len(numbers) else None


def _handler(serve: Callable[[Any, tuple[bytes, ...]], Reply]) -> Callable[[Any, Any], Reply]:
    def handler(session: Any, command: Any) -> Reply:
        args = command.args[:-1] if command.noreply else command.args
        reply = serve(session, args)
        return b"" if command.noreply else reply

    return handler


ADMIN_HANDLERS = {
    "cache_memlimit": _handler(_cache_memlimit),
    "debugtime": _handler(_debugtime),
    "lru": _handler(_lru),
    "lru_crawler": _handler(_lru_crawler),
    "shutdown": _handler(_shutdown),
    "slabs": _handler(_slabs),
}
"""Each is called with the session and the command."""
