"""What the worst requests cost everybody else: ``python -m benchmarks.hostile [-s MIB]``.

Starts the service, stores documents that are made to be expensive, and asks for the worst of them.
Meanwhile another connection asks NOOP again and again: its slowest answer is how long the event
loop was held, and what the machine was busy with besides.  Each line is one request: how long its
own answer took, the slowest and the median NOOP meanwhile, in milliseconds, and what the process
holds afterwards, in MiB.  The first line is the service left alone.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode
from kvproto.wire.frames import Response
from kvproto.wire.subdoc import Lookup, Mutation, encode_lookup, encode_mutation
from kvproto.wire.subdoc_terms import LookupSpec, MutationSpec, PathFlag, PathOp

MIB = 1 << 20
START_SECONDS = 20
ANSWER_SECONDS = 600


class Client:
    """A connection that waits for its answers."""

    def __init__(self, port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
        self.socket = context.wrap_socket(plain)
        self._decoder = ResponseDecoder(1 << 30)

    def ask(self, data: bytes, answers: int = 1) -> list[Response]:
        """Send requests; return the answers."""
        self.socket.sendall(data)
        found: list[Response] = []
        while len(found) < answers:
            read = self.socket.recv(1 << 20)
            if not read:
                raise ConnectionError("the service hung up")
            found += [frame for frame in self._decoder.feed(read) if isinstance(frame, Response)]
        return found


class Prober(threading.Thread):
    """Asks NOOP until it is told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._client = Client(port)
        self._over = threading.Event()
        self.times: list[float] = []

    def run(self) -> None:
        """Ask, a thousand times a second at most."""
        noop = encode_request(Opcode.NOOP)
        while not self._over.is_set():
            start = time.perf_counter()
            self._client.ask(noop)
            self.times.append(time.perf_counter() - start)
            time.sleep(0.001)

    def stop(self) -> list[float]:
        """Return the seconds that each answer took."""
        self._over.set()
        self.join()
        return self.times


@contextmanager
def service() -> Iterator[tuple[int, int]]:
    """Run the service; give its port and process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="kvtls-hostile-") as directory:
        run = "from twisted.scripts.twistd import run; run()"
        arguments = [sys.executable, "-c", run, "-n", "--pidfile=", f"--logfile={directory}/log"]
        arguments += ["kvtls", "--listen", f"tcp:{port}:interface=127.0.0.1"]
        arguments += ["--memory-limit", "256MiB", "--state-dir", f"{directory}/state"]
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    Client(port)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        print(Path(directory, "log").read_text(), file=sys.stderr)
                        raise
                    time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def resident(process: int) -> int:
    """Return what a process holds, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


def store(client: Client, value: bytes) -> None:
    """Store the document that is asked about."""
    [answer] = client.ask(encode_request(Opcode.SET, key=b"k", value=value, extras=bytes(8)))
    if answer.status:
        raise SystemExit(f"the document was refused: 0x{answer.status:02x}")


def lookup(*specs: LookupSpec) -> bytes:
    """Encode a lookup."""
    extras, value = encode_lookup(Lookup(list(specs)))
    return encode_request(Opcode.SUBDOC_MULTI_LOOKUP, key=b"k", extras=extras, value=value)


def mutation(*specs: MutationSpec) -> bytes:
    """Encode a mutation."""
    extras, value = encode_mutation(Mutation(list(specs)))
    return encode_request(Opcode.SUBDOC_MULTI_MUTATION, key=b"k", extras=extras, value=value)


