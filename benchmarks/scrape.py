"""What it costs the event loop to be looked at while many are connected.

``python -m benchmarks.scrape [-n CONNECTIONS]``: opens that many real connections (without TLS:
what is looked at is the same), and prints what the service spends of the processor for one answer.
That is the longest that the event loop can have been held for it; answers that are made in pieces
hold it for less.
"""

from __future__ import annotations

import argparse
import re
import resource
import socket
import time
import urllib.request
from collections.abc import Callable

from benchmarks.start import cpu_seconds
from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from tests.integration.service import KvtlsProcess

ASKED = 20
"""Answers of a kind that are measured together."""


def measure(service: KvtlsProcess, what: Callable[[], object]) -> float:
    """Return milliseconds of the service's processor for one call of something."""
    what()
    before = cpu_seconds(service.process.pid)
    for _ in range(ASKED):
        what()
    return (cpu_seconds(service.process.pid) - before) / ASKED * 1000


def connect(port: int, count: int) -> list[socket.socket]:
    """Open connections that have asked something each."""
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), 30)
        client.sendall(b"mn\r\n")
        clients.append(client)
    for client in clients:
        client.recv(10)
    return clients


def main() -> None:
    """Connect, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10_000, help="connections")
    count = parser.parse_args().n
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options = ["--plain", "tcp:0:interface=127.0.0.1", "--http", "tcp:0"]
    with KvtlsProcess(*options, "--max-connections", str(count + 100)) as service:
        http = service.wait_for_line(re.compile(r"http on (\S+)"))
        where = re.search(r"http on (\S+)", http)
        assert where is not None, http
        control = service.state_dir / CONTROL_SOCKET
        plain = call(control, "address", {})["ports"]["plain"][0]

        def get(path: str) -> Callable[[], object]:
            return lambda: urllib.request.urlopen(f"http://{where[1]}{path}", timeout=60).read()

        answers = {
            "/metrics": get("/metrics"),
            "/status.json": get("/status.json"),
            "/": get("/"),
            "kvtls connections": lambda: call(control, "connections", {}),
            "kvtls connections --limit 0": lambda: call(control, "connections", {"limit": 0}),
        }
        nobody = {name: measure(service, ask) for name, ask in answers.items()}
        began = time.monotonic()
        clients = connect(plain, count)
        took = time.monotonic() - began
        there = call(control, "status", {})["connections"]["total"]
        print(f"{there} connections, opened in {took:.1f} s")
        for name, ask in answers.items():
            many = measure(service, ask)
            print(f"{name}: {nobody[name]:.1f} ms of processor with none, {many:.1f} ms with all")
        for client in clients:
            client.close()


if __name__ == "__main__":
    main()
