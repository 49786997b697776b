"""``kvtls top``: in a pipe, and on a terminal that somebody types at and resizes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.live import kvtls, noop
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet

LEAVES_SCREEN = "\x1b[?1049l"
"""What xterm is told at the end: back to what was there before (terminfo: rmcup)."""

NOOP = 0x0A
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "control.md"


def peer_of(connection: Any) -> str:
    """Return a connection as the service calls it."""
    host, port = connection.getsockname()
    return f"{host}:{port}"


class Terminal:
    """A terminal at which ``kvtls`` runs."""

    def __init__(self, service: KvtlsProcess, *arguments: str, term: str = "xterm") -> None:
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self.shown = ""
        self.process = subprocess.Popen(
            [*_COMMAND, "--state-dir", str(service.state_dir), *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": term, "COLUMNS": "", "LINES": ""},
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509
        )
        os.close(theirs)

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.ours)

    def until(self, words: str) -> None:
        """Wait until something is shown, anew."""
        deadline = time.monotonic() + PATIENCE
        seen = len(self.shown)
        while words not in self.shown[seen:]:
            assert time.monotonic() < deadline, (words, self.shown[-2000:])
            self._read()

    def _read(self) -> bool:
        if not select.select([self.ours], [], [], 0.05)[0]:
            return True
        try:
            self.shown += os.read(self.ours, 65536).decode(errors="replace")
        except OSError:  # the other end was closed
            return False
        return True

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.ours, keys.encode())

    def resize(self, lines: int, columns: int) -> None:
        """Change the window, of which the kernel tells the program."""
        termios.tcsetwinsize(self.ours, (lines, columns))

    def status(self) -> int:
        """Return the exit status, once everything that was shown is read."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None or self._more():
            assert time.monotonic() < deadline, self.shown[-2000:]
            if not self._read():
                break
        return self.process.wait(PATIENCE)

    def _more(self) -> bool:
        return bool(select.select([self.ours], [], [], 0)[0])