def filled(start: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """Make a document of about a size."""
    return start + unit * (size // len(unit)) + end


def requests(size: int) -> Iterator[tuple[str, bytes, Callable[[], bytes], int]]:
    """Yield name, document, request, and how many answers it has."""
    numbers = filled(b"[", b"1,", b"1]", size)
    last = [LookupSpec(PathOp.GET, 0, b"[-1]" * count) for count in range(16, 32)]
    yield "[-1] 31 deep, 16 times", numbers, lambda: lookup(*[last[-1]] * 16), 1
    deep = filled(b"[" * 31, b"1,", b"1" + b"]" * 31, size)
    yield "[-1] 16 to 31 deep", deep, lambda: lookup(*last), 1
    bushy = filled(b"[", b"[[[[[[1]]]]]],", b"1]", size)
    yield "[-1] in nested arrays", bushy, lambda: lookup(*last), 1
    beyond = [LookupSpec(PathOp.GET, 0, b"[%d]" % (10**8 + at)) for at in range(16)]
    yield "16 indexes beyond the end", numbers, lambda: lookup(*beyond), 1
    wide = filled(b"{", b'"a":1,', b'"b":1}', size)
    names = [LookupSpec(PathOp.EXISTS, 0, b"name%d" % at) for at in range(16)]
    yield "16 names of a wide object", wide, lambda: lookup(*names), 1
    escaped = filled(b"{", b'"\\n":1,', b'"b":1}', size)
    yield "16 names among escaped ones", escaped, lambda: lookup(*names), 1
    checksum = LookupSpec(PathOp.GET, PathFlag.XATTR, b"$document.value_crc32c")
    yield "value_crc32c, 16 times", numbers, lambda: lookup(*[checksum] * 16), 1
    unique = [MutationSpec(PathOp.ARRAY_ADD_UNIQUE, 0, b"", b"%d" % at) for at in range(2, 18)]
    yield "16 unique elements", numbers, lambda: mutation(*unique), 1
    added = [MutationSpec(PathOp.DICT_ADD, 0, b"name%d" % at, b"1") for at in range(16)]
    yield "16 members added", wide, lambda: mutation(*added), 1
    yield "no JSON", b"[" * size, lambda: lookup(last[0]), 1
    get = encode_request(Opcode.GET, key=b"k")
    yield "GET", numbers, lambda: get, 1
    append = encode_request(Opcode.APPEND, key=b"k", value=b" ")
    yield "50 times APPEND", numbers[:-MIB], lambda: append * 50, 50
    password = "\ufdfa".encode() * 5300
    login = encode_request(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0a\0" + password)
    yield "20 logins of 16 kB", b"{}", lambda: login * 20, 20
    stat = encode_request(Opcode.STAT)
    yield "STAT", b"{}", lambda: stat, 20


def report(name: str, seconds: float, times: list[float], process: int) -> None:
    """Print a line."""
    worst, median = max(times, default=0), statistics.median(times or [0])
    print(
        f"{name:28} {seconds * 1e3:9.0f} {worst * 1e3:9.1f} {median * 1e3:9.2f} "
        f"{resident(process):9}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-s", "--size", type=int, default=19, help="MiB of the documents")
    parser.add_argument("-k", "--only", default="", help="a part of the names of requests")
    options = parser.parse_args()
    size = options.size * MIB
    print(f"{'request':28} {'answer':>9} {'slowest':>9} {'median':>9} {'holds':>9}")
    with service() as (port, process):
        client = Client(port)
        prober = Prober(port)
        prober.start()
        time.sleep(2)
        report("nothing", 2, prober.stop(), process)
        for name, document, request, answers in requests(size):
            if options.only not in name:
                continue
            store(client, document)
            prober = Prober(port)
            prober.start()
            start = time.perf_counter()
            client.ask(request(), answers)
            report(name, time.perf_counter() - start, prober.stop(), process)
        store(client, filled(b"[", b"1,", b"1]", size))
        idle = [Client(port) for _ in range(4)]
        prober = Prober(port)
        prober.start()
        start = time.perf_counter()
        for one in idle:
            one.socket.sendall(lookup(LookupSpec(PathOp.GET_DOC, 0, b"")) * 16)
        time.sleep(5)
        report("4 that do not read", time.perf_counter() - start, prober.stop(), process)
        held = encode_request(Opcode.SET, key=b"k", value=bytes(size), extras=bytes(8))[:-1]
        prober = Prober(port)
        prober.start()
        start = time.perf_counter()
        many = [Client(port) for _ in range(60)]
        for one in many:
            try:
                one.socket.sendall(held)
            except OSError:
                continue  # it was in the way
        gone = sum(bool(select.select([one.socket], [], [], 0)[0]) for one in many)
        report(f"60 half SETs, {gone} cut off", time.perf_counter() - start, prober.stop(), process)


if __name__ == "__main__":
    main()
