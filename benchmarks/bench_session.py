"""What one request costs in Python: decode, dispatch, store, encode, on a transport that is a list.

Run it with ``python -m benchmarks.bench_session``.  Prints microseconds per request; the best of
several runs, because everything else on the machine only ever adds.
"""

from __future__ import annotations

import time
import timeit

from kvproto.server import KVServer, KVServerFactory
from kvproto.server.features import FEATURES
from kvproto.store import MemoryStore
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode

KEY = b"key:0000000001"


class Sink:
    """A transport that forgets what is written."""

    def write(self, data: bytes) -> None:
        """Take it."""

    def writeSequence(self, parts: list[bytes]) -> None:
        """Take them."""

    def getHost(self) -> None:
        """Be nowhere."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Never pause it."""


def cost(data: bytes, requests: int, value: bytes, hello: bytes = b"") -> float:
    """Return microseconds per request when all of `data` comes in one read.

    Args:
        data: The requests.
        requests: How many.
        value: What the key holds.
        hello: What is sent before, once.
    """
    store = MemoryStore(time.time)
    store.set(KEY, value)
    protocol = KVServerFactory(KVServer(store)).buildProtocol(None)
    protocol.makeConnection(Sink())
    if hello:
        protocol.dataReceived(hello)
    number = max(1, 20_000 // requests)
    best = min(timeit.repeat(lambda: protocol.dataReceived(data), number=number, repeat=7))
    return best / number / requests * 1e6


def main() -> None:
    """Print the table."""
    value = bytes(100)
    get = encode_request(Opcode.GET, key=KEY)
    put = encode_request(Opcode.SET, key=KEY, value=value, extras=bytes(8))
    for name, data, requests in (
        ("binary GET, one in a read", get, 1),
        ("binary GET, 32 in a read", get * 32, 32),
        ("binary GETQ missing, 32 in a read", encode_request(Opcode.GETQ, key=b"-") * 32, 32),
        ("binary SET, one in a read", put, 1),
        ("binary SET, 32 in a read", put * 32, 32),
        ("text get, one in a read", b"get %b\r\n" % KEY, 1),
        ("text get, 32 in a read", b"get %b\r\n" % KEY * 32, 32),
        ("text get of 32 keys", b"get%b\r\n" % (b" " + KEY) * 32, 32),
        ("text set, one in a read", b"set %b 0 0 100\r\n%b\r\n" % (KEY, value), 1),
    ):
        print(f"{name:36} {cost(data, requests, value):7.2f} us")
    hello = encode_request(Opcode.HELLO, value=b"".join(map(_two_bytes, FEATURES)))
    for name, data, requests in (
        ("GET of an SDK, one in a read", encode_request(Opcode.GET, key=b"\0" + KEY), 1),
        ("GET of an SDK, 32 in a read", encode_request(Opcode.GET, key=b"\0" + KEY) * 32, 32),
    ):
        print(f"{name:36} {cost(data, requests, value, hello):7.2f} us")


def _two_bytes(number: int) -> bytes:
    return number.to_bytes(2)


if __name__ == "__main__":
    main()
