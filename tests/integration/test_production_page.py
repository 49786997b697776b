"""What docs/howto/production.md tells people to paste, pasted; in a directory in place of /etc."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.live import new_server_identity
from tests.integration.sdk import ROOT
from tests.integration.service import PATIENCE
from tests.pages import block
from tests.ports import free_port

NAME = "docs/howto/production.md"
PAGE = (ROOT / NAME).read_text(encoding="utf-8")


class PageTests(SynchronousTestCase):
    """From nothing to a service that is watched, rotates and drains."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvtls-production-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.etc, self.state = self.directory / "etc", self.directory / "state"
        self.etc.mkdir()
        self.port, self.http = free_port(), free_port()

    def here(self, text: str) -> str:
        """Return text of the page with this test's directories, ports and programs."""
        for theirs, ours in (
            ("/etc/kvtls/", f"{self.etc}/"),
            ("/var/lib/kvtls", str(self.state)),
            ("/opt/kvtls/bin/", f"{Path(sys.executable).parent}/"),
            ("tcp:11207", f"tcp:{self.port}"),
            ("tcp6:11207", f"tcp6:{self.port}"),
            (":9207", f":{self.http}"),
            ("-g kvtls-tls ", ""),
        ):
            text = text.replace(theirs, ours)
        return text

    def run_shell(self, script: str, *, typed: str = "") -> str:
        """Run lines of the page; return what they printed."""
        done = subprocess.run(
            ["bash", "-euc", self.here(script)],
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=self.directory,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def write_credentials(self, directory: Path, chain: str, key: str) -> None:
        """Write a new certificate and its key."""
        identity = new_server_identity()
        (directory / chain).write_bytes(identity.chain_pem)
        (directory / key).write_bytes(identity.key_pem)
        (directory / key).chmod(0o600)

    def test_page(self) -> None:
        """Configured, checked, started, seen, rotated by certbot's hook, drained, ended."""
        self.write_credentials(self.etc, "chain.pem", "key.pem")
        settings = self.here(block(NAME, "listen =").text)
        tomllib.loads(settings)
        (self.etc / "kvtls.toml").write_text(settings, encoding="utf-8")
        passwd, check = block(NAME, "kvtls passwd").text.split("alice\n")
        self.run_shell(f"{passwd}alice", typed="secret\n")
        self.assertIn("the configuration is good", self.run_shell(check))

        drop_in = ROOT / "contrib" / "systemd" / "kvtls.service.d" / "rotate.conf"
        (start,) = re.findall(
            r"^ExecStart=(\S.*)$", drop_in.read_text(encoding="utf-8"), re.MULTILINE
        )
        command = self.here(start).replace("${STATE_DIRECTORY}", str(self.state)).split()
        ran = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        # Not with ``with``: when something fails it waits for an end that nobody asks for.
        self.addCleanup(ran.wait, PATIENCE)
        self.addCleanup(ran.kill)
        kvtls = "/opt/kvtls/bin/kvtls --state-dir /var/lib/kvtls"
        self.run_shell(f"{kvtls} wait --timeout 50")
        (status,) = re.findall(r"^/opt.*kvtls status$", PAGE, re.MULTILINE)
        self.assertIn("generation 1,", self.run_shell(status))
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.http}/metrics", timeout=PATIENCE
        ) as got:
            self.assertIn(b"kvtls_ready 1", got.read())

        lineage = self.directory / "lineage"
        lineage.mkdir()
        self.write_credentials(lineage, "fullchain.pem", "privkey.pem")
        hook = f"export RENEWED_LINEAGE={lineage}\n{block(NAME, 'RENEWED_LINEAGE').text}"
        self.assertIn("generation 2 serves", self.run_shell(hook))

        drain, stop = block(NAME, "drain --wait").text.splitlines()
        self.assertIn("drained: 0 connections", self.run_shell(drain))
        self.assertTrue(stop.startswith("systemctl stop"))
        ran.send_signal(signal.SIGTERM)
        self.assertEqual(ran.wait(PATIENCE), 0)

    def test_group(self) -> None:
        """A users file that a group may read stays so when a password changes."""
        passwd, _ = block(NAME, "kvtls passwd").text.split("alice\n")
        users = self.etc / "users.json"
        self.run_shell(f"{passwd}alice", typed="secret\n")
        self.assertEqual(users.stat().st_mode & 0o777, 0o600)
        users.chmod(0o640)
        self.run_shell(f"umask 077; {passwd}bob", typed="secret\n")
        self.assertEqual(users.stat().st_mode & 0o777, 0o640)

    def test_files(self) -> None:
        """Every file that the page names is there."""
        for name in re.findall(r"`(contrib/[^`]+)`", PAGE):
            self.assertTrue((ROOT / name).is_file(), name)
