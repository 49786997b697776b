"""Real memcached servers, and twemproxy in front of them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.integration.peers import require

__all__ = ["Memcached", "Nutcracker", "free_port", "wait_for_port"]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens; fail when the process ends before."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        if process.poll() is not None:
            raise AssertionError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on port {port}")


class Memcached:
    """A memcached that runs until it is killed.

    Args:
        port: Where it listens; a free one when 0.
        arguments: Further arguments.
    """

    def __init__(self, port: int = 0, *arguments: str) -> None:
        self.port = port or free_port()
        self._command = [
            require("memcached", "memcached"),
            *("-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-m", "64", "-u", "nobody"),
            *arguments,
        ]
        self.start()

    @property
    def name(self) -> str:
        """``HOST:PORT``."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run, with nothing stored."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port, self.process)

    def freeze(self) -> None:
        """Stop it in the middle of everything."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(10)

    def ask(self, command: bytes) -> bytes:
        """Send one text command; return its answer, up to its last line."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
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


class Nutcracker:
    """twemproxy in front of some servers."""

    def __init__(self, servers: list[str], distribution: str, hash_name: str, tag: str) -> None:
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="kvproto-nutcracker-")
        path = Path(self._directory.name) / "nutcracker.yml"
        lines = "".join(f"   - {server}\n" for server in servers)
        tags = f'  hash_tag: "{tag}"\n' if tag else ""
        path.write_text(
            f"pool:\n  listen: 127.0.0.1:{self.port}\n  hash: {hash_name}\n{tags}"
            f"  distribution: {distribution}\n  timeout: 5000\n  servers:\n{lines}"
        )
        self.process = subprocess.Popen(
            [
                require("nutcracker", "nutcracker"),
                *("-c", str(path), "-s", str(free_port()), "-a", "127.0.0.1"),
                *("-o", str(Path(self._directory.name) / "log")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self.process)

    def store(self, keys: list[bytes]) -> None:
        """Store each key."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            stream = connection.makefile("rb")
            connection.sendall(b"".join(b"set %b 0 0 1\r\nx\r\n" % key for key in keys))
            for _ in keys:
                assert stream.readline() == b"STORED\r\n"

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(10)
        self._directory.cleanup()
