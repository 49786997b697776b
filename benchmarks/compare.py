"""CPU per operation of kvtls next to every peer that is installed, in one run.

``python -m benchmarks.compare [-t SECONDS] [-n ROUNDS] [--plot FILE] [SERVER ...]``

Same work, same certificate, same run: per line of work the servers take turns, ``ROUNDS`` times,
every other round in the opposite order.  What counts is the ratio to the first server *within a
round*; the table has the median of these, and their range.  All processes of a server count
(front and memcached).  The load generator has a processor for itself where there are two.

Ratios differ between machines too: with the size of the caches, and with what the neighbours do.
So the processor, its caches and the load at the beginning and the end are printed with the table.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.plots import ratios
from benchmarks.servers import GENERATOR_CPUS, SERVERS, Running, start

HERE = Path(__file__).resolve().parent
IDLE_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Work:
    """One column of the table: what the load generator is told to do."""

    name: str
    options: tuple[str, ...]
    prepare: tuple[str, ...] = ()


WORKS = (
    Work("GET 100 B", ("-m", "get", "-v", "100"), ("-m", "set", "-v", "100")),
    Work("SET 100 B", ("-m", "set", "-v", "100")),
    Work("GET, 32 in flight", ("-m", "get", "-v", "100", "-d", "32"), ("-m", "set", "-v", "100")),
    Work(
        "GET 64 KiB",
        ("-m", "get", "-v", "65536", "-K", "100"),
        ("-m", "set", "-v", "65536", "-K", "100"),
    ),
    Work("SET 64 KiB", ("-m", "set", "-v", "65536", "-K", "100")),
    Work("handshake", ("-m", "handshake")),
)

COLUMNS = [*(work.name for work in WORKS), "idle KiB/conn"]


def build(directory: Path) -> Path:
    """Compile the load generator."""
    program = directory / "kvload"
    subprocess.run(
        ["cc", "-O2", "-o", str(program), str(HERE / "kvload.c"), "-lssl", "-lcrypto"], check=True
    )
    return program


def load(
    program: Path, server: Running, seconds: float, options: Sequence[str], connections: int = 16
) -> tuple[float, dict[str, str]]:
    """Run one load; return CPU microseconds per operation and the generator's own figures."""
    before, began = server.cpu_seconds(), time.monotonic()
    done = subprocess.run(
        [
            str(program),
            "-p",
            str(server.port),
            "-c",
            str(connections),
            "-t",
            f"{seconds:g}",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
        preexec_fn=partial(os.sched_setaffinity, 0, GENERATOR_CPUS),
    )
    took, spent = time.monotonic() - began, server.cpu_seconds() - before
    figures = dict(re.findall(r"(\S+)=(\S+)", done.stdout))
    operations = float(figures["ops/s"]) * took
    if figures.get("errors") != "0":
        raise RuntimeError(f"{server.name}: {done.stdout}{done.stderr}")
    return spent / operations * 1e6 if operations else float("nan"), figures


def idle_kib(program: Path, server: Running) -> float:
    """Return resident KiB for each of many idle connections."""
    before = server.resident_kib()
    generator = subprocess.Popen(
        [
            str(program),
            "-p",
            str(server.port),
            "-m",
            "idle",
            "-c",
            str(IDLE_CONNECTIONS),
            "-t",
            "4",
        ],
        stdout=subprocess.DEVNULL,
    )
    time.sleep(3)
    held = server.resident_kib() - before
    generator.wait(30)
    return held / IDLE_CONNECTIONS


Table = dict[str, dict[str, list[float]]]
"""Server -> column -> a figure for each round: microseconds per operation, KiB for idle."""


def measure(servers: Sequence[str], seconds: float, rounds: int) -> Table:
    """Let the servers take turns at each line of work."""
    table: Table = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtls-bench-")))
        program = build(scratch)
        running = []
        for name in servers:
            directory = scratch / name.replace(" ", "")
            directory.mkdir()
            try:
                server = stack.enter_context(start(name, directory))
            except RuntimeError as error:
                print(f"{name}: does not start, left out: {error}")
                continue
            if server is None:
                print(f"{name}: not installed, left out")
            else:
                running.append(server)
                table[name] = {}
        for server in running:
            table[server.name]["idle KiB/conn"] = [idle_kib(program, server)]
        for work in WORKS:
            for turn in range(rounds):
                for server in running if turn % 2 == 0 else reversed(running):
                    if work.prepare:
                        load(program, server, 1, work.prepare)
                    cost, figures = load(program, server, seconds, work.options)
                    table[server.name].setdefault(work.name, []).append(cost)
                    rate, late = figures["ops/s"], figures["p99us"]
                    print(
                        f"{work.name:18} {server.name:20} {cost:8.2f} us/op  "
                        f"{rate:>8} ops/s  p99 {late} us",
                        flush=True,
                    )
    return table


def cell(figures: Sequence[float], base: Sequence[float]) -> str:
    """Return the median figure, and the ratios to the first server round by round."""
    ratios = [one / other for one, other in zip(figures, base, strict=True)]
    spread = f", {min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
    return f"{statistics.median(figures):.2f} ({statistics.median(ratios):.2f}{spread})"


def markdown(table: Table) -> str:
    """Return the table: figure, then median and range of the ratio to the first server."""
    base = next(iter(table.values()))
    lines = ["| CPU us per op | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in table.items():
        cells = [cell(row[column], base[column]) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Return processor, caches and load, as the reader needs them to compare with his own."""
    done = subprocess.run(["lscpu"], capture_output=True, text=True, check=False)
    wanted = ("Model name", "CPU(s)", "L1d cache", "L2 cache", "L3 cache")
    found = dict(re.findall(r"^(\S[^:]*):\s+(.*)$", done.stdout, re.MULTILINE))
    facts = [f"{name}: {found[name]}" for name in wanted if name in found]
    return "; ".join([*facts, "load: {:.1f} {:.1f} {:.1f}".format(*os.getloadavg())])


def main() -> None:
    """Measure what the command line names, everything by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-t", "--seconds", type=float, default=3)
    parser.add_argument("-n", "--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios, e.g. as .svg")
    parser.add_argument("servers", nargs="*", choices=[[], *SERVERS], metavar="SERVER")
    arguments = parser.parse_args()
    print(machine())
    table = measure(arguments.servers or list(SERVERS), arguments.seconds, arguments.rounds)
    print()
    print(machine())
    print()
    print(markdown(table))
    if arguments.plot is not None:
        middle = {
            name: {column: statistics.median(figures) for column, figures in row.items()}
            for name, row in table.items()
        }
        ratios(middle, COLUMNS, arguments.plot)


if __name__ == "__main__":
    main()
