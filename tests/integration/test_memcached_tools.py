"""libmemcached's conformance test and tools, through stunnel.

What passes on the embedded store passes in front of three real memcached as well.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.memcached import Memcached
from tests.integration.peers import require
from tests.integration.service import ENGINES, MODES, PATIENCE, STORE, KvtlsProcess, not_on
from tests.integration.stunnel import Stunnel
from tests.integration.wire_client import read_exactly

TOOLS = "libmemcached-tools"
MEMCACHED_TOOL = Path("/usr/share/memcached/scripts/memcached-tool")


def run(program: str, *arguments: str) -> str:
    """Run one of the tools and return what it printed, errors included."""
    done = subprocess.run(
        [require(program, TOOLS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{program} {arguments} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


class ToolCase(SynchronousTestCase):
    """A service with a store of its own, or a fleet behind it."""

    def in_front_of_a_fleet(self, *arguments: str) -> tuple[str, ...]:
        """Run three servers; return the options of a service in front of them."""
        servers = [Memcached(*arguments) for _ in range(3)]
        for server in servers:
            self.addCleanup(server.kill)
        names = ",".join(server.name for server in servers)
        return ("--mode", "memcached", "--store", f"memcached://{names}")


class MemccapableTests(ToolCase):
    """Every test of memccapable passes, in both modes, and through a fleet."""

    def test_binary_and_text(self) -> None:
        """Both protocols: no line says FAIL, and there is one pass for each test."""
        for options in MODES:
            with KvtlsProcess(*options) as service, Stunnel(service) as tunnel:
                self.both_protocols(tunnel.port)

    def test_fleet(self) -> None:
        """The same in front of three servers, whichever protocol they speak."""
        for arguments in ((), ("-B", "ascii")):
            with (
                KvtlsProcess(*self.in_front_of_a_fleet(*arguments)) as service,
                Stunnel(service) as tunnel,
            ):
                self.both_protocols(tunnel.port)

    def both_protocols(self, port: int) -> None:
        for protocol, tests in (("-b", 27), ("-a", 20)):
            report = run("memccapable", "-h", "127.0.0.1", "-p", str(port), protocol)
            self.assertNotIn("[FAIL]", report)
            self.assertGreaterEqual(report.count("[pass]"), tests, report)


class ToolTests(ToolCase):
    """All that does something with documents or servers."""

    def test_tools(self) -> None:
        """A file goes in and comes out again, binary and text."""
        for options in MODES:
            with KvtlsProcess(*options) as service, Stunnel(service) as tunnel:
                name = self.tools(tunnel.port)
                if STORE not in ENGINES:  # an engine does not list its keys to clients
                    listed = run("memcdump", f"--servers=127.0.0.1:{tunnel.port}")
                    self.assertIn(name, listed.split())

    def test_fleet(self) -> None:
        """The same in front of three servers, but for memcdump: nobody lists a fleet's keys."""
        for arguments in ((), ("-B", "ascii")):
            with (
                KvtlsProcess(*self.in_front_of_a_fleet(*arguments)) as service,
                Stunnel(service) as tunnel,
            ):
                self.tools(tunnel.port)

    def tools(self, port: int) -> str:
        """Run the tools; return the name of a document that is left."""
        server = f"--servers=127.0.0.1:{port}"
        path = Path(self.mktemp())
        path.write_text("from a file\n", encoding="ascii")
        for options in ((server, "--binary"), (server,)):
            run("memccp", *options, str(path))
            self.assertIn("from a file", run("memccat", *options, path.name))
            run("memcexist", *options, path.name)
            run("memctouch", *options, "--expire=100", path.name)
            run("memcping", server)
            self.assertIn("pid", run("memcstat", *options))
            run("memcrm", *options, path.name)
            run("memcflush", *options)
            for test in ("set", "get", "mget"):
                few = ("--concurrency=2", "--initial-load=100", "--execute-number=100")
                run("memcslap", *options, f"--test={test}", *few)
        self.assertIn("from a file", _copied(server, path))
        return path.name


class MemcachedToolTests(SynchronousTestCase):
    """memcached-tool, as Debian's memcached brings it: display, stats, settings, sizes, dump."""

    def test_memcached_tool(self) -> None:
        """It shows what is there, and a dump can be loaded again."""
        not_on(ENGINES, "an engine does not list its keys to clients")
        require("memcached", "memcached")
        require("perl", "perl")
        if not MEMCACHED_TOOL.exists():
            raise SkipTest("memcached-tool is not there (Debian package memcached)")
        where = str(Path(self.enterContext(tempfile.TemporaryDirectory())) / "plain")
        with KvtlsProcess("--mode", "memcached", "--plain", f"unix:{where}"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(where)
                client.sendall(
                    b"set small 5 0 3\r\nabc\r\nset large 0 0 5000\r\n%b\r\n" % bytes(5000)
                )
                self.assertEqual(read_exactly(client, 16), b"STORED\r\nSTORED\r\n")
            display = self.tool(where, "display")
            rows = [line.split() for line in display.splitlines()[1:]]
            self.assertEqual([(row[0], row[1], row[4]) for row in rows if row], [
                ("1", "96B", "1"), ("19", "5.5K", "1"),
            ])  # fmt: skip
            stats = dict(line.split() for line in self.tool(where, "stats").splitlines()[2:])
            self.assertEqual((stats["curr_items"], stats["cmd_set"]), ("2", "2"))
            self.assertIn("maxbytes", self.tool(where, "settings"))
            self.assertIn("96", self.tool(where, "sizes"))
            dump = self.tool(where, "dump", text=False)
            self.assertIn(b"add small 5 0 3\r\nabc\r\n", dump)
            self.assertIn(b"add large 0 0 5000\r\n", dump)
        with (
            KvtlsProcess("--mode", "memcached", "--plain", f"unix:{where}"),
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(where)
            client.sendall(dump)
            self.assertEqual(read_exactly(client, 16), b"STORED\r\nSTORED\r\n")
            client.sendall(b"get small\r\n")
            self.assertEqual(client.recv(100), b"VALUE small 5 3\r\nabc\r\nEND\r\n")

    def tool(self, *arguments: str, text: bool = True) -> Any:
        done = subprocess.run(
            [require("perl", "perl"), str(MEMCACHED_TOOL), *arguments],
            capture_output=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return done.stdout.decode() if text else done.stdout


def _copied(server: str, path: Path) -> str:
    run("memccp", server, str(path))
    return run("memccat", server, "--binary", path.name)
