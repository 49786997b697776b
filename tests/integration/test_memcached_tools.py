"""libmemcached's conformance test and tools, through stunnel."""

from __future__ import annotations

import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.peers import require
from tests.integration.service import MODES, KvtlsProcess
from tests.integration.stunnel import Stunnel

TOOLS = "libmemcached-tools"


def run(program: str, *arguments: str) -> str:
    """Run one of the tools and return what it printed, errors included."""
    done = subprocess.run(
        [require(program, TOOLS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{program} {arguments} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


class MemccapableTests(SynchronousTestCase):
    """Every test of memccapable passes, in both modes."""

    def test_binary_and_text(self) -> None:
        """Both protocols: no line says FAIL, and there is one pass for each test."""
        for options in MODES:
            with KvtlsProcess(*options) as service, Stunnel(service) as tunnel:
                self.both_protocols(tunnel.port)

    def both_protocols(self, port: int) -> None:
        for protocol, tests in (("-b", 27), ("-a", 20)):
            report = run("memccapable", "-h", "127.0.0.1", "-p", str(port), protocol)
            self.assertNotIn("[FAIL]", report)
            self.assertGreaterEqual(report.count("[pass]"), tests, report)


class ToolTests(SynchronousTestCase):
    """memccp, memccat, memcexist, memctouch, memcrm, memcstat, memcping, memcflush, memcdump."""

    def test_tools(self) -> None:
        """A file goes in and comes out again, binary and text."""
        for options in MODES:
            with KvtlsProcess(*options) as service, Stunnel(service) as tunnel:
                self.tools(tunnel.port)

    def tools(self, port: int) -> None:
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
        run("memcdump", server)
        self.assertIn("from a file", _copied(server, path))


def _copied(server: str, path: Path) -> str:
    run("memccp", server, str(path))
    return run("memccat", server, "--binary", path.name)
