"""What a client that reads slowly costs others in front of a memcached fleet.

    python -m benchmarks.slow_reader [-t SECONDS] [-n ROUNDS]

16 TLS clients ask at depth 1 (values of 100 bytes, one SET in ten), alone and beside one that has
asked for far more than it reads: it takes one TLS record, 16 KiB, a hundred or a thousand times a
second.  Both take turns.  Figures are the 99th percentile of the 16 in microseconds, and its ratio
to that without the slow client, medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path

from benchmarks.compare import build, load, machine
from benchmarks.hostile import Client
from benchmarks.servers import start
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode

SERVER = "kvtls + 3 memcached"
OTHERS = 16
MIX = ("-m", "mix", "-v", "100", "-K", "100")

SIZES = (16 * 1024, 1000 * 1024)
"""Bytes of the slow client's values: plain requests on shared connections, and what uses the
connection beside them."""

PACES = (100, 1000)
"""Reads a second."""

ASKED = 200
"""Requests that the slow client sends before it reads on."""


@contextmanager
def slow_reader(port: int, size: int, pace: int) -> Iterator[None]:
    """Run the slow client."""
    stop = threading.Event()
    key = b"large"
    stored = encode_request(Opcode.SET, key=key, value=bytes(size), extras=bytes(8))
    Client(port).ask(stored)

    def read() -> None:
        while not stop.is_set():
            connection, owed = Client(port).socket, 0
            with connection:
                while not stop.wait(1 / pace):
                    if owed < ASKED * size // 2:
                        connection.sendall(encode_request(Opcode.GET, key=key) * ASKED)
                        owed += ASKED * size
                    read = len(connection.recv(16 * 1024))
                    if not read:
                        break
                    owed -= read

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-t", "--seconds", type=float, default=2)
    parser.add_argument("-n", "--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="kvtls-bench-") as name:
        program = build(Path(name))
        with start(SERVER, Path(name)) as server:
            assert server is not None, "memcached is not installed"
            load(program, server, 1, ("-m", "set", "-v", "100", "-K", "100"), OTHERS)
            print("| the slow client | alone | beside it | ratio |\n|---|---|---|---|")
            for size, pace in product(SIZES, PACES):
                found: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(options.rounds):
                    for slow, p99 in found.items():
                        with slow_reader(server.port, size, pace) if slow else nullcontext():
                            _, figures = load(program, server, options.seconds, MIX, OTHERS)
                        p99.append(float(figures["p99us"]))
                alone, beside = found.values()
                ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
                print(
                    f"| {size // 1024} KiB, {pace} reads a second | {statistics.median(alone):.0f} "
                    f"| {statistics.median(beside):.0f} | {ratio:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
