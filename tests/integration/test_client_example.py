"""The documented example, as its page tells to run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.service import PATIENCE, KvtlsProcess

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "client.py"

PRINTED = """\
100 visits
visitor:1 is Anna
DELETE was answered NOT_FOUND
"""


class ExampleTests(SynchronousTestCase):
    """``docs/examples/client.py``."""

    def run_example(self, service: KvtlsProcess, *login: str) -> str:
        endpoint = f"kvtls:127.0.0.1:{service.port}:caCertificate={service.ca_path}"
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), endpoint, *login],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_anonymous(self) -> None:
        """It works against a service without users."""
        with KvtlsProcess() as service:
            self.assertEqual(self.run_example(service), PRINTED)

    def test_with_login(self) -> None:
        """It works with a login."""
        with KvtlsProcess("--user", "alice:secret") as service:
            self.assertEqual(self.run_example(service, "alice", "secret"), PRINTED)
