"""A running service under a stand-in for systemd, and the units that are shipped."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.server.users_file import UsersFile, dump_users
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

    def copies(self, *, rotating: bool) -> Path:
        """Return units as this systemd knows them, their programs replaced by one that it has.

        Args:
            rotating: Whether with the drop-in for certificates that rotate.
        """
        old = int(self.analyze("--version").stdout.split()[1].partition(".")[0]) < 253
        directory = self.directory / f"rotating-{rotating}"
        shutil.copytree(
            UNITS, directory, ignore=None if rotating else lambda *_: ["kvtls.service.d"]
        )
        for path in filter(Path.is_file, directory.rglob("*")):
            text = path.read_text(encoding="utf-8").replace("/opt/kvtls/bin/twistd", "/bin/true")
            if old:
                text = text.replace("Type=notify-reload", "Type=notify")
            path.write_text(text, encoding="utf-8")
        return directory

    def test_verify(self) -> None:
        """Systemd finds nothing wrong with the service, its drop-in and its socket."""
        for rotating in (False, True):
            found = self.copies(rotating=rotating)
            done = self.analyze(
                "verify", "--man=no", str(found / "kvtls.service"), str(found / "kvtls.socket")
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_security(self) -> None:
        """Little is exposed: below 2.0 of 10, which a unit without its fences is far above."""
        arguments = ("security", "--offline=true", "--no-pager", "--threshold=20")
        for rotating in (False, True):
            service = self.copies(rotating=rotating) / "kvtls.service"
            done = self.analyze(*arguments, str(service))
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
        self.assertEqual(names, ["kvtls.toml", "users.json", "chain.pem", "key.pem"])
        identity = new_server_identity()
        contents = (b"", dump_users(UsersFile()).encode(), identity.chain_pem, identity.key_pem)
        for name, content in zip(names, contents, strict=True):
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
