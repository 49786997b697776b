"""How costs grow: connections, values, certificates, requests in flight.

``python -m benchmarks.growth [-t SECONDS] [--plot FILE] [SERIES ...]``

CPU microseconds per operation of kvtls and of memcached's own TLS, by turns, on one machine in one
run.  What to look for: a line that bends upwards more than memcached's does.
"""

from __future__ import annotations

import argparse
import math
import re
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import build, load
from benchmarks.plots import curves
from benchmarks.servers import Running, start

SERVERS = ("memcached TLS", "kvtls")


@dataclass(frozen=True, slots=True)
class Series:
    """One thing that grows.

    Attributes:
        label: What it is.
        sizes: Its sizes.
        options: For the load generator; ``{}`` is the size.
        prepare: What is stored before.
        connections: How many; None when that is what grows.
        certificates: Whether it is the certificate, in bytes of DER.
    """

    label: str
    sizes: Sequence[int]
    options: str
    prepare: str = ""
    connections: int | None = 16
    certificates: bool = False


SERIES = {
    "connections": Series(
        "active connections, GET 100 B",
        (1, 16, 100, 1000, 5000),
        "-m get -v 100",
        "-m set -v 100",
        connections=None,
    ),
    "get": Series(
        "bytes of a value, GET",
        (100, 1024, 16384, 65536, 262144, 1048000),
        "-m get -v {} -K 20",
        "-m set -v {} -K 20",
    ),
    "set": Series(
        "bytes of a value, SET", (100, 1024, 16384, 65536, 262144, 1048000), "-m set -v {} -K 20"
    ),
    "certificate": Series(
        "bytes of the certificate, handshake",
        (1000, 10_000, 30_000, 60_000, 100_000),
        "-m handshake",
        certificates=True,
    ),
    "in flight": Series(
        "requests in flight, GET 100 B",
        (1, 2, 4, 8, 16, 32, 64),
        "-m get -v 100 -d {}",
        "-m set -v 100",
    ),
}


def _steady(
    program: Path, server: Running, seconds: float, options: Sequence[str], connections: int
) -> float:
    """Return the cost per operation once everybody is connected.

    Looked at from outside while the load runs: handshakes of thousands of connections are most of
    the work of its first seconds.
    """
    ramp_up = 2 + connections / 400
    command = [str(program), "-p", str(server.port), "-c", str(connections), *options]
    generator = subprocess.Popen(
        [*command, "-t", str(math.ceil(ramp_up + seconds + 2))], stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(ramp_up)
        began, few = server.cpu_seconds(), reads_so_far(server.port)
        time.sleep(max(3, seconds))
        ended, many = server.cpu_seconds(), reads_so_far(server.port)
    finally:
        generator.wait(60)
    return (ended - began) / (many - few) * 1e6


def reads_so_far(port: int) -> int:
    """Return how many reads a server has counted (memcached's ``stats``)."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        trusting.wrap_socket(plain) as client,
    ):
        client.sendall(b"stats\r\n")
        said = b""
        while not said.endswith(b"END\r\n"):
            said += client.recv(65536)
    found = re.search(rb"STAT cmd_get (\d+)", said)
    assert found is not None, said
    return int(found[1])


def measure(series: Series, program: Path, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Return server -> points (size, microseconds per operation)."""
    points: dict[str, list[tuple[float, float]]] = {}
    for size in series.sizes:
        for name, cost in _at_size(series, size, program, seconds).items():
            points.setdefault(name, []).append((size, cost))
    return points


def _at_size(series: Series, size: int, program: Path, seconds: float) -> dict[str, float]:
    """Measure each server that is installed at one size, twice by turns; the better counts."""
    connections = series.connections or size
    certificate_size = size if series.certificates else 0
    costs: dict[str, list[float]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtls-growth-")))
        running = []
        for name in SERVERS:
            directory = scratch / name.replace(" ", "")
            directory.mkdir()
            server = stack.enter_context(start(name, directory, certificate_size))
            if server is not None:
                running.append(server)
                if series.prepare:
                    load(program, server, 1, series.prepare.format(size).split())
        options = series.options.format(size).split()
        for _ in range(2):
            for server in running:
                if series.connections is None:
                    cost = _steady(program, server, seconds, options, connections)
                else:
                    cost, _ = load(program, server, seconds, options, connections)
                costs.setdefault(server.name, []).append(cost)
    return {name: min(found) for name, found in costs.items()}


def markdown(series: Series, points: dict[str, list[tuple[float, float]]]) -> str:
    """Return one series as a table."""
    lines = [f"| {series.label} | " + " | ".join(f"{size:,}" for size in series.sizes) + " |"]
    lines.append("|---" * (len(series.sizes) + 1) + "|")
    for name, found in points.items():
        cells = " | ".join(f"{cost:.2f}" for _, cost in found)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line names, everything by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-t", "--seconds", type=float, default=2)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves, e.g. as .svg")
    parser.add_argument("series", nargs="*", choices=[[], *SERIES], metavar="SERIES")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="kvtls-growth-") as scratch:
        program = build(Path(scratch))
        for name in arguments.series or SERIES:
            found[name] = measure(SERIES[name], program, arguments.seconds)
            print(markdown(SERIES[name], found[name]), end="\n\n", flush=True)
    if arguments.plot is not None:
        curves(found, {name: SERIES[name].label for name in found}, arguments.plot)


if __name__ == "__main__":
    main()
