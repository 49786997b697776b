"""A running service under a stand-in for systemd, and the units that are shipped."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.service import KvtlsProcess

ROOT = Path(__file__).resolve().parents[2]
BOUND = 60.0


class NotifyTests(SynchronousTestCase):
    """``Type=notify-reload`` with a watchdog."""

    def test_life(self) -> None:
        """Ready when clients are served, reloading on SIGHUP, stopping, and alive meanwhile."""
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(directory / "notify"))
            manager.settimeout(BOUND)
            environment = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "200000"}
            heard: list[str] = []

            def until(word: str) -> None:
                deadline = time.monotonic() + BOUND
                while not heard or not heard[-1].startswith(word):
                    assert time.monotonic() < deadline, heard
                    heard.append(manager.recv(4096).decode())

            before = [f"{name}={value}" for name, value in environment.items()]
            with KvtlsProcess(before=["env", *before]) as service:
                until("READY=1")
                until("WATCHDOG=1")
                service.process.send_signal(signal.SIGHUP)
                until("RELOADING=1\nMONOTONIC_USEC=")
                until("READY=1")
                self.assertEqual(service.terminate(), 0)
                until("STOPPING=1")


class UnitTests(SynchronousTestCase):
    """The files in ``contrib/systemd``."""

    def test_verify(self) -> None:
        """Systemd finds nothing wrong with them, and little that is exposed."""
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("systemd-analyze (Debian: systemd) is not installed")
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        said = subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True)
        old = int(said.stdout.split()[1].partition(".")[0]) < 253
        for path in (ROOT / "contrib" / "systemd").iterdir():
            # The programs that the unit names need not be installed here.
            text = path.read_text(encoding="utf-8").replace("/opt/kvtls/bin/twistd", "/bin/true")
            if old:
                text = text.replace("Type=notify-reload", "Type=notify")
            (directory / path.name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [analyze, "verify", "--man=no", str(directory / "kvtls.service")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        done = subprocess.run(
            [
                *[analyze, "security", "--offline=true", "--threshold=20", "--no-pager"],
                str(directory / "kvtls.service"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout[-500:])
