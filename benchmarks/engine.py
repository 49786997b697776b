"""CPU of an operation on a Valkey or Redis server: of this process and of the server.

Usage: ``python -m benchmarks.engine [--seconds S] [--rounds N] [--depth N …]``; it starts
``redis-server`` itself, on a Unix socket.  Operations take turns; each figure is the median of the
rounds, and what both have taken together also with its range.

What is measured is the store as a session uses it, without TLS and without a client: a Deferred
for each operation, so many under way at once.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed

from kvproto.upstream import EngineStore, make_engine, parse_options

reactor: Any = installed

_KEYS = 10_000


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()
    return int(fields[0]) / 1e9


def own_cpu() -> float:
    """Return the CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Run:
    """Keeps a number of operations under way for some time.

    Args:
        operate: Begins one; called with a key.
        depth: How many.
        seconds: How long.
        pid: The server's process.
    """

    def __init__(self, operate: Any, depth: int, seconds: float, pid: int) -> None:
        self._operate = operate
        self._keys = itertools.cycle([b"key:%06d" % number for number in range(_KEYS)])
        self._depth = depth
        self._seconds = seconds
        self._pid = pid
        self.done = 0

    def __call__(self) -> tuple[float, float, float]:
        """Run; return operations a second, and microseconds of CPU here and in the server."""
        started, own, theirs = time.monotonic(), own_cpu(), cpu_of(self._pid)
        self._end = started + self._seconds
        self._open = self._depth
        for _ in range(self._depth):
            self._next(None)
        while self._open:
            reactor.iterate(0.1)
        took = time.monotonic() - started
        number = self.done
        return (
            number / took,
            (own_cpu() - own) / number * 1e6,
            (cpu_of(self._pid) - theirs) / number * 1e6,
        )

    def _next(self, _: Any) -> None:
        self.done += 1
        if not self.done & 63 and time.monotonic() > self._end:
            self._end = 0.0
        if not self._end:
            self._open -= 1
            return
        self._operate(next(self._keys)).addCallback(self._next)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, nargs="*", default=[1, 32])
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="kvtls-bench-")
    path = f"{directory}/socket"
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not Path(path).exists():
            time.sleep(0.05)
        print(
            f"{'operation':32} {'depth':>5} {'op/s':>9} {'here us':>8} {'server us':>9} {'sum':>6}"
        )
        engines: list[Any] = []
        operations: list[tuple[str, Any]] = []
        for locks in (True, False):
            engine = make_engine(parse_options(f"redis+unix:{path}"), reactor, 0)
            store = EngineStore(engine, f"b{int(locks)}", time.time, locks=locks)
            engine.start()
            engines += [store, engine]
            filled = store.set(b"key:000000", b"x" * 100)
            while not filled.called:
                reactor.iterate(0.05)
            mode = "" if locks else ", memcached mode"
            operations += [
                ("SET" + mode, lambda key, s=store: s.set(key, b"x" * 100)),
                ("GET" + mode, store.get),
                ("increment" + mode, lambda key, s=store: s.increment(b"n" + key, 1, 0, 0)),
            ]
        found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
        for _ in range(arguments.rounds):
            for name, operate in operations:
                for depth in arguments.depth:
                    run = Run(operate, depth, arguments.seconds, server.pid)
                    found.setdefault((name, depth), []).append(run())
        for (name, depth), figures in found.items():
            rate, own, theirs = (statistics.median(column) for column in zip(*figures, strict=True))
            sums = [here + there for _, here, there in figures]
            total = f"{statistics.median(sums):6.1f} ({min(sums):.1f}-{max(sums):.1f})"
            print(f"{name:32} {depth:5} {rate:9.0f} {own:8.1f} {theirs:9.1f} {total}")
        for each in engines:
            each.stop()
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
