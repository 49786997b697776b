"""Session tickets that nobody can use, and what they do to clients that do not read."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from kvproto.openssl import is_bundled
from kvproto.testing.certificates import root_authority
from tests.integration.live import CredentialDirectory, eventually
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

GET, NOOP, SETQ = 0x00, 0x0A, 0x11
LARGE = 20 << 20
"""More than the buffers of both sides hold: closing has to wait for the server to read."""


class TicketTests(SynchronousTestCase):
    """What the service sends after a handshake of TLS 1.3: nothing that was not asked for."""

    def setUp(self) -> None:
        if not is_bundled():
            raise SkipTest("this cryptography uses the system's OpenSSL and its configuration")
        files = CredentialDirectory()
        self.addCleanup(files.remove)
        self.service = KvtlsProcess(*files.options, "--memory-limit", "100MiB")
        self.service.__enter__()
        self.addCleanup(self.service.__exit__, None, None, None)

    def connect(self) -> ssl.SSLSocket:
        """Return a connection that has shaken hands."""
        context = ssl.create_default_context(cadata=root_authority().certificate_pem.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        plain = socket.create_connection(("127.0.0.1", self.service.port), timeout=PATIENCE)
        client = context.wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(client.close)
        return client

    def is_whole(self, key: bytes) -> bool:
        """Return whether a large value is there."""
        reader = self.connect()
        reader.sendall(packet(GET, key))
        answer = read_answer(reader)
        reader.close()
        return len(answer.value) == LARGE

    def test_nothing_unasked(self) -> None:
        """No ticket comes with the first answer, so none was sent before it."""
        client = self.connect()
        client.sendall(packet(NOOP))
        read_answer(client)
        session = client.session
        self.assertIsNotNone(session)
        self.assertFalse(session is not None and session.has_ticket)

    def test_who_writes_and_goes_loses_nothing(self) -> None:
        """Its kernel would drop what it has not sent if there were something it had not read."""
        for number in range(3):
            key = b"large-%d" % number
            client = self.connect()
            client.sendall(packet(SETQ, key, bytes(LARGE), extras=bytes(8)))
            client.close()
            eventually(partial(self.is_whole, key), f"{key!r} is not whole")
