"""memcached as a peer of tests: Debian's, ended with the test."""

from __future__ import annotations

import contextlib
import getpass
import signal
import socket
import subprocess
import time
from collections.abc import Callable

from tests.integration.peers import freeze, require
from tests.integration.service import PATIENCE
from tests.ports import free_port

__all__ = ["Memcached", "wait_for_port"]


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens; fail when the process ends before."""
    _wait(lambda: socket.create_connection(("127.0.0.1", port), 1), process)


def _wait(connect: Callable[[], socket.socket], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connect().close()
            return
        if process.poll() is not None:
            raise AssertionError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.02)
    raise AssertionError(f"{process.args!r} does not listen")


class Memcached:
    """A memcached on 127.0.0.1 that runs until it is killed, and again on the same port.

    Args:
        options: Of ``memcached``, e.g. ``"-m", "64"``.
        port: Where it listens; a free one when 0.
        path: The Unix socket where it listens in place of a port.
        program: Another build of it; Debian's by default.

    Raises:
        SkipTest: It is not installed.
    """

    def __init__(self, *options: str, port: int = 0, path: str = "", program: str = "") -> None:
        self._path = path
        self.port = 0 if path else port or free_port()
        self._program = program or require("memcached", "memcached")
        where = ("-s", path) if path else ("-l", "127.0.0.1", "-p", str(self.port), "-U", "0")
        # As root it asks for a name.
        self._command = [self._program, *where, "-u", getpass.getuser(), *options]
        self.start()

    @property
    def name(self) -> str:
        """``HOST:PORT``, or the path of its socket."""
        return self._path or f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """Return a connection to it."""
        if not self._path:
            return socket.create_connection(("127.0.0.1", self.port), 5)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(PATIENCE)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def start(self) -> None:
        """Run, with nothing stored."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait(self.connect, self.process)

    def version(self) -> str:
        """Return what ``memcached --version`` prints, e.g. ``"memcached 1.6.18"``."""
        done = subprocess.run(
            [self._program, "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return done.stdout.strip()

    def freeze(self) -> None:
        """Stop it in the middle of everything."""
        freeze(self.process)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def ask(self, command: bytes) -> bytes:
        """Send one text command; return its answer, up to its last line."""
        with self.connect() as connection:
            connection.sendall(command + b"\r\n")
            answer = b""
            while not answer.endswith((b"END\r\n", b"ERROR\r\n", b"OK\r\n", b"STORED\r\n")):
                data = connection.recv(65536)
                if not data:
                    break
                answer += data
            return answer

    def has(self, key: bytes) -> bool:
        """Return whether it has a key."""
        return self.ask(b"get " + key).startswith(b"VALUE")

    def stat(self, name: str) -> int:
        """Return one of its statistics."""
        for line in self.ask(b"stats").splitlines():
            words = line.split()
            if words[1:2] == [name.encode()]:
                return int(words[2])
        raise AssertionError(f"no statistic {name}")
