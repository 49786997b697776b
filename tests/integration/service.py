"""``twistd kvtls`` as a child process, as an operator runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from unittest import SkipTest

from tests.integration.forking import Forked, fork_kvtls

__all__ = [
    "ENGINES",
    "FAILOVER_ROUNDS",
    "KILL_ROUNDS",
    "MODES",
    "PATIENCE",
    "STORE",
    "STORES",
    "KvtlsProcess",
    "not_on",
    "run_each",
    "run_kvtls",
    "succeeds",
]

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]

MODES = (("--mode", "memcached"), ("--mode", "couchbase", "--allow-flush"))
"""Options of each mode, made alike where clients would notice a default."""

PATIENCE = 60.0
"""Seconds that a test waits for what must happen: far more than the busiest machine needs.

No test judges speed, that is the benchmarks' business; what never comes is a failure."""

KILL_ROUNDS = int(os.environ.get("KVPROTO_KILL_ROUNDS", "2"))
"""How often a test kills, stops or restarts something; 15 shows more than 2 and takes minutes."""

FAILOVER_ROUNDS = int(os.environ.get("KVPROTO_KILL_ROUNDS", "1"))
"""The same where each takes some seconds."""

STORE = os.environ.get("KVPROTO_STORE", "memory")
"""Where services of tests that name no store keep documents: one of `STORES`."""

ENGINES = ("redis", "redis+cluster")

STORES = ("memory", "file", *ENGINES)

READY = re.compile(r"kvtls ready\b.*")
ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-f:]+)\]|(?P<v4>[0-9.]+)):(?P<port>\d+)")


def not_on(stores: Sequence[str], why: str) -> None:
    """Skip a test of what some stores do not have, where `STORE` is one of them."""
    if STORE in stores:
        raise SkipTest(f"{STORE}: {why}")


def run_kvtls(*options: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run ``twistd kvtls`` to its end, for option errors and ``--check``."""
    command = [*TWISTD, "kvtls", *options]
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        pid = fork_kvtls(Path(directory), command[3:], stdout.fileno(), stderr.fileno())
        process: subprocess.Popen[bytes] | Forked
        if pid is None:
            process = subprocess.Popen(command, cwd=directory, stdout=stdout, stderr=stderr)
        else:
            process = Forked(pid)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, status, stdout.read(), stderr.read())


EACH = """
import json, os, sys
import kvproto.service, kvproto.tap
from twisted.scripts.twistd import run
for number, options in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        sys.argv = ["twistd", "-n", "--pidfile=", "kvtls", *options]
        for end, name in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), end)
        run()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_each(
    command_lines: Sequence[Sequence[str]], timeout: float = PATIENCE
) -> list[subprocess.CompletedProcess[str]]:
    """Run ``twistd kvtls`` to its end with each of several command lines.

    As `run_kvtls` does, but what each of them imports is imported once.
    """
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", EACH],
            cwd=directory,
            input=json.dumps(command_lines),
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout,
            check=True,
        )
        return [
            subprocess.CompletedProcess(
                options,
                int(status),
                *(Path(directory, f"{number}.{name}").read_text() for name in ("out", "err")),
            )
            for number, (options, status) in enumerate(
                zip(command_lines, done.stdout.split(), strict=True)
            )
        ]


class KvtlsProcess:
    """A running service; a context manager that leaves nothing behind.

    Args:
        options: Options of ``kvtls``.  ``--listen`` defaults to a free port on
            127.0.0.1, ``--state-dir`` to a temporary directory.
        before: A command that runs the service in its place, as ``env`` does.
        pass_fds: File descriptors that it inherits.

    Attributes:
        port: TCP port of the first listener.
        addresses: (host, port) of each TCP listener, in order.
        state_dir: The state directory.
        output: Everything it has printed so far.
    """

    def __init__(
        self, *options: str, before: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="kvtls-test-"))
        self.state_dir = self._directory / "state"
        self.addresses: list[tuple[str, int]] = []
        self.output = ""
        self._lines_seen = threading.Condition()
        arguments = list(options)
        if "--listen" not in arguments:
            arguments += ["--listen", "tcp:0:interface=127.0.0.1"]
        if "--state-dir" not in arguments:
            arguments += ["--state-dir", str(self.state_dir)]
        if "--store" not in arguments and STORE != "memory":
            arguments += ["--store", self._empty_store()]
        self.process = self._start(before, [*TWISTD, "kvtls", *arguments], pass_fds)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()
        try:
            ready = self.wait_for_line(READY)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for found in ADDRESS.finditer(ready):
            self.addresses.append((found["v6"] or found["v4"], int(found["port"])))

    def _start(
        self, before: Sequence[str], command: Sequence[str], pass_fds: Sequence[int]
    ) -> subprocess.Popen[str] | Forked:
        if not before and not pass_fds:
            output, theirs = os.pipe()
            try:
                pid = fork_kvtls(self._directory, command[3:], theirs, theirs)
            finally:
                os.close(theirs)
            if pid is not None:
                return Forked(pid, open(output))
            os.close(output)
        return subprocess.Popen(
            [*before, *command],
            cwd=self._directory,
            pass_fds=pass_fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _empty_store(self) -> str:
        """Return what ``--store`` says for `STORE`; an engine is shared and emptied."""
        if STORE == "file":
            return f"file:{self._directory}/data"
        from tests.integration.engines import shared_cluster, shared_server

        engine: Any = {"redis": shared_server, "redis+cluster": shared_cluster}[STORE]()
        for server in getattr(engine, "servers", [engine]):
            server.cli("flushall")
        return str(engine.url)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._lines_seen:
                self.output += line
                self._lines_seen.notify_all()
        with self._lines_seen:
            self._lines_seen.notify_all()

    def wait_for_line(self, pattern: re.Pattern[str], seconds: float = PATIENCE) -> str:
        """Return the first matching part of the output, waiting for it if it is not there yet.

        Raises:
            AssertionError: It did not come in time, or the process ended.
        """
        with self._lines_seen:
            found = self._lines_seen.wait_for(
                lambda: pattern.search(self.output) or not self._reader.is_alive(), seconds
            )
            match = pattern.search(self.output)
        assert match is not None, f"no {pattern.pattern!r} ({found}) in:\n{self.output}"
        return match[0]

    @property
    def port(self) -> int:
        """TCP port of the first listener."""
        return self.addresses[0][1]

    @property
    def ca_path(self) -> Path:
        """The development CA."""
        return self.state_dir / "development" / "ca.pem"

    def client_context(self) -> ssl.SSLContext:
        """A verifying client context that trusts the development CA."""
        return ssl.create_default_context(cafile=str(self.ca_path))

    def connect(
        self, context: ssl.SSLContext | None = None, timeout: float = PATIENCE
    ) -> ssl.SSLSocket:
        """Return a verified TLS connection to the first listener."""
        host, port = self.addresses[0]
        plain = socket.create_connection((host, port), timeout)
        try:
            return (context or self.client_context()).wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def terminate(self, timeout: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def resident_kib(self) -> int:
        """Resident memory of the process, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1])

    def open_files(self) -> int:
        """How many file descriptors the process holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def __enter__(self) -> KvtlsProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def succeeds(command: Sequence[str | Path], within: float = PATIENCE, **options: Any) -> str:
    """Run a command that has to succeed; return its output.

    Args:
        command: It.
        within: Seconds that it may take.
        options: Of ``subprocess.run``: ``cwd``, ``env``.

    Raises:
        AssertionError: It did not succeed; the text is all that it has written.
    """
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=within, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
