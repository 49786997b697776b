"""Test suites of others, as they are, on a service that stands in for Couchbase."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing import KVTLSProcess
from tests.integration.service import PATIENCE, succeeds

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
                said = succeeds(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", SUITE],
                    3 * PATIENCE,
                    env=os.environ | settings,
                    cwd=service.directory,
                )
                self.assertIn("5 passed", said)
            self.assertNotIn("Traceback", service.log)
