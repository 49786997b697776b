"""Redis servers and clusters that the integration tests start for themselves."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from unittest import SkipTest

from tests.integration.live import eventually
from tests.integration.peers import freeze, require
from tests.integration.service import PATIENCE
from tests.ports import free_port

__all__ = [
    "PROGRAM",
    "RedisCluster",
    "RedisServer",
    "shared_cluster",
    "shared_server",
]

PROGRAM = os.environ.get("KVPROTO_ENGINE", "redis-server")
"""The server that is started: a name, or a path where another version or a Valkey is."""

PACKAGE = "redis-server"
START_SECONDS = 20.0
PRIMARIES = 3


class RedisServer:
    """A server; a context manager that leaves nothing behind.

    Args:
        options: Words for its command line.
        port: Where it listens; a free port when None.

    Attributes:
        port: Its port.
        path: Its Unix socket.
        directory: Its own.
    """

    def __init__(self, *options: str, port: int | None = None) -> None:
        self._program = require(PROGRAM, PACKAGE)
        self._options = options
        self.port = free_port() if port is None else port
        self.directory = Path(tempfile.mkdtemp(prefix="kvtls-redis-"))
        self.path = str(self.directory / "socket")
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def url(self) -> str:
        """As ``--store`` takes it."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        """Start it, again if need be, and wait until it listens.

        Args:
            options: More words for its command line.
        """
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [
                self._program,
                "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path,
                "--save", "", "--appendonly", "no", "--dir", str(self.directory),
                *self._options, *options,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.path) == 0:
                    return
                if time.monotonic() > deadline or self.process.poll() is not None:
                    said = (self.directory / "log").read_text("utf-8", "replace")
                    self.close()
                    if "KVPROTO_ENGINE" in os.environ and re.search(
                        "Bad directive|TLS support", said
                    ):
                        raise SkipTest(f"{PROGRAM} lacks an option: {said[-200:]}")
                    raise AssertionError(f"{PROGRAM} does not start: {said[-500:]}")
                time.sleep(0.02)

    def freeze(self) -> None:
        """Stop it in the middle of everything."""
        freeze(self.process)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, as kill -9 does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it and remove what it has left."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def cli(self, *words: str) -> str:
        """Ask it something by ``redis-cli``; return what that prints."""
        return cli("-s", self.path, *words)

    def replication(self) -> str:
        """Return what it says of replication; nothing when it is not there."""
        return self.cli("info", "replication")

    def values(self, names: Sequence[str], start: int) -> list[str]:
        """Return what it has under names, from a byte on; a replica is asked for its own copy."""
        asked = ["readonly", *(f"getrange {name} {start} -1" for name in names)]
        return cli("-s", self.path, lines=asked).splitlines()[1:]

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def cli(*words: str, lines: Sequence[str] = (), timeout: float = 60) -> str:
    """Run ``redis-cli``, with lines for it to read; return what it prints."""
    done = subprocess.run(
        [require("redis-cli", "redis-tools"), *words],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.stdout + done.stderr


@cache
def shared_server() -> RedisServer:
    """Return a server that many tests use, each in buckets of its own; it ends with us."""
    server = RedisServer()
    atexit.register(server.close)
    return server


@cache
def shared_cluster() -> RedisCluster:
    """Return a cluster of three primaries and three replicas that many tests use."""
    cluster = RedisCluster()
    atexit.register(cluster.close)
    return cluster


class RedisCluster:
    """Three primaries with a replica each; a context manager.

    Args:
        options: Words for each server's command line.
        replicas: For each primary.
        files: Where ``ca.pem``, ``server.pem`` and ``server.key`` are; then all of it is TLS.

    Attributes:
        servers: All servers, the primaries first.
    """

    def __init__(self, *options: str, replicas: int = 1, files: Path | None = None) -> None:
        self.servers: list[RedisServer] = []
        self.scheme = "redis+cluster" if files is None else "rediss+cluster"
        by_tls: list[str] = []
        if files is not None:
            ca, chain, key = (str(files / name) for name in ("ca.pem", "server.pem", "server.key"))
            by_tls = ["--tls", "--cacert", ca, "--cert", chain, "--key", key]
            options += (
                "--tls-ca-cert-file", ca, "--tls-cert-file", chain, "--tls-key-file", key,
                "--tls-cluster", "yes", "--tls-replication", "yes", "--tls-auth-clients", "yes",
            )  # fmt: skip
        words = (
            "--cluster-enabled", "yes", "--cluster-node-timeout", "1500",
            "--cluster-config-file", "nodes.conf", "--repl-diskless-sync-delay", "0", *options,
        )  # fmt: skip
        try:
            for _ in range(PRIMARIES * (1 + replicas)):
                # Its bus listens 10000 above.
                port = free_port(10_000)
                listens = ("--port", "0", "--tls-port", str(port)) if by_tls else ()
                self.servers.append(RedisServer(*words, *listens, port=port))
            said = cli(
                *by_tls, "--cluster", "create",
                *(f"127.0.0.1:{server.port}" for server in self.servers),
                "--cluster-replicas", str(replicas), "--cluster-yes",
            )  # fmt: skip
            assert "All 16384 slots covered" in said, said
            self.wait_until_well()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """As ``--store`` takes it."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])
        return f"{self.scheme}://{hosts}"

    def wait_until_well(self) -> None:
        """Wait until every server knows all slots to be served, and replicas follow."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            alive = [server for server in self.servers if server.process.poll() is None]
            infos = [server.cli("cluster", "info") for server in alive]
            followers = [server.cli("info", "replication") for server in alive]
            primaries = sum("role:master" in text for text in followers)
            follow = sum("master_link_status:up" in text for text in followers)
            # One that was started again takes itself for a primary until it has heard of its end.
            if (
                all("cluster_state:ok" in info for info in infos)
                and primaries == PRIMARIES
                and primaries + follow == len(alive)
            ):
                return
            time.sleep(0.1)
        raise AssertionError("the cluster does not come up")

    def wait_for_replicas(self) -> None:
        """Wait until replicas have told that they have all that is stored now.

        Replication is asynchronous: what is younger goes with a primary that is killed.
        """
        for primary in self.primaries():
            found = re.search(r"master_repl_offset:(\d+)", primary.replication())
            assert found is not None
            eventually(partial(self._replicas_have, primary, int(found[1])), "replicas follow")

    @staticmethod
    def _replicas_have(primary: RedisServer, wanted: int) -> bool:
        told = re.findall(r"^slave\d+:.*\boffset=(\d+)", primary.replication(), re.MULTILINE)
        return bool(told) and all(int(offset) >= wanted for offset in told)

    def server_of(self, key: str) -> RedisServer:
        """Return the server that has the slot of a key."""
        moved = self.servers[0].cli("cluster", "keyslot", key).strip()
        return self.server_of_slot(int(moved))

    def primaries(self) -> list[RedisServer]:
        """Return the servers that have slots."""
        return [server for server in self.servers if "role:master" in server.replication()]

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return the first replica of a server."""
        for server in self.servers:
            if server.process.poll() is None and re.search(
                rf"role:slave.*master_port:{primary.port}\b", server.replication(), re.DOTALL
            ):
                return server
        raise AssertionError(f"{primary.port} has no replica")

    def allow_failover(self, allowed: bool) -> None:
        """Let replicas take over from now on, or not."""
        for server in self.servers:
            if server.process.poll() is None:
                server.cli(
                    "config", "set", "cluster-replica-no-failover", "no" if allowed else "yes"
                )

    def server_of_slot(self, slot: int) -> RedisServer:
        """Return the server that has a slot."""
        for server in self.servers:
            if server.process.poll() is not None:
                continue
            for line in server.cli("cluster", "nodes").splitlines():
                words = line.split()
                if "myself" not in words[2] or "master" not in words[2]:
                    continue
                for word in words[8:]:
                    first, _, last = word.partition("-")
                    if first.isdigit() and int(first) <= slot <= int(last or first):
                        return server
        raise AssertionError(f"nobody has slot {slot}")

    def close(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.close()

    def __enter__(self) -> RedisCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
