"""The servers that are measured side by side, each ready to be started and ended.

Every server answers the same protocol on a TLS port of loopback with the same
certificate; a front (nginx, HAProxy, hitch, stunnel) stands before a plain
memcached whose CPU time counts as well.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kvproto.testing.certificates import server_identity

__all__ = ["GENERATOR_CPUS", "SERVERS", "SERVER_CPUS", "Running", "Workplace", "start"]

START_SECONDS = 60
TICKS = os.sysconf("SC_CLK_TCK")
FRONTED_CONNECTIONS = min(25_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)
"""A front needs two descriptors for each; HAProxy does not start without them."""
MEMCACHED_THREADS = 4
"""memcached's default."""

GENERATOR_CPUS = set(sorted(os.sched_getaffinity(0))[-1:])
SERVER_CPUS = os.sched_getaffinity(0) - GENERATOR_CPUS or GENERATOR_CPUS
"""The load generator has the last processor for itself, the servers have the others."""

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


@dataclass(slots=True)
class Workplace:
    """A directory with the certificate files that all servers use.

    Attributes:
        directory: Where the files are.
        certificate_size: Bytes of DER of the server's certificate; 0 for the smallest.
    """

    directory: Path
    certificate_size: int = 0
    chain: Path = field(init=False)
    key: Path = field(init=False)
    both: Path = field(init=False)

    def __post_init__(self) -> None:
        identity = server_identity(self.certificate_size)
        self.chain = self._write("chain.pem", identity.chain_pem)
        self.key = self._write("key.pem", identity.key_pem)
        self.both = self._write("both.pem", identity.key_pem + identity.chain_pem)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def configuration(self, name: str, text: str) -> str:
        """Write a configuration file and return its path."""
        path = self.directory / name
        path.write_text(text, encoding="ascii")
        return str(path)


def free_port() -> int:
    """Return a TCP port of loopback that nobody uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def memcached_plain(port: int, threads: int = 1) -> list[str]:
    """Command of a plain memcached, such as stands behind a front.

    One thread, as everybody else here has one: threads that share a core cost each other's cache.
    """
    return [
        *["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", str(port), "-t", str(threads)],
        *["-c", "12000", "-I", "2m", "-m", "256"],
    ]


def memcached_tls(port: int, place: Workplace, threads: int = 1) -> list[list[str]]:
    """memcached's own TLS."""
    tls = f"ssl_chain_cert={place.chain},ssl_key={place.key}"
    return [[*memcached_plain(port, threads), "-Z", "-o", tls]]


def kvtls(port: int, place: Workplace) -> list[list[str]]:
    """The service under measurement, as an operator starts it."""
    run = "from twisted.scripts.twistd import run; run()"
    return [
        [
            *[
                sys.executable,
                "-c",
                run,
                "-n",
                "--pidfile=",
                f"--logfile={place.directory}/kvtls.log",
            ],
            *["kvtls", "--mode", "memcached", "--listen", f"tcp:{port}:interface=127.0.0.1"],
            *["--certificate", str(place.chain), "--private-key", str(place.key)],
            *["--max-connections", "12000", "--memory-limit", "256MiB"],
            *["--state-dir", str(place.directory / "state")],
        ]
    ]


def kvtls_fleet(port: int, place: Workplace, servers: int = 1) -> list[list[str]]:
    """The service in front of memcached servers."""
    backs = [free_port() for _ in range(servers)]
    names = ",".join(f"127.0.0.1:{back}" for back in backs)
    (command,) = kvtls(port, place)
    return [
        *(memcached_plain(back) for back in backs),
        [*command, "--store", f"memcached://{names}", "--max-value", "2MiB"],
    ]


def stunnel_twemproxy(port: int, place: Workplace) -> list[list[str]]:
    """stunnel in front of twemproxy in front of memcached."""
    back, middle = free_port(), free_port()
    text = f"""pool:
  listen: 127.0.0.1:{middle}
  hash: md5
  distribution: ketama
  server_connections: 2
  servers:
   - 127.0.0.1:{back}:1
"""
    path = place.configuration("nutcracker.yml", text)
    outside = f"""foreground = yes
pid =
syslog = no
debug = 3
[kv]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{middle}
cert = {place.chain}
key = {place.key}
"""
    return [
        memcached_plain(back),
        ["nutcracker", "-c", path, "-s", str(free_port()), "-a", "127.0.0.1"],
        ["stunnel", place.configuration("stunnel.conf", outside)],
    ]


def stock_twisted(port: int, place: Workplace) -> list[list[str]]:
    """A minimal KV server on Twisted's own TLS."""
    return [
        [
            sys.executable,
            "-m",
            "benchmarks.stock_server",
            str(port),
            str(place.chain),
            str(place.key),
        ]
    ]


