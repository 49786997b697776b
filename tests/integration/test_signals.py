"""Signals at every moment of a process' life: while it is built, while it serves, while it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.service import TWISTD, KvtlsProcess

BOUND = 60.0
"""Seconds; far above what anything here takes."""


def catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal, from what Linux says about it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


class StartingTests(SynchronousTestCase):
    """Signals that come before there is anything to serve."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="kvtls-test-")
        self.addCleanup(directory.cleanup)
        self.state_dir = Path(directory.name) / "state"
        listen = ["--listen", "tcp:0:interface=127.0.0.1"]
        self.process = subprocess.Popen(
            [*TWISTD, "kvtls", *listen, "--state-dir", str(self.state_dir)],
            cwd=directory.name,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(self._end)
        deadline = time.monotonic() + BOUND
        while not all(
            catches(self.process.pid, number) for number in (signal.SIGHUP, signal.SIGTERM)
        ):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "the signals are not caught"
            time.sleep(0.001)
        self.assertFalse(self.state_dir.exists(), "the handlers came late")

    def _end(self) -> None:
        self.process.kill()
        self.process.wait(BOUND)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def output_until(self, pattern: str) -> str:
        """Return what the process prints up to a line."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if re.search(pattern, line):
                return "".join(lines)
        raise AssertionError(f"no {pattern!r} in:\n{''.join(lines)}")

    def test_hangup(self) -> None:
        """SIGHUP while the service is built: it starts, and reads the credentials again."""
        self.process.send_signal(signal.SIGHUP)
        self.output_until("reload: the files hold what generation 1 serves")
        self.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.process.wait(BOUND), 0)

    def test_stop(self) -> None:
        """SIGTERM while the service is built ends it as at any other time: in order."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=BOUND)
        self.assertEqual(self.process.returncode, 0, output)
        self.assertFalse((self.state_dir / "control.sock").exists())

    def test_hurry(self) -> None:
        """A second request to stop does not wait for the start to be complete."""
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(BOUND)
        self.assertIn(self.process.returncode, (-signal.SIGINT, -signal.SIGTERM, 0))


class WholeLifeTests(SynchronousTestCase):
    """Signals that come at any moment."""

    def test_hangups_all_the_time(self) -> None:
        """A service that gets SIGHUP again and again serves, and stops with status 0."""
        with KvtlsProcess() as service:
            ended = threading.Event()

            def hang_up() -> None:
                while not ended.wait(0.002):
                    service.process.send_signal(signal.SIGHUP)

            sender = threading.Thread(target=hang_up)
            sender.start()
            try:
                with service.connect() as client:
                    client.sendall(b"set k 0 0 1\r\nx\r\n")
                    self.assertEqual(client.recv(100), b"STORED\r\n")
                self.assertEqual(service.terminate(), 0)
            finally:
                ended.set()
                sender.join()
