"""curl, as people try a port that they do not know."""

from __future__ import annotations

import re
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.peers import require
from tests.integration.service import KvtlsProcess
from tests.integration.wire_client import packet, read_answer

NOOP = 0x0A
SECONDS = 8


class CurlTests(SynchronousTestCase):
    """HTTP at the port ends that one connection, soon, with a reason in the log."""

    def curl(self, *arguments: str) -> int:
        """Run curl and return its exit status; its own limit of time (28) is a failure here."""
        done = subprocess.run(
            [require("curl", "curl"), "-sS", "--max-time", str(SECONDS), *arguments],
            capture_output=True,
            timeout=SECONDS + 10,
            check=False,
        )
        self.assertNotIn(done.returncode, (0, 28), done.stderr)
        return done.returncode

    def test_plaintext(self) -> None:
        """HTTP without TLS is refused at once and named."""
        with KvtlsProcess() as service, service.connect() as other:
            host, port = service.addresses[0]
            self.curl(f"http://{host}:{port}/")
            service.wait_for_line(re.compile("HTTP request on a TLS port"))
            other.sendall(packet(NOOP))
            self.assertEqual(read_answer(other).status, 0)

    def test_https(self) -> None:
        """HTTP inside TLS, with the certificate verified, is no key-value request."""
        with KvtlsProcess() as service, service.connect() as other:
            host, port = service.addresses[0]
            self.curl("--cacert", str(service.ca_path), f"https://{host}:{port}/")
            other.sendall(packet(NOOP))
            self.assertEqual(read_answer(other).status, 0)
            self.assertNotIn("Traceback", service.output)
