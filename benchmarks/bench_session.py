"""What one request costs in Python: decode, dispatch, store, encode, on a transport that is a list.

``python -m benchmarks.bench_session [--fast] [WORD ...]``
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks.micro import Bench, run
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

    def getPeer(self) -> None:
        """Be nobody."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Never pause it."""


def session(data: bytes, requests: int, value: bytes, hello: bytes = b"") -> Bench:
    """Return the work of a session that gets all of `data` in one read.

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
    protocol.dataReceived(hello or data)
    return partial(protocol.dataReceived, data), requests


def main() -> None:
    """Time what the command line names."""
    value = bytes(100)
    get = encode_request(Opcode.GET, key=KEY)
    put = encode_request(Opcode.SET, key=KEY, value=value, extras=bytes(8))
    missing = encode_request(Opcode.GETQ, key=b"-")
    of_sdk = encode_request(Opcode.GET, key=b"\0" + KEY)
    hello = encode_request(Opcode.HELLO, value=b"".join(map(_two_bytes, FEATURES)))
    text_get = b"get %b\r\n" % KEY
    text_set = b"set %b 0 0 100\r\n%b\r\n" % (KEY, value)
    work: dict[str, tuple[bytes, int, bytes]] = {
        "binary GET, one in a read": (get, 1, b""),
        "binary GET, 32 in a read": (get * 32, 32, b""),
        "binary GETQ missing, 32 in a read": (missing * 32, 32, b""),
        "binary SET, one in a read": (put, 1, b""),
        "binary SET, 32 in a read": (put * 32, 32, b""),
        "text get, one in a read": (text_get, 1, b""),
        "text get, 32 in a read": (text_get * 32, 32, b""),
        "text get of 32 keys": (b"get%b\r\n" % (b" %b" % KEY * 32), 32, b""),
        "text set, one in a read": (text_set, 1, b""),
        "GET of an SDK, one in a read": (of_sdk, 1, hello),
        "GET of an SDK, 32 in a read": (of_sdk * 32, 32, hello),
    }
    run(
        {
            name: partial(session, data, requests, value, greeting)
            for name, (data, requests, greeting) in work.items()
        }
    )


def _two_bytes(number: int) -> bytes:
    return number.to_bytes(2)


if __name__ == "__main__":
    main()
