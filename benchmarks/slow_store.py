"""What pipelining is worth with a store that needs time: ``python -m benchmarks.slow_store``.

A child process serves, over TLS on loopback, a store that answers every request a millisecond
after it was asked.  One connection sends plain GETs, one or 32 in flight, in turns.  Each line is
a round: requests a second of both, by the clock, and their ratio.  A connection that is held up by
every answer has a ratio near 1; one that asks for all at once nearly 32.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint

from benchmarks.hostile import Client
from kvproto.server import KVServer, KVServerFactory
from kvproto.store import MemoryStore
from kvproto.testing.certificates import root_authority
from kvproto.tls import CredentialFiles, RotatingServerEndpoint
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode

DELAY_S = 0.001
IN_FLIGHT = 32
KEYS = [b"key:%010d" % number for number in range(IN_FLIGHT)]
VALUE = bytes(100)
ANSWER_BYTES = 24 + 4 + len(VALUE)
"""A GET's answer: header, flags, value."""

reactor: Any = default_reactor


class SlowStore:
    """Answers as a `MemoryStore` does, `DELAY_S` later."""

    def __init__(self) -> None:
        self._store = MemoryStore(time.time)
        for key in KEYS:
            self._store.set(key, VALUE)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name.startswith("__") or not callable(method):
            return method

        def later(*args: Any, **options: Any) -> Deferred[Any]:
            answer: Deferred[Any] = Deferred(lambda _: call.cancel())
            call = reactor.callLater(DELAY_S, answer.callback, method(*args, **options))
            return answer

        return later


def serve(directory: Path) -> None:
    """Serve until ended; the port is printed."""
    files = CredentialFiles(directory / "chain.pem", directory / "key.pem")
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    secured = RotatingServerEndpoint(endpoint, files, reactor, watch=0)
    # As a service makes it: what is answered in one turn is sent together.
    server: Any = KVServer(SlowStore(), later=reactor.callLater)
    listening: Deferred[Any] = secured.listen(KVServerFactory(server))
    listening.addCallback(lambda port: print(port.getHost().port, flush=True))
    reactor.run()


@contextmanager
def service() -> Iterator[int]:
    """Run the child; give its port."""
    with tempfile.TemporaryDirectory(prefix="kvtls-slow-") as place:
        directory = Path(place)
        issued = root_authority().issue("localhost", ("localhost",))
        (directory / "chain.pem").write_bytes(issued.chain_pem)
        (directory / "key.pem").write_bytes(issued.key_pem)
        arguments = [sys.executable, "-m", "benchmarks.slow_store", "--serve", place]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            process.wait()


def throughput(client: Client, in_flight: int, seconds: float) -> float:
    """Return the GETs a second of a closed loop over one connection."""
    # Different keys: requests for one key keep their order, so each would wait for the last.
    data = b"".join(encode_request(Opcode.GET, key=key) for key in KEYS[:in_flight])
    began, answers = time.monotonic(), 0
    while (taken := time.monotonic() - began) < seconds:
        client.socket.sendall(data)
        # Counted, not decoded: the client is to cost next to nothing.
        missing = in_flight * ANSWER_BYTES
        while missing:
            missing -= len(client.socket.recv(missing)) or sys.exit("the service hung up")
        answers += in_flight
    return answers / taken


def main() -> None:
    """Measure both, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("-t", type=float, default=1.0, help="seconds of one measurement")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    ratios = []
    with service() as port:
        client = Client(port)
        for _ in range(options.n):
            one = throughput(client, 1, options.t)
            many = throughput(client, IN_FLIGHT, options.t)
            ratios.append(many / one)
            print(f"1 in flight {one:.0f}/s, {IN_FLIGHT} in flight {many:.0f}/s: {many / one:.1f}")
    print(f"median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
