"""What the parts of one request cost, each by itself.

``python -m benchmarks.bench_parts [--fast] [WORD ...]``.  `benchmarks.bench_session` measures
decoder, session and store together.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from benchmarks.micro import Bench, run
from kvproto.listeners.transport import DirectServer
from kvproto.store import MemoryStore
from kvproto.testing.contexts import client_context, server_context
from kvproto.tls._handles import AVAILABLE, NATIVE, CffiEngine, NativeEngine
from kvproto.tls._openssl import Engine
from kvproto.wire.binary import RequestDecoder, encode_request, get_reply
from kvproto.wire.constants import Opcode
from kvproto.wire.text import TextDecoder

KEY = b"key:0000000001"
LARGE = bytes(65536)


def decoders() -> dict[str, Bench]:
    """Decoding requests."""
    get = encode_request(Opcode.GET, key=KEY)
    large = encode_request(Opcode.SET, key=KEY, value=LARGE, extras=bytes(8))
    halves = large[:40_000], large[40_000:]
    feed = RequestDecoder().feed
    feed_text = TextDecoder().feed

    def in_halves() -> None:
        feed(halves[0])
        feed(halves[1])

    many, many_text = get * 32, b"get %b\r\n" % KEY * 32
    return {
        "decode GET": (lambda: feed(get), 1),
        "decode GET, 32 in a read": (lambda: feed(many), 32),
        "decode SET 64 KiB": (lambda: feed(large), 1),
        "decode SET 64 KiB in two reads": (in_halves, 1),
        "decode text get, 32 in a read": (lambda: feed_text(many_text), 32),
        "encode GET reply": (lambda: get_reply(0, 0, 1, 2, 3, KEY), 1),
    }


def stores() -> dict[str, Bench]:
    """Reading and writing documents."""
    store = MemoryStore(time.time)
    value = bytes(100)
    store.set(KEY, value)
    return {
        "store get": (lambda: store.get(KEY), 1),
        "store get, missing": (lambda: store.get(b"-"), 1),
        "store set": (lambda: store.set(KEY, value), 1),
        "store set with expiry": (lambda: store.set(KEY, value, 0, 100), 1),
    }


def _pair(make: type[Engine]) -> tuple[Engine, Engine]:
    """Return two engines that have shaken hands."""
    server = SSL.Connection(server_context(), None)
    server.set_accept_state()
    client = SSL.Connection(client_context(), None)
    client.set_connect_state()
    ends = make(client), make(server)
    for number in range(6):
        here, there = ends[number % 2], ends[1 - number % 2]
        with suppress(SSL.WantReadError):
            here.handshake()
        ciphertext = here.drain()
        if ciphertext:
            there.feed(ciphertext)
    return ends


def tls() -> dict[str, Bench]:
    """Encrypting and decrypting: pyOpenSSL's public methods, its handles, compiled code."""
    found: dict[str, Bench] = {}
    engines: dict[str, type[Engine]] = {"public": Engine}
    if AVAILABLE:
        engines["handles"] = CffiEngine
    if NATIVE:
        engines["compiled"] = NativeEngine
    for name, make in engines.items():
        here, there = _pair(make)

        def small(here: Engine = here, there: Engine = there) -> None:
            here.write(KEY)
            there.open(here.fetch(len(KEY)))

        def large(here: Engine = here, there: Engine = there) -> None:
            sent = 0
            view = memoryview(LARGE)
            while sent < len(LARGE):
                sent += here.write(view[sent:])
            there.feed(here.fetch(len(LARGE)))
            got = 0
            while got < len(LARGE):
                got += len(there.read())

        found[f"TLS write and read, small, {name}"] = (small, 1)
        found[f"TLS write and read, 64 KiB, {name}"] = (large, 1)
    return found


class _Nobody(Clock):
    """A reactor that watches nothing."""

    def addReader(self, reader: object) -> None:
        """Forget it."""

    addWriter = removeReader = removeWriter = addReader


def transports() -> dict[str, Bench]:
    """One write and one read of a transport, the kernel's share included."""
    found: dict[str, Bench] = {}
    for name, data in (("150 B", bytes(150)), ("64 KiB", LARGE)):
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        protocols = Protocol(), Protocol()
        make: Any = DirectServer
        here, there = (
            make(end, protocol, ("127.0.0.1", 0), None, 0, _Nobody())
            for end, protocol in zip((ours, theirs), protocols, strict=True)
        )
        for protocol, transport in zip(protocols, (here, there), strict=True):
            protocol.makeConnection(transport)

        def both(here: Any = here, there: Any = there, data: bytes = data) -> None:
            here.write(data)
            there.doRead()

        found[f"transport write and read, {name}"] = (both, 1)
    return found


GROUPS: tuple[Callable[[], dict[str, Bench]], ...] = (decoders, stores, tls, transports)


def main() -> None:
    """Time what the command line names."""
    run({name: partial(group().__getitem__, name) for group in GROUPS for name in group()})


if __name__ == "__main__":
    main()