def _take_terminal() -> None:
    """Let Control-C reach the program, as a login shell does."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # What a shell without job control starts in the background ignores it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_COMMAND = [sys.executable, "-m", "kvproto.cli"]


class TopTests(SynchronousTestCase):
    """A service with one client that talks much, and one that is silent."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.unix = self.directory / "plain"
        self.service = KvtlsProcess("--plain", f"unix:{self.unix}")
        self.addCleanup(self.service.__exit__, None, None, None)
        self.silent = self.service.connect()
        self.addCleanup(self.silent.close)
        self.busy = self.service.connect()
        self.addCleanup(self.busy.close)
        noop(self.silent)
        for _ in range(200):
            noop(self.busy)

    def terminal(self, *arguments: str, term: str = "xterm") -> Terminal:
        terminal = Terminal(self.service, *arguments, term=term)
        self.addCleanup(terminal.close)
        return terminal

    def test_once(self) -> None:
        """In a pipe it prints once: the heaviest first, what nobody counts last, no key."""
        local = socket.socket(socket.AF_UNIX)
        self.addCleanup(local.close)
        local.connect(str(self.unix))
        done = kvtls(self.service, "top", "--interval", "0.1", "--sort", "total")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        total, head, *rows = done.stdout.splitlines()
        self.assertRegex(total, r"^3 connections: \d+ requests/s, in \d+/s, out \d+/s$")
        self.assertEqual(
            head.split(), ["ID", "PEER", "LISTENER", "USER", "AGE", "IN/s", "OUT/s", "IN", "OUT"]
        )
        found = [row.split() for row in rows]
        self.assertEqual([row[1] for row in found[:2]], [peer_of(self.busy), peer_of(self.silent)])
        self.assertEqual(found[2][-4:], ["-"] * 4)

    def test_counts(self) -> None:
        """What is counted is what has gone over the connection, TLS included."""

        def moved() -> tuple[int, int]:
            done = kvtls(self.service, "top", "--json", "--interval", "0.1")
            rows = {row["peer"]: row for row in json.loads(done.stdout)["connections"]}
            row = rows[peer_of(self.busy)]
            return row["bytes_in"], row["bytes_out"]

        before = moved()
        for _ in range(100):
            noop(self.busy)
        after = moved()
        # A NOOP and its answer have 24 bytes, a record of TLS 1.3 22 more.
        for one, other in zip(before, after, strict=True):
            self.assertEqual(other - one, 100 * (24 + 22))

    def test_documented(self) -> None:
        """Every field of the answer is in the documentation."""
        page = PAGE.read_text(encoding="utf-8").partition("\n### `top`\n\n`seconds`")[2]
        section = "`seconds`" + page.partition("\n### ")[0]
        answer = json.loads(kvtls(self.service, "top", "--json", "--interval", "0.1").stdout)
        for name in {*answer, *answer["connections"][0]} - {"protocol", "ok"}:
            self.assertIn(f"`{name}`", section)

    def test_lines(self) -> None:
        """With ``--count`` it prints so often, with ``--json`` one object a line."""
        done = kvtls(self.service, "top", "--interval", "0.1", "--count", "2", "--json")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([answer["total"] for answer in answers], [2, 2])
        done = kvtls(self.service, "top", "--interval", "0.1", "--count", "2", "--limit", "1")
        self.assertEqual(done.stdout.count("2 connections, 1 not shown: "), 2)

    def test_refused(self) -> None:
        """What the service refuses is told once, with status 1, also on a terminal."""
        done = kvtls(self.service, "top", "--listener", "x", "--count", "0")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("no listener 'x'", done.stderr)
        terminal = self.terminal("top", "--listener", "x")
        self.assertEqual(terminal.status(), 1)
        self.assertIn("no listener 'x'", terminal.shown)

    def test_reader_leaves(self) -> None:
        """Printing without end ends quietly when nobody reads any more."""
        process = subprocess.Popen(
            [
                *[*_COMMAND, "--state-dir", str(self.service.state_dir)],
                *["top", "--interval", "0.1", "--count", "0", "--json"],
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        self.addCleanup(process.stderr.close)
        self.assertTrue(process.stdout.readline())
        process.stdout.close()
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertEqual(process.stderr.read(), b"")

    def test_live(self) -> None:
        """A screen that sorts by what is typed, fits a resized terminal, and leaves on ``q``."""
        terminal = self.terminal("top", "--interval", "0.1")
        terminal.until(peer_of(self.silent))
        self.busy.sendall(packet(NOOP))
        terminal.type("b")
        terminal.resize(24, 90)
        terminal.until("sorted by total")
        terminal.resize(10, 40)
        terminal.until(peer_of(self.busy))
        terminal.resize(6, 30)
        terminal.until("2 conn")
        terminal.type("q")
        self.assertEqual(terminal.status(), 0)
        self.assertIn(LEAVES_SCREEN, terminal.shown)
        self.assertNotIn("Traceback", terminal.shown)

    def test_interrupted(self) -> None:
        """Control-C leaves as ``q`` does."""
        terminal = self.terminal("top", "--interval", "30")
        terminal.until(peer_of(self.busy))
        terminal.type("\x03")
        self.assertEqual(terminal.status(), 0)
        self.assertIn(LEAVES_SCREEN, terminal.shown)
        self.assertNotIn("Traceback", terminal.shown)

    def test_service_leaves(self) -> None:
        """When nobody answers any more the screen says so, and goes on."""
        terminal = self.terminal("top", "--interval", "0.1")
        terminal.until(peer_of(self.busy))
        self.service.process.send_signal(signal.SIGKILL)
        terminal.until("no news")
        terminal.type("q")
        self.assertEqual(terminal.status(), 0)
        terminal = self.terminal("top")
        self.assertEqual(terminal.status(), 3)
        self.assertIn("no service runs here", terminal.shown)

    def test_simple_terminal(self) -> None:
        """A terminal whose cursor cannot be moved, or that nobody knows, is printed to once."""
        for term in ("dumb", "no-such-terminal"):
            terminal = self.terminal("top", "--interval", "0.1", term=term)
            self.assertEqual(terminal.status(), 0)
            self.assertIn(peer_of(self.busy), terminal.shown)
            self.assertNotIn(LEAVES_SCREEN, terminal.shown)
