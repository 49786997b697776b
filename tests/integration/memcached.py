"""memcached as a peer of tests: Debian's, on a free port, ended with the test."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.integration.peers import require
from tests.integration.service import PATIENCE

__all__ = ["Memcached"]


class Memcached:
    """A memcached on a free port of 127.0.0.1.

    Args:
        options: Of ``memcached``, e.g. ``"-m", "64"``.

    Attributes:
        port: Where it listens, once it was started.

    Raises:
        SkipTest: It is not installed.
    """

    def __init__(self, *options: str) -> None:
        self._program = require("memcached", "memcached")
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix="memcached-test-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Start, on the port of before if there was one, and wait until it listens."""
        told = self._directory / "port"
        told.unlink(missing_ok=True)
        # As root it asks for a name; the port file is in a directory that only we may write.
        where = ["-l", "127.0.0.1", "-U", "0", "-u", getpass.getuser(), "-p", str(self.port or -1)]
        process = self._process = subprocess.Popen(
            [self._program, *where, *self._options],
            env={**os.environ, "MEMCACHED_PORT_FILENAME": str(told)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + PATIENCE
        while "TCP INET" not in (told.read_text(encoding="ascii") if told.exists() else ""):
            assert process.poll() is None, "memcached has ended"
            assert time.monotonic() < until, "memcached did not start"
            time.sleep(0.01)
        self.port = int(told.read_text(encoding="ascii").split("TCP INET:")[1].split()[0])

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

    def stop(self) -> None:
        """Kill it, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(PATIENCE)

    def freeze(self) -> None:
        """Let it hold its connections and say nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def remove(self) -> None:
        """Leave nothing behind."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
