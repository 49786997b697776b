"""A client that asks, ends its side and reads late gets everything that it has asked for."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

GET, SET = 0x00, 0x01
QUESTIONS = 20
VALUE = b"v" * 300_000


class Client:
    """TLS on memory BIOs, so that each side of the connection can be ended by itself."""

    def __init__(self, service: KvtlsProcess, version: ssl.TLSVersion) -> None:
        context = service.client_context()
        context.minimum_version = context.maximum_version = version
        host, port = service.addresses[0]
        self.socket = socket.create_connection((host, port), PATIENCE)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._until_done(self._tls.do_handshake)

    def _until_done(self, step: Callable[[], object]) -> None:
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                self.send_waiting()
                self._in.write(self.socket.recv(65536))
            else:
                self.send_waiting()
                return

    def send_waiting(self) -> None:
        """Give the socket what TLS has to say."""
        self.socket.sendall(self._out.read())

    def ask(self, data: bytes) -> None:
        """Send application data."""
        self._tls.write(data)
        self.send_waiting()

    def say_goodbye(self) -> None:
        """Send close_notify, and nothing after it."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            self.send_waiting()

    def read_to_the_end(self) -> bytes:
        """Return all plaintext up to the peer's close_notify.

        Raises:
            ssl.SSLEOFError: There was none.
        """
        received = bytearray()
        while True:
            try:
                piece = self._tls.read(65536)
            except ssl.SSLWantReadError:
                data = self.socket.recv(65536)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            except ssl.SSLZeroReturnError:
                return bytes(received)
            else:
                if not piece:
                    return bytes(received)
                received += piece


class HalfCloseTests(SynchronousTestCase):
    """Twenty values of 300 kB, asked for before the end of one side, read a second later."""

    def check(self, end: Callable[[Client], None]) -> None:
        with KvtlsProcess("--mode", "memcached") as service:
            with service.connect() as setter:
                setter.sendall(packet(SET, b"k", VALUE, bytes(8)))
                self.assertEqual(read_answer(setter).status, 0)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                client = Client(service, version)
                with client.socket:
                    client.ask(b"".join(packet(GET, b"k", opaque=n) for n in range(QUESTIONS)))
                    end(client)
                    time.sleep(1)  # the point of the test: nobody reads
                    received = client.read_to_the_end()
                self.assertEqual(len(received), QUESTIONS * (28 + len(VALUE)), version)

    def test_close_notify(self) -> None:
        """The client says close_notify."""
        self.check(Client.say_goodbye)

    def test_fin(self) -> None:
        """The client's kernel says FIN, its TLS nothing."""
        self.check(lambda client: client.socket.shutdown(socket.SHUT_WR))

    def test_both(self) -> None:
        """First the one, then the other."""

        def end(client: Client) -> None:
            client.say_goodbye()
            client.socket.shutdown(socket.SHUT_WR)

        self.check(end)
