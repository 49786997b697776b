"""STAT and ``stats``: what the server says about itself.

Names are memcached's, so that its tools, its test suite and people's graphs work.

Every name that memcached has is there.  What has no meaning here (slabs, hash tables, LRU threads)
has the value that a memcached has which never did it.

Source: memcached ``doc/protocol.txt``, "Statistics"; the answers of memcached 1.6.45.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred

from kvproto import __version__
from kvproto.base.escape import printable
from kvproto.server import inventory
from kvproto.server.prefixes import DELIMITER
from kvproto.server.replies import then
from kvproto.server.scan import COMPILED
from kvproto.server.server import KVServer
from kvproto.server.watch import BUFFER_BYTES, Watcher
from kvproto.store import IStore
from kvproto.store.slab_classes import PAGE_BYTES
from kvproto.wire.text import number as wire_number

__all__ = ["Report", "report"]

Value: TypeAlias = int | str


@dataclass(slots=True)
class Report:
    """What one ``stats`` command is answered with.

    Attributes:
        items: Names and values; the protocol's terminator follows them.
        line: Set where the text protocol answers with one line instead, without its line end.
        lines: Set where it answers with other lines than statistics, and END.
        wrong: Whether the arguments were wrong.
    """

    items: dict[str, Value] = field(default_factory=dict)
    line: bytes = b""
    lines: list[bytes] = field(default_factory=list)
    wrong: bool = False


UNKNOWN = Report(line=b"ERROR", wrong=True)

_LISTENER_NUMBERS = range(2**32 - 1, 2**31, -1)
"""Of listening sockets in ``stats conns``: down from here, as connections count up from 1."""

NOT_RESET = frozenset({"bytes", "curr_items", "limit_maxbytes"})
"""What tells the present state and so stays over ``stats reset``."""


def report(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report | Deferred[Report]:
    """Answer ``stats`` with these arguments, from a client whose documents are in this store."""
    if not args:
        return then(store.stats(), lambda found: _general(server, store, found))
    make = _GROUPS.get(args[0])
    if make is None:
        return UNKNOWN
    found: Report | Deferred[Report] = make(server, store, args[1:])
    return found


_NEVER = dict.fromkeys(
    (
        "connection_structures", "response_obj_oom", "response_obj_count", "response_obj_bytes",
        "read_buf_count", "read_buf_bytes", "read_buf_bytes_free", "read_buf_oom", "reserved_fds",
        "get_flushed", "listen_disabled_num", "time_in_listen_disabled_us",
        "hash_power_level", "hash_bytes", "hash_is_expanding", "slab_reassign_rescues",
        "slab_reassign_chunk_rescues", "slab_reassign_inline_reclaim", "slab_reassign_busy_items",
        "slab_reassign_busy_deletes", "slab_reassign_busy_nomem", "slab_reassign_running",
        "slabs_moved", "malloc_fails", "log_worker_dropped", "unexpected_napi_ids",
        "round_robin_fallback", "slab_global_page_pool", "expired_unfetched", "evicted_unfetched",
        "crawler_reclaimed", "crawler_items_checked", "lrutail_reflocked",
    ),
    0,
)  # fmt: skip
"""What never happens here; a store that counts it says so itself."""

_OF_LRU_THREADS = dict.fromkeys(
    (
        "lru_crawler_running", "lru_crawler_starts", "lru_maintainer_juggles", "evicted_active",
        "moves_to_cold", "moves_to_warm", "moves_within_lru", "direct_reclaims",
        "lru_bumps_dropped",
    ),
    0,
)  # fmt: skip
"""What memcached says only where it has a crawler of its LRU and a maintainer."""


def _counted(server: KVServer, of_store: dict[str, Value]) -> dict[str, Value]:
    counters = server.counters
    of_store = dict(of_store)
    too_large = of_store.get("store_too_large", 0)
    if isinstance(too_large, int):
        # Values that were thrown away before the store heard of them.
        of_store["store_too_large"] = too_large + counters.too_large
    return {
        "cmd_meta": counters.meta_cmds,
        "total_connections": counters.total_connections,
        "rejected_connections": counters.rejected_connections,
        "conn_yields": counters.conn_yields,
        # As memcached, which says this only where connections can be idle for too long.
        **({"idle_kicks": counters.idle_kicks} if server.settings.idle_timeout else {}),
        "log_worker_written": server.watch.written,
        "log_watcher_skipped": server.watch.skipped,
        "log_watcher_sent": server.watch.sent,
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
            "libevent": "none",
            "pointer_size": 64,
            "rusage_user": f"{usage.ru_utime:.6f}",
            "rusage_system": f"{usage.ru_stime:.6f}",
            "max_connections": settings.max_connections,
            "curr_connections": server.counters.curr_connections,
            "threads": 1,
            "accepting_conns": 1,
            "log_watchers": len(server.watch.watchers),
            "slab_reassign_last_busy_status": "none",
            **_NEVER,
            **(_OF_LRU_THREADS if settings.lru_threads else {}),
            **{name: server.since_reset(store, name, value) for name, value in counted.items()},
        }
    )


def _settings(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    settings = server.settings
    login = "no" if server.anonymous else "yes"
    hosts = server.listening()
    inter = sorted({host.host for host in hosts if hasattr(host, "host")})
    sockets = sorted(_path(host) for host in hosts if hasattr(host, "name"))
    return Report(
        {
            "maxbytes": settings.memory_limit,
            "maxconns": settings.max_connections,
            "tcpport": settings.advertised_port,
            "udpport": 0,
            "inter": ",".join(inter) or "NULL",
            "verbosity": 0,
            "oldest": 0,
            "evictions": "on" if settings.evict else "off",
            "domain_socket": ",".join(sockets) or "NULL",
            "umask": 700,
            "shutdown_command": "no" if server.shutdown is None else "yes",
            "growth_factor": "1.25",
            "chunk_size": 48,
            "num_threads": 1,
            "num_threads_per_udp": 1,
            "stat_key_prefix": DELIMITER.decode(),
            "detail_enabled": "no" if server.prefixes is None else "yes",
            "reqs_per_event": settings.requests_per_event,
            "cas_enabled": "yes",
            "tcp_backlog": 1024,
            "binding_protocol": "auto-negotiate",
            "auth_enabled_sasl": login,
            "auth_enabled_ascii": login,
            "item_size_max": settings.value_limit,
            "maxconns_fast": "yes",
            "hashpower_init": 0,
            "slab_reassign": "no",
            "slab_automove": 0,
            "slab_automove_ratio": "0.80",
            "slab_automove_freeratio": "0.010",
            "slab_automove_window": 10,
            "slab_chunk_max": PAGE_BYTES // 2,
            "lru_crawler": "yes",
            "lru_crawler_sleep": 100,
            "lru_crawler_tocrawl": 0,
            "tail_repair_time": 0,
            "flush_enabled": "yes" if settings.flush_allowed else "no",
            "dump_enabled": "yes",
            "hash_algorithm": "siphash",
            "lru_maintainer_thread": "no",
            "lru_segmented": "no",
            "hot_lru_pct": 20,
            "warm_lru_pct": 40,
            "hot_max_factor": "0.20",
            "warm_max_factor": "2.00",
            "temp_lru": "no",
            "temporary_ttl": 61,
            "idle_timeout": math.ceil(settings.idle_timeout),
            "watcher_logbuf_size": BUFFER_BYTES,
            "worker_logbuf_size": 65536,
            "read_buf_mem_limit": 0,
            "track_sizes": "yes",
            "inline_ascii_response": "no",
            "num_napi_ids": 0,
            "memory_file": "(null)",
            "client_flags_size": 4,
            "kvproto_version": __version__,
            "kvproto_compiled": "yes" if COMPILED else "no",
        }
    )


def _reset(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report | Deferred[Report]:
    return then(store.stats(), lambda found: _reset_from(server, store, found))


def _reset_from(server: KVServer, store: IStore, of_store: dict[str, Value]) -> Report:
    counted = _counted(server, of_store)
    baseline = {
        name: value
        for name, value in counted.items()
        if isinstance(value, int) and name not in NOT_RESET
    }
    server.reset_statistics(store, baseline)
    server.last_prefixes.clear()
    left = getattr(getattr(store, "statistics", None), "classes", None)
    if left:
        left.clear()
    return Report(line=b"RESET")


def _items(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Any:
    return then(inventory.items(store, server.now()), Report)


def _slabs(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Any:
    return then(store.stats(), lambda counted: then(inventory.slabs(store, counted), Report))


def _sizes(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Any:
    return then(inventory.sizes(store), lambda found: Report({"sizes_status": "enabled"} | found))


def _conns(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    """Tell of each listening socket, and of each connection that is open."""
    told: dict[str, Value] = {}
    for number, address in zip(_LISTENER_NUMBERS, server.listening(), strict=False):
        told |= {
            f"{number}:addr": _address(address),
            f"{number}:state": "conn_listening",
            f"{number}:secs_since_last_cmd": 0,
        }
    now = server.now()
    for connection, number in server.connections.items():
        transport = connection.transport
        told |= {
            f"{number}:addr": _address(transport.getPeer()),
            f"{number}:listen_addr": _address(transport.getHost()),
            f"{number}:state": _state(connection),
            f"{number}:secs_since_last_cmd": _seconds_since(connection.last_read, now),
        }
    return Report(told)


def _seconds_since(moment: float, now: float) -> int:
    """Return how long ago a moment was, 0 where nobody has looked at the clock."""
    return max(0, int(now - moment)) if moment else 0


def _state(connection: Any) -> str:
    """Return what a connection does, in memcached's names."""
    if isinstance(connection.session, Watcher):
        return "conn_watch"
    return "conn_nread" if connection.partial else "conn_parse_cmd"


