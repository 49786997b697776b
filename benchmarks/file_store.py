"""What keeping documents in a directory costs: CPU of GET and SET, and a million documents.

``python -m benchmarks.file_store [--rounds N] [--seconds S] [--only LOAD …] [--stores STORE …]
[--documents N] [--directory DIR]``

The CPU of the server's process, user and system time of all its threads, is compared with that of
``memory:``, one after the other in each round, under the load of ``benchmarks/kvload.c`` over TLS;
each figure is the median of the rounds with their range.  A load is operation, connections and
requests in flight on each, as in ``set,2,32``.  The directory should be on the disk that is meant:
``sync=always`` measures it, and in ``/dev/shm`` everything but it.  What of it is the kernel's, for
sockets and for the disk, is told beside it.

It takes rounds times loads times stores times seconds: a minute for three rounds of five loads.

With ``--documents`` nothing of this is done: so many documents are stored, the service is killed,
and what its next start takes is printed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from twisted.internet.task import Clock

from kvproto.config import Sync
from kvproto.store import FileStore, MemoryStore

HERE = Path(__file__).parent
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
STORES = ("memory:", "never", "everysec", "always")
LOADS = (("get", 16, 1), ("set", 16, 1), ("get", 2, 32), ("set", 2, 32), ("set", 16, 32))


@contextmanager
def service(store: str, directory: Path) -> Iterator[tuple[int, int]]:
    """Run a service; yield its process and port."""
    url = store if store == "memory:" else f"file:{directory}/{store}?sync={store}"
    arguments = ["kvtls", "--listen", "tcp:0:interface=127.0.0.1", "--store", url]
    arguments += ["--state-dir", str(directory / f"state-{store.strip(':')}")]
    process = subprocess.Popen(
        [*TWISTD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"kvtls ready on [\d.]+:(\d+)", line):
            break
    else:
        raise RuntimeError("no service")
    try:
        yield process.pid, int(found[1])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def cpu_of(pid: int) -> tuple[float, float]:
    """Return the CPU seconds of a process, its threads included: all, and the kernel's."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / 100, system / 100


def load_with(kvload: Path, port: int, load: tuple[str, int, int], seconds: int) -> float:
    """Load a service for so long; return operations a second."""
    mode, connections, depth = load
    options = {"-p": port, "-m": mode, "-c": connections, "-d": depth, "-t": seconds}
    command = [str(kvload), *map(str, itertools.chain.from_iterable(options.items()))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = re.search(r"ops/s=([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def measure(
    kvload: Path, pid: int, port: int, load: tuple[str, int, int], seconds: int
) -> tuple[float, float, float]:
    """Return microseconds of CPU for each operation, those in the kernel, operations a second."""
    all_before, system_before = cpu_of(pid)
    speed = load_with(kvload, port, load, seconds)
    everything, system = cpu_of(pid)
    each = 1e6 / (speed * seconds)
    return (everything - all_before) * each, (system - system_before) * each, speed


def compare(options: argparse.Namespace, directory: Path) -> None:
    """Print the CPU of each store in each load, and what it is of memory's."""
    kvload = directory / "kvload"
    subprocess.run(["cc", "-O2", "-o", kvload, HERE / "kvload.c", "-lssl", "-lcrypto"], check=True)
    stores = ["memory:", *(store for store in options.stores if store != "memory:")]
    results: dict[tuple[tuple[str, int, int], str], list[tuple[float, float, float]]] = {}
    with ExitStack() as stack:
        running = {store: stack.enter_context(service(store, directory)) for store in stores}
        for _, port in running.values():
            load_with(kvload, port, ("set", 1, 1), 1)  # something to be found
        for turn in range(options.rounds):
            for load, store in itertools.product(options.only, stores[:: -1 if turn % 2 else 1]):
                measured = measure(kvload, *running[store], load, options.seconds)
                results.setdefault((load, store), []).append(measured)
    for load in options.only:
        mode, connections, depth = load
        memory = results[load, "memory:"]
        for store in stores:
            mine, kernel, speeds = zip(*results[load, store], strict=True)
            ratios = [us / its for us, (its, *_) in zip(mine, memory, strict=True)]
            print(
                f"{mode} {connections:3} connections, {depth:2} in flight, {store:9}"
                f" {_told(mine):18} us, {statistics.median(kernel):4.1f} of it the kernel's,"
                f" {_told(ratios, 2):18} of memory, {statistics.median(speeds):7.0f} a second"
            )


def _load(text: str) -> tuple[str, int, int]:
    """Read a load from the command line."""
    mode, connections, depth = text.split(",")
    return mode, int(connections), int(depth)


def _told(figures: Sequence[float], digits: int = 1) -> str:
    """Return the median of some figures, and their range."""
    least, most = min(figures), max(figures)
    return f"{statistics.median(figures):.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"


def count(documents: int, directory: Path) -> None:
    """Print what so many documents of 100 bytes take: on disk, in memory, and to start with."""
    path = directory / "many"
    (path / "bucket-default").mkdir(parents=True)
    path.chmod(0o700)
    clock = Clock()
    memory = MemoryStore(time.time, 16 << 30)
    store = FileStore(path / "bucket-default", Sync.NEVER, memory, clock)
    opened = store.open()
    while not opened.called:
        clock.advance(0)
    started = time.perf_counter()
    for number in range(documents):
        store.set(b"key:%012d" % number, bytes(100), 0, 0)
        if not number % 1000:
            clock.advance(0)
    print(f"stored in {time.perf_counter() - started:.1f} s")
    size = sum(file.stat().st_size for file in (path / "bucket-default").iterdir())
    print(f"on disk {size / 2**20:.0f} MiB, counted {memory.table.used / 2**20:.0f} MiB")
    arguments = ["kvtls", "--listen", "tcp:0:interface=127.0.0.1", "--store", f"file:{path}"]
    arguments += ["--state-dir", str(directory / "state"), "--memory-limit", "16GiB"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*TWISTD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(" ", line.rstrip()[:150])
        if "kvtls ready on" in line:
            break
    wall = time.perf_counter() - started
    print(f"ready after {wall:.1f} s, {cpu_of(process.pid)[0]:.1f} s of CPU")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    for name in ("VmRSS", "RssAnon", "RssFile"):
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        print(f"{name} {int(found[1]) / 1024:.0f} MiB")
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(
        f"most of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--only", type=_load, nargs="+", default=LOADS, metavar="LOAD")
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        if options.documents:
            count(options.documents, directory)
        else:
            compare(options, directory)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
