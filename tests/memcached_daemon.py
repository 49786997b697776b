"""A server of `kvproto.server` that is started as memcached is: its options, and no TLS.

For memcached's own tests, which start what they find as ``memcached-debug``.  Options that mean
nothing here (slabs, threads, extstore) are passed over.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from typing import Any

from twisted.internet import endpoints
from twisted.internet import reactor as installed_reactor

from kvproto.config import Mode
from kvproto.server import KVServer, KVServerFactory, ServerSettings, UserTable
from kvproto.store import MemoryStore

__all__ = ["main"]

reactor: Any = installed_reactor

HELP = "-s, --unix-socket=<file>\n-h, --help\n"


def size(text: str) -> int:
    """Read a size as ``-I`` has it."""
    unit = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower())
    return int(text) if unit is None else int(text[:-1]) * unit


def users_of(path: str) -> UserTable:
    """Read a file of ``-Y``: a name and a password a line."""
    with open(path, encoding="ascii") as lines:
        pairs = [line.strip().split(":", 1) for line in lines if ":" in line]
    return UserTable.of_passwords(dict(pairs), iterations=1)


def main() -> None:
    """Serve until it is killed."""
    parser = argparse.ArgumentParser(add_help=False)
    for option in "psluUmcItRBxPa":
        parser.add_argument(f"-{option}")
    parser.add_argument("-o", action="append", default=[])
    parser.add_argument("-Y", default="")
    for switch in "hFAMCdLSvDZW":
        parser.add_argument(f"-{switch}", action="store_true")
    options, _ = parser.parse_known_args()
    if options.h:
        sys.stdout.write(HELP)
        return
    largest = size(options.I or "1m")
    memory = int(options.m or 64) << 20
    settings = ServerSettings(
        mode=Mode.MEMCACHED,
        max_value=largest,
        allow_flush=not options.F,
        memory_limit=memory,
        evict=not options.M,
        max_connections=int(options.c or 1024),
        watchers=frozenset() if options.W else None,
    )
    store = MemoryStore(
        time.time, memory_limit=memory, evict=not options.M, max_item=largest - 512, count_cas=True
    )
    server = KVServer(store, settings, users_of(options.Y) if options.Y else None)
    factory = KVServerFactory(server)
    tcp = f"tcp:{options.p or 11211}:interface=127.0.0.1"
    where = f"unix:{options.s}" if options.s else tcp
    endpoints.serverFromString(reactor, where).listen(factory)
    # A shell that starts it in the background has it ignore this.
    signal.signal(signal.SIGINT, lambda *_: reactor.callFromThread(reactor.stop))
    reactor.run()


if __name__ == "__main__":
    main()
