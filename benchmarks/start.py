"""What a test run pays for a service of its own: time to ready, memory, an SDK's bootstrap.

``python -m benchmarks.start [-n STARTS]``: prints the median and the range over some starts, and
what the service spends of the processor for one SDK that logs in and opens a bucket.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from tests.integration.sdk import closing, connect
from tests.integration.service import KvtlsProcess

BOOTSTRAPS = 10


def cpu_seconds(pid: int) -> float:
    """Return what a process has used of the processor so far, in all its threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def bootstrap(service: KvtlsProcess) -> None:
    """Log in, open a bucket, ask for one document."""
    with closing(connect(service)) as cluster:
        cluster.bucket("default").default_collection().exists("k")


def main() -> None:
    """Start, measure, stop; again and again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="starts")
    starts = parser.parse_args().n
    seconds, memory, costs = [], [], []
    for _ in range(starts):
        began = time.monotonic()
        with KvtlsProcess("--user", "alice:secret") as service:
            seconds.append(time.monotonic() - began)
            bootstrap(service)
            before = cpu_seconds(service.process.pid)
            for _ in range(BOOTSTRAPS):
                bootstrap(service)
            costs.append((cpu_seconds(service.process.pid) - before) / BOOTSTRAPS)
            memory.append(service.resident_kib() / 1024)
    for name, values, unit in (
        ("ready", seconds, "s"),
        ("resident", memory, "MiB"),
        ("an SDK's bootstrap", costs, "s of processor"),
    ):
        middle = statistics.median(values)
        print(f"{name}: {middle:.3f} {unit} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
