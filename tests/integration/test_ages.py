"""``--idle-timeout`` and ``--max-lifetime`` of a running service."""

from __future__ import annotations

import contextlib
import ssl

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

NOOP = 0x0A


class AgeTests(SynchronousTestCase):
    """Clients that stay too long."""

    def ended(self, client: ssl.SSLSocket) -> bool:
        """Wait for the end of a connection, which has to be in order."""
        client.settimeout(PATIENCE)
        return client.recv(1000) == b""

    def test_idle(self) -> None:
        """A silent client, and one with half a request, are told goodbye; the log says why."""
        with KvtlsProcess("--idle-timeout", "1", "--close-timeout", "1") as service:
            with service.connect() as silent:
                silent.sendall(packet(NOOP))
                read_answer(silent)
                self.assertTrue(self.ended(silent))
            with service.connect() as half:
                half.sendall(packet(NOOP)[:10])
                half.settimeout(PATIENCE)
                # Cut off rather than told: its request was not complete in time.
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    self.assertEqual(half.recv(1000), b"")
            self.assertEqual(service.terminate(), 0)
        self.assertEqual(service.output.count("idle for 1 s"), 2)

    def test_lifetime(self) -> None:
        """A client that asks all the time is drained when it is old."""
        with KvtlsProcess("--max-lifetime", "1") as service, service.connect() as client:
            client.settimeout(PATIENCE)
            answered = 0
            while True:
                try:
                    client.sendall(packet(NOOP))
                    read_answer(client)
                except (EOFError, OSError):
                    break
                answered += 1
            self.assertGreater(answered, 0)
            self.assertEqual(service.terminate(), 0)
        self.assertIn("older than 1 s", service.output)
