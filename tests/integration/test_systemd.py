"""A running service under a stand-in for systemd, and the units that are shipped."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.live import new_server_identity
from tests.integration.peers import require
from tests.integration.service import PATIENCE, TWISTD, KvtlsProcess, succeeds

UNITS = Path(__file__).resolve().parents[2] / "contrib" / "systemd"
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

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def analyze(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ask systemd-analyze."""
        program = require("systemd-analyze", "systemd")
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def copies(self) -> list[str]:
        """Return units as this systemd knows them, the programs in them replaced by one it has."""
        said = self.analyze("--version").stdout
        old = int(said.split()[1].partition(".")[0]) < 253
        paths = []
        for path in sorted(UNITS.iterdir()):
            text = path.read_text(encoding="utf-8").replace("/opt/kvtls/bin/twistd", "/bin/true")
            if old:
                text = text.replace("Type=notify-reload", "Type=notify")
            copy = self.directory / path.name
            copy.write_text(text, encoding="utf-8")
            paths.append(str(copy))
        return paths

    def test_verify(self) -> None:
        """Systemd finds nothing wrong with the service and its socket."""
        done = self.analyze("verify", "--man=no", *self.copies())
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_security(self) -> None:
        """Little is exposed: below 2.0 of 10, which a unit without its fences is far above."""
        (service,) = [path for path in self.copies() if path.endswith(".service")]
        arguments = ("security", "--offline=true", "--no-pager", "--threshold=20")
        done = self.analyze(*arguments, service)
        self.assertEqual(done.returncode, 0, done.stdout[-500:])
        bare = self.directory / "bare.service"
        bare.write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
        self.assertNotEqual(self.analyze(*arguments, str(bare)).returncode, 0)

    def test_start(self) -> None:
        """The command of the unit starts, with what systemd says where credentials are."""
        text = (UNITS / "kvtls.service").read_text(encoding="utf-8")
        credentials, state = self.directory / "credentials", self.directory / "state"
        credentials.mkdir()
        names = re.findall(r"^LoadCredential=([^:]+):", text, re.MULTILINE)
        self.assertEqual(names, ["kvtls.toml", "chain.pem", "key.pem"])
        identity = new_server_identity()
        for name, content in zip(
            names, (b"anonymous = true\n", identity.chain_pem, identity.key_pem), strict=True
        ):
            (credentials / name).write_bytes(content)
            (credentials / name).chmod(0o400)  # as systemd makes them
        (command,) = re.findall(r"^ExecStart=/opt/kvtls/bin/twistd (.*)$", text, re.MULTILINE)
        words = command.replace("${CREDENTIALS_DIRECTORY}", str(credentials))
        words = words.replace("${STATE_DIRECTORY}", str(state))
        said = succeeds([*TWISTD[:-2], *words.split(), "--check"])
        self.assertNotIn("error", said.lower())
        (credentials / "key.pem").unlink()
        (credentials / "key.pem").write_bytes(new_server_identity().key_pem)
        done = subprocess.run(
            [*TWISTD[:-2], *words.split(), "--check"],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertNotEqual(done.returncode, 0)
