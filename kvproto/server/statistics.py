"""STAT and ``stats``: what the server says about itself.

Names are memcached's, so that its tools, its test suite and people's graphs work.

Source: memcached ``doc/protocol.txt``, "Statistics"; the answers of memcached 1.6.18.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from twisted.internet.defer import Deferred

from kvproto import __version__
from kvproto.server.quick import COMPILED
from kvproto.server.server import KVServer
from kvproto.store import IStore

__all__ = ["Report", "report"]

Value: TypeAlias = int | str


@dataclass(slots=True)
class Report:
    """What one ``stats`` command is answered with.

    Attributes:
        items: Names and values; the protocol's terminator follows them.
        line: Set where the text protocol answers with one line instead, without its line end.
        wrong: Whether the arguments were wrong.
    """

    items: dict[str, Value] = field(default_factory=dict)
    line: bytes = b""
    wrong: bool = False


UNKNOWN = Report(line=b"ERROR", wrong=True)

NOT_RESET = frozenset({"bytes", "curr_items", "limit_maxbytes"})
"""What tells the present state and so stays over ``stats reset``."""


def report(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report | Deferred[Report]:
    """Answer ``stats`` with these arguments, from a client whose documents are in this store."""
    if not args:
        numbers = store.stats()
        if isinstance(numbers, Deferred):
            return numbers.addCallback(lambda found: _general(server, store, found))
        return _general(server, store, numbers)
    make = _GROUPS.get(args[0])
    return UNKNOWN if make is None else make(server, store, args[1:])


def _counted(server: KVServer, of_store: dict[str, Value]) -> dict[str, Value]:
    counters = server.counters
    return {
        "total_connections": counters.total_connections,
        "rejected_connections": counters.rejected_connections,
        "auth_cmds": counters.auth_cmds,
        "auth_errors": counters.auth_errors,
        "bytes_read": counters.bytes_read,
        "bytes_written": counters.bytes_written,
        **of_store,
    }


def _general(server: KVServer, store: IStore, of_store: dict[str, Value]) -> Report:
    settings, now = server.settings, server.now()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    counted = _counted(server, of_store)
    return Report(
        {
            "pid": os.getpid(),
            "uptime": int(now - server.started),
            "time": int(now),
            "version": settings.version,
            "kvproto_version": __version__,
            "kvproto_compiled": "yes" if COMPILED else "no",
            "pointer_size": 64,
            "rusage_user": f"{usage.ru_utime:.6f}",
            "rusage_system": f"{usage.ru_stime:.6f}",
            "max_connections": settings.max_connections,
            "curr_connections": server.counters.curr_connections,
            "threads": 1,
            "accepting_conns": 1,
            **{name: server.since_reset(store, name, value) for name, value in counted.items()},
        }
    )


def _settings(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    settings = server.settings
    login = "no" if server.anonymous else "yes"
    return Report(
        {
            "maxbytes": settings.memory_limit,
            "maxconns": settings.max_connections,
            "domain_socket": "NULL",
            "verbosity": 0,
            "evictions": "on" if settings.evict else "off",
            "cas_enabled": "yes",
            "flush_enabled": "yes" if settings.flush_allowed else "no",
            "item_size_max": settings.value_limit,
            "detail_enabled": "no",
            "binding_protocol": "auto-negotiate",
            "auth_enabled_sasl": login,
            "auth_enabled_ascii": login,
            "num_threads": 1,
        }
    )


def _reset(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report | Deferred[Report]:
    numbers = store.stats()
    if isinstance(numbers, Deferred):
        return numbers.addCallback(lambda found: _reset_from(server, store, found))
    return _reset_from(server, store, numbers)


def _reset_from(server: KVServer, store: IStore, of_store: dict[str, Value]) -> Report:
    counted = _counted(server, of_store)
    baseline = {
        name: value
        for name, value in counted.items()
        if isinstance(value, int) and name not in NOT_RESET
    }
    server.reset_statistics(store, baseline)
    return Report(line=b"RESET")


def _nothing(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    """Answer a group that is empty here: there are no slabs, and nobody is shown to others."""
    return Report()


def _detail(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    if args in {(b"on",), (b"off",)}:
        return Report(line=b"OK")
    if args == (b"dump",):
        return Report()
    return Report(line=b"CLIENT_ERROR usage: stats detail on|off|dump", wrong=True)


def _cachedump(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    """Answer as a memcached whose slabs are empty: keys are not shown."""
    if len(args) != 2:
        return Report(line=b"CLIENT_ERROR bad command line", wrong=True)
    if not (args[0].isdigit() and args[1].isdigit()):
        return Report(line=b"CLIENT_ERROR bad command line format", wrong=True)
    if int(args[0][:4]) >= _SLAB_CLASSES:
        return Report(line=b"CLIENT_ERROR Illegal slab id", wrong=True)
    return Report()


_SLAB_CLASSES = 64
"""memcached's ``MAX_NUMBER_OF_SLAB_CLASSES``."""

_Group = Callable[[KVServer, IStore, tuple[bytes, ...]], "Report | Deferred[Report]"]

_GROUPS: dict[bytes, _Group] = {
    b"settings": _settings,
    b"reset": _reset,
    b"items": _nothing,
    b"slabs": _nothing,
    b"sizes": _nothing,
    b"conns": _nothing,
    b"detail": _detail,
    b"cachedump": _cachedump,
}
