"""The service, started as memcached is: its options, on a listener without TLS.

For memcached's own tests, which start what they find as ``memcached-debug``.  Options that mean
nothing here (slabs, threads, extstore) are passed over.

With ``--fleet`` values live in a real memcached behind the service, which gets those options that
are about them.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor

from kvproto.config import Config, Mode, User
from kvproto.errors import ConfigError
from kvproto.service import KVTLSService
from tests.integration.memcached import Memcached

__all__ = ["main"]

reactor: Any = installed_reactor

_SMALLEST_ITEM = 1024
"""memcached's, in bytes."""


def size(text: str) -> int:
    """Read a size as ``-I`` has it."""
    unit = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower())
    return int(text) if unit is None else int(text[:-1]) * unit


def users_of(path: str) -> tuple[User, ...]:
    """Read a file of ``-Y``: a name and a password a line."""
    with open(path, encoding="ascii") as lines:
        pairs = [line.strip().split(":", 1) for line in lines if ":" in line]
    return tuple(User(name, password) for name, password in pairs)


def config_of(options: argparse.Namespace, directory: Path) -> Config:
    """Return the configuration that memcached's options stand for.

    Raises:
        ConfigError: One of them cannot be used.
    """
    largest = size(options.I or "1m")
    if largest < _SMALLEST_ITEM:
        raise ConfigError("-I", "item max size cannot be less than 1024 bytes")
    tuned = dict(part.partition("=")[::2] for one in options.o for part in one.split(","))
    tcp = f"tcp:{options.p or 11211}:interface=127.0.0.1"
    return Config(
        mode=Mode.MEMCACHED,
        listen=("tcp:0:interface=127.0.0.1",),
        plain=(f"unix:{options.s}" if options.s else tcp,),
        state_dir=directory,
        users=users_of(options.Y) if options.Y else (),
        max_value=largest,
        allow_flush=not options.F,
        memory_limit=int(options.m or 64) << 20,
        evict=not options.M,
        max_connections=int(options.c or 1024),
        requests_per_event=int(options.R or 0),
        enable_shutdown=options.A,
        idle_timeout=float(tuned.get("idle_timeout", 0)),
    )


def built_memcached() -> str:
    """Return the program for debugging that the checkout was built to, ``""`` when it was not."""
    checkout = os.environ.get("MEMCACHED_REPO")
    return shutil.which("memcached-debug", path=checkout) or "" if checkout else ""


def start_fleet(options: argparse.Namespace) -> Memcached:
    """Run one memcached that ends with this process: the checkout's own if it was built."""
    # What is too large for the service never comes there; memcached itself takes no small limit
    # without more options.
    largest = max(size(options.I or "1m"), 1 << 20)
    arguments = ["-I", str(largest), "-m", options.m or "64"]
    if options.M:
        arguments.append("-M")
    server = Memcached(*arguments, program=built_memcached())
    atexit.register(server.kill)
    return server


def movable_clock() -> Callable[[float], None]:
    """Return what moves the reactor's clock on, as ``debugtime`` does in a build for debugging."""
    seconds, ahead = reactor.seconds, 0.0

    def advance(by: float) -> None:
        nonlocal ahead
        ahead += by

    reactor.seconds = lambda: seconds() + ahead
    return advance


def with_clock_of(server: Memcached, advance: Callable[[float], None]) -> Callable[[float], None]:
    """Return what moves the clock of a server on as well, if it was built for debugging."""

    def advance_both(by: float) -> None:
        advance(by)
        with server.connect() as connection:
            connection.sendall(b"debugtime %d\r\n" % by)
            connection.recv(16)

    return advance_both


def main() -> None:
    """Serve until it is killed."""
    parser = argparse.ArgumentParser(add_help=False)
    for option in "psluUmcItRBxPa":
        parser.add_argument(f"-{option}")
    parser.add_argument("-o", action="append", default=[])
    parser.add_argument("-Y", default="")
    parser.add_argument("--fleet", action="store_true")
    # No -S: as a memcached that was built without SASL.
    for switch in "FAMCdLvDZW":
        parser.add_argument(f"-{switch}", action="store_true")
    options, unknown = parser.parse_known_args()
    if "-S" in unknown:
        sys.exit("This server is not built with SASL support.")
    with tempfile.TemporaryDirectory(prefix="kvtls-as-memcached-") as directory:
        try:
            advance = movable_clock()
            config = config_of(options, Path(directory))
            if options.fleet:
                server = start_fleet(options)
                advance = with_clock_of(server, advance)
                config = replace(config, store=f"memcached://{server.name}")
            service = KVTLSService(config)
        except ConfigError as error:
            sys.exit(f"Failed to start: {error}")
        settings = service.server.settings
        service.server.settings = replace(
            settings,
            watchers=frozenset() if options.W else settings.watchers,
            lru_threads="no_lru_maintainer" not in ",".join(options.o),
        )
        service.server.advance = advance
        service.startService()
        # A shell that starts it in the background has it ignore this.
        signal.signal(signal.SIGINT, lambda *_: reactor.callFromThread(reactor.stop))
        reactor.run()


if __name__ == "__main__":
    main()
