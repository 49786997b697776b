"""``watch``: the same requests to memcached and to our service, and what both tell of them."""

from __future__ import annotations

import re
import socket
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.memcached import Memcached
from tests.integration.service import PATIENCE, KvtlsProcess

REQUESTS = (
    b"get k",
    b"set k 0 0 3;abc",
    b"get k k2",
    b"gets k",
    b"gat 100 k",
    b"touch k 50",
    b"add k 0 0 1;1",
    b"replace k 0 100 1;5",
    b"append k 0 0 1;1",
    b"prepend nk 0 0 1;1",
    b"incr k 1",
    b"incr k 100000",
    b"incr nk 1",
    b"cas k 0 0 1 1;1",
    b"cas nk 0 0 1 1;1",
    b"delete k",
    b"delete k",
    b"ms k 2;ab",
    b"mg k v",
    b"mg nk v",
    b"ma k",
    b"md k I",
    b"md k",
    b"md k",
    b"me k",
    b"ms k 1 MA;1",
    b"ms kk 1 ME;1",
    b"ms kk 1 MR;2",
    b"set k%/\xc3 0 1 1;1",
    b"set large 0 0 20000;" + bytes(20000),
    b"get large",
    b"get foo bar",
    b"bogus",
)

CRAMPED = b"ms kk 1 MA;1"


def _lines(port: int | str) -> list[str]:
    """Let a client ask and another one watch; return what that was told, without its numbers."""
    with _connected(port) as watcher, _connected(port) as client:
        watcher.sendall(b"watch fetchers mutations\r\n")
        assert watcher.recv(4) == b"OK\r\n"
        reader = client.makefile("rb")
        for request in (*REQUESTS, CRAMPED):
            client.sendall(request.replace(b";", b"\r\n") + b"\r\nmn\r\n")
            while reader.readline() != b"MN\r\n":
                pass
        client.sendall(b"get the-end\r\n")
        told = watcher.makefile("rb")
        found: list[str] = []
        while not any("key=the-end" in line for line in found):
            found.append(told.readline().decode())
    return [_bare(line) for line in found]


def _connected(port: int | str) -> socket.socket:
    if isinstance(port, int):
        return socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(port)
    return connection


def _bare(line: str) -> str:
    found, number = re.subn(r"^ts=\d+\.\d+ gid=\d+ ", "", line)
    assert number == 1, line
    return re.sub(r"(cfd=)\d+|(ttl=)(?:99|100)\b", r"\1\2N", found)


class WatchTests(SynchronousTestCase):
    """Lines are the same, one after the other."""

    def test_lines(self) -> None:
        """Of every request that is told of."""
        memcached = Memcached()
        self.addCleanup(memcached.kill)
        theirs = _lines(memcached.port)
        path = str(Path(self.enterContext(tempfile.TemporaryDirectory())) / "plain")
        with KvtlsProcess("--mode", "memcached", "--plain", f"unix:{path}"):
            self.assertEqual(_lines(path), theirs)
        self.assertGreater(len(theirs), 40)
