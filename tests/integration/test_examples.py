"""The programs of ``docs/examples``, used as their pages say."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing import KVTLSProcess
from kvproto.testing.certificates import Authority, Identity
from tests.integration.service import PATIENCE

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NAMES = ("localhost", "127.0.0.1")


@contextlib.contextmanager
def program(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run an example; its output is read line by line, and it ends with the test."""
    running = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Reading a line has no time limit of its own.
    bound = threading.Timer(PATIENCE, running.kill)
    bound.start()
    try:
        yield running
    finally:
        bound.cancel()
        running.kill()
        running.communicate()


def line_with(output: IO[str] | None, text: str) -> str:
    """Return the next line that has some text in it; the ones before it are dropped."""
    assert output is not None
    for line in output:
        if text in line:
            return line
    raise AssertionError(f"it ended without {text!r}")


class SecureCase(SynchronousTestCase):
    """Certificates of two authorities, so that one can be told from the other."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)
        self.chain, self.key = self.directory / "chain.pem", self.directory / "key.pem"
        self.old, self.new = Authority.root("old"), Authority.root("new")
        self.write(self.old.issue("node", NAMES))

    def write(self, identity: Identity) -> None:
        self.key.touch(mode=0o600)
        self.key.write_bytes(identity.key_pem)
        self.chain.write_bytes(identity.chain_pem)

    def connect(self, port: int, authority: Authority) -> ssl.SSLSocket:
        context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.addCleanup(plain.close)
        client = context.wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(client.close)
        return client


class HttpsTests(SecureCase):
    """``https_server.py``."""

    def get(self, port: int, authority: Authority) -> bytes:
        client = self.connect(port, authority)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))

    def test_new_certificate(self) -> None:
        """It serves, and after the files were written anew shows what is in them."""
        words = f"kvtls:0:interface=127.0.0.1:certificate={self.chain}:key={self.key}:watch=0.1"
        with program("https_server.py", words) as server:
            port = int(line_with(server.stdout, "listening on").split()[-1])
            answer = self.get(port, self.old)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer)
            self.assertTrue(answer.endswith(b"hello over TLS\n"), answer)
            self.write(self.new.issue("node", NAMES))
            line_with(server.stderr, "generation 2 serves")
            self.assertTrue(self.get(port, self.new).endswith(b"hello over TLS\n"))
            self.key.write_bytes(b"garbage")
            line_with(server.stderr, "reload refused, generation 2 serves on")
            self.assertTrue(self.get(port, self.new).endswith(b"hello over TLS\n"))
            server.terminate()
            self.assertEqual(server.wait(PATIENCE), 0)


class ChatTests(SecureCase):
    """``chat.py``."""

    def enter(self, port: int, authority: Authority, name: bytes) -> IO[bytes]:
        """Connect, say a name, and see that it was taken."""
        guest = self.connect(port, authority).makefile("rwb", buffering=0)
        self.assertEqual(guest.readline(), b"* who are you?\n")
        guest.write(name + b"\n")
        self.assertEqual(guest.readline(), b"* " + name + b" is here\n")
        return guest  # type: ignore[return-value]  # a raw file has what is used of it

    def test_chat(self) -> None:
        """A restart with a new certificate loses nobody; a stop says goodbye after the rest."""
        here = "tcp:0:interface=127.0.0.1"
        with program("chat.py", str(self.chain), str(self.key), here) as chat:
            port = int(line_with(chat.stdout, "listening on").rpartition(":")[2])
            ann = self.enter(port, self.old, b"Ann")
            self.write(self.new.issue("node", NAMES))
            chat.send_signal(signal.SIGHUP)
            line_with(chat.stdout, "generation 2")
            line_with(chat.stdout, "restarted on")
            bob = self.enter(port, self.new, b"Bob")
            self.assertEqual(ann.readline(), b"* Bob is here\n")
            bob.write("grüß dich\n".encode())
            for guest in (ann, bob):
                self.assertEqual(guest.readline(), "Bob: grüß dich\n".encode())
            bob.close()
            chat.terminate()
            said = ann.read()
            self.assertTrue(said.endswith(b"* the room closes\n"), said)
            self.assertEqual(chat.wait(PATIENCE), 0)


class TickerTests(SynchronousTestCase):
    """``ticker.py``."""

    def test_ticker(self) -> None:
        """It counts on after its connection was lost, and ends cleanly when told to."""
        with KVTLSProcess() as service:
            endpoint = f"kvtls:{service.host}:{service.port}:caCertificate={service.ca_file}"
            with program("ticker.py", endpoint, service.username, service.password) as ticker:
                line_with(ticker.stdout, "ticks")
                service.disconnect()
                line_with(ticker.stdout, "perhaps counted")
                before = int(line_with(ticker.stdout, "ticks").split()[1])
                after = int(line_with(ticker.stdout, "ticks").split()[1])
                self.assertEqual(after, before + 10)
                ticker.terminate()
                line_with(ticker.stdout, "cancelled")
                self.assertEqual(ticker.wait(PATIENCE), 0)
                assert ticker.stderr is not None
                self.assertEqual(ticker.stderr.read(), "")


class InMemoryTests(SynchronousTestCase):
    """``test_visits.py``."""

    def test_in_memory(self) -> None:
        """Its tests pass."""
        with tempfile.TemporaryDirectory() as scratch:
            done = subprocess.run(
                [sys.executable, "-m", "twisted.trial", str(EXAMPLES / "test_visits.py")],
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("PASSED (successes=3)", done.stdout)
