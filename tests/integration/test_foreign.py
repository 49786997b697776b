"""Test suites of others, as they are, on a service that stands in for Couchbase."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing import KVTLSProcess
from tests.integration.service import PATIENCE

SUITE = Path(__file__).with_name("foreign") / "suite_travel.py"


class ForeignTests(SynchronousTestCase):
    """A module that uses ``couchbase://`` and sets everything up by itself."""

    def test_unedited(self) -> None:
        """It passes, twice in a row on the same service."""
        with KVTLSProcess(
            *["--plain", "tcp:0:interface=127.0.0.1", "--management", "tcp:0"],
            username="Administrator",
        ) as service:
            settings = {
                "COUCHBASE_URL": service.plain_connection_string,
                "COUCHBASE_USERNAME": service.username,
                "COUCHBASE_PASSWORD": service.password,
            }
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE)],
                    env=os.environ | settings,
                    cwd=service.directory,
                    capture_output=True,
                    text=True,
                    timeout=3 * PATIENCE,
                    check=False,
                )
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertIn("5 passed", done.stdout)
            self.assertNotIn("Traceback", service.log)