def _address(address: Any) -> str:
    """Return an address as memcached writes it."""
    host = getattr(address, "host", None)
    if host is None:
        return f"unix:{_path(address)}"
    return f"tcp6:[{host}]:{address.port}" if ":" in host else f"tcp:{host}:{address.port}"


def _path(address: Any) -> str:
    """Return the path of a Unix socket, an empty one for a client's."""
    return printable(os.fsdecode(getattr(address, "name", None) or b""))


def _detail(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Report:
    if args[:1] == (b"on",):
        server.prefixes = server.last_prefixes
        return Report(line=b"OK")
    if args[:1] == (b"off",):
        server.prefixes = None
        return Report(line=b"OK")
    if args[:1] == (b"dump",):
        return Report(lines=server.last_prefixes.lines())
    return Report(line=b"CLIENT_ERROR usage: stats detail on|off|dump", wrong=True)


def _cachedump(server: KVServer, store: IStore, args: tuple[bytes, ...]) -> Any:
    if len(args) < 2:
        return Report(line=b"CLIENT_ERROR bad command line", wrong=True)
    number, limit = (wire_number(arg, 0, 2**32 - 1) for arg in args[:2])
    if number is None or limit is None:
        return Report(line=b"CLIENT_ERROR bad command line format", wrong=True)
    if number >= inventory.MAX_CLASSES:
        return Report(line=b"CLIENT_ERROR Illegal slab id", wrong=True)
    lines = inventory.cachedump(store, number, limit, server.started)
    return then(lines, lambda found: Report(lines=found))


_Group = Callable[[KVServer, IStore, tuple[bytes, ...]], Any]

_GROUPS: dict[bytes, _Group] = {
    b"settings": _settings,
    b"reset": _reset,
    b"items": _items,
    b"slabs": _slabs,
    b"sizes": _sizes,
    b"conns": _conns,
    b"detail": _detail,
    b"cachedump": _cachedump,
}
