"""Fronts with TLS for memcached: what front and memcached cost together, in CPU time.

    python -m benchmarks.fleet [-t SECONDS] [-n ROUNDS] [FRONT...]

Every front stands before the same memcached, with 64 TLS clients.  Figures are microseconds of CPU
time for each operation, the front's and memcached's together, and their ratio to nginx in the same
round; only ratios can be compared with those of another machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import Work, build, load
from benchmarks.servers import SERVERS, start

CONNECTIONS = 64
BASE = "nginx + memcached"
FRONTS = (
    "kvtls + memcached",
    "kvtls + 3 memcached",
    BASE,
    "haproxy + memcached",
    "stunnel + memcached",
    "stunnel + twemproxy",
    "memcached TLS -t 1",
)
WORKS = (
    Work(
        "depth 1", ("-m", "mix", "-v", "100", "-K", "100"), ("-m", "set", "-v", "100", "-K", "100")
    ),
    Work(
        "depth 32",
        ("-m", "mix", "-v", "100", "-K", "100", "-d", "32"),
        ("-m", "set", "-v", "100", "-K", "100"),
    ),
    Work(
        "16 KiB",
        ("-m", "mix", "-v", "16384", "-K", "100"),
        ("-m", "set", "-v", "16384", "-K", "100"),
    ),
)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-t", "--seconds", type=float, default=3)
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("fronts", nargs="*", choices=[[], *SERVERS], metavar="FRONT")
    options = parser.parse_args()
    table: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtls-bench-")))
        program = build(scratch)
        running = []
        for name in options.fronts or FRONTS:
            directory = scratch / name.replace(" ", "")
            directory.mkdir()
            server = stack.enter_context(start(name, directory))
            if server is None:
                print(f"{name}: not installed, left out")
                continue
            running.append(server)
            table[name] = {}
        for work in WORKS:
            for turn in range(options.rounds):
                for server in running if turn % 2 == 0 else reversed(running):
                    # twemproxy speaks text only.
                    text = ("-A",) if "twemproxy" in server.name else ()
                    load(program, server, 1, (*work.prepare, *text), 4)
                    cost, figures = load(
                        program, server, options.seconds, (*work.options, *text), CONNECTIONS
                    )
                    table[server.name].setdefault(work.name, []).append(cost)
                    print(
                        f"{work.name:10} {server.name:22} {cost:7.2f} us/op  "
                        f"{figures['ops/s']:>8} ops/s  p99 {figures['p99us']} us",
                        flush=True,
                    )
    print("| front | " + " | ".join(work.name for work in WORKS) + " |")
    print("|---" * (len(WORKS) + 1) + "|")
    base = table.get(BASE, {})
    for name, row in table.items():
        cells = []
        for work in WORKS:
            cost = statistics.median(row[work.name])
            ratio = ""
            if base:
                pairs = zip(row[work.name], base[work.name], strict=True)
                ratio = f" ({statistics.median(own / other for own, other in pairs):.2f})"
            cells.append(f"{cost:.1f}{ratio}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