def nginx(port: int, place: Workplace) -> list[list[str]]:
    """nginx stream in front of memcached."""
    back = free_port()
    text = f"""daemon off; worker_processes 1; pid {place.directory}/nginx.pid;
error_log {place.directory}/nginx.log; worker_rlimit_nofile 30000;
load_module modules/ngx_stream_module.so;
events {{ worker_connections 25000; }}
stream {{ server {{ listen 127.0.0.1:{port} ssl backlog=1024; proxy_pass 127.0.0.1:{back};
 ssl_certificate {place.chain}; ssl_certificate_key {place.key};
 ssl_protocols TLSv1.2 TLSv1.3; }} }}
"""
    return [memcached_plain(back), ["nginx", "-c", place.configuration("nginx.conf", text)]]


def haproxy(port: int, place: Workplace) -> list[list[str]]:
    """HAProxy in front of memcached."""
    back = free_port()
    text = f"""global
 maxconn {FRONTED_CONNECTIONS}
 nbthread 1
defaults
 mode tcp
 timeout connect 5s
 timeout client 60s
 timeout server 60s
frontend kv
 bind 127.0.0.1:{port} ssl crt {place.both} backlog 1024
 default_backend mc
backend mc
 server mc 127.0.0.1:{back}
"""
    return [memcached_plain(back), ["haproxy", "-f", place.configuration("haproxy.cfg", text)]]


def hitch(port: int, place: Workplace) -> list[list[str]]:
    """hitch in front of memcached."""
    back = free_port()
    text = f"""frontend = "[127.0.0.1]:{port}"
backend = "[127.0.0.1]:{back}"
pem-file = "{place.both}"
workers = 1
user = "nobody"
daemon = off
"""
    place.directory.chmod(0o755)
    return [memcached_plain(back), ["hitch", f"--config={place.configuration('hitch.conf', text)}"]]


def stunnel(port: int, place: Workplace) -> list[list[str]]:
    """stunnel in front of memcached."""
    back = free_port()
    text = f"""foreground = yes
pid =
syslog = no
debug = 3
[kv]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{back}
cert = {place.chain}
key = {place.key}
"""
    return [memcached_plain(back), ["stunnel", place.configuration("stunnel.conf", text)]]


SERVERS: dict[str, Callable[[int, Workplace], list[list[str]]]] = {
    "memcached TLS -t 1": memcached_tls,
    "memcached TLS": partial(memcached_tls, threads=MEMCACHED_THREADS),
    "kvtls": kvtls,
    "stock Twisted": stock_twisted,
    "nginx + memcached": nginx,
    "haproxy + memcached": haproxy,
    "hitch + memcached": hitch,
    "stunnel + memcached": stunnel,
    "stunnel + twemproxy": stunnel_twemproxy,
    "kvtls + memcached": kvtls_fleet,
    "kvtls + 3 memcached": partial(kvtls_fleet, servers=3),
}
"""Name to a function (port, workplace) that returns the commands to start, backend first."""


@dataclass(slots=True)
class Running:
    """A started server."""

    name: str
    port: int
    processes: list[subprocess.Popen[bytes]]

    def pids(self) -> Iterator[int]:
        """Yield all its processes, the children that it forked included."""
        todo = [process.pid for process in self.processes]
        while todo:
            pid = todo.pop()
            yield pid
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                # stunnel's threads come and go with their connections.
                with suppress(FileNotFoundError, ProcessLookupError):
                    todo += [int(child) for child in task.read_text(encoding="ascii").split()]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        total = 0
        for pid in self.pids():
            fields = (
                Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            )
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def resident_kib(self) -> int:
        """Resident memory of all its processes."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total


def installed(commands: list[list[str]]) -> bool:
    """Tell whether every program of the commands is there."""
    return all(shutil.which(command[0], path=SEARCH_PATH) for command in commands)


@contextmanager
def start(name: str, directory: Path, certificate_size: int = 0) -> Iterator[Running | None]:
    """Start a server by name, wait until it accepts, end it afterwards; None: not installed."""
    place, port = Workplace(directory, certificate_size), free_port()
    commands = SERVERS[name](port, place)
    if not installed(commands):
        yield None
        return
    with (directory / "output").open("wb") as output:
        environment = {**os.environ, "PATH": SEARCH_PATH}
        processes = [
            subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=environment,
                preexec_fn=partial(os.sched_setaffinity, 0, SERVER_CPUS),
            )
            for command in commands
        ]
        try:
            _wait_for(port, processes, directory)
            yield Running(name, port, processes)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_for(port: int, processes: list[subprocess.Popen[bytes]], directory: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.05)
    raise RuntimeError((directory / "output").read_text(encoding="utf-8", errors="replace"))
