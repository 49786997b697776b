"""twemproxy, in front of memcached servers."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path

from tests.integration.memcached import wait_for_port
from tests.integration.peers import require
from tests.integration.service import PATIENCE
from tests.ports import free_port

__all__ = ["Nutcracker"]


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
        self.process.wait(PATIENCE)
        self._directory.cleanup()
