"""Rotation with real threads, real sockets and clients that never stop coming."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from kvproto.testing.certificates import root_authority
from kvproto.tls import CredentialFiles, FileWatch, KVTLSFactory, Rotation, ServerPolicy, Verdict
from tests.integration.service import PATIENCE

RELOADS = 12
CLIENTS = 3


class Echo(Protocol):
    """Sends back what it gets."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Storm:
    """Clients in threads: connect, ask, be answered, leave, again and again."""

    def __init__(self, port: int, ca: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=str(ca))
        self._stop = threading.Event()
        self.done = 0
        self.faults: list[str] = []

    def meet(self) -> bytes:
        """Ask once; return the certificate that was shown, as DER."""
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as plain,
            self._context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"hello")
            if secure.recv(100) != b"hello":
                raise OSError("no answer")
            return secure.getpeercert(binary_form=True) or b""

    def run(self) -> None:
        """Go on until told to stop; in a thread."""
        while not self._stop.is_set():
            try:
                self.meet()
            except OSError as error:
                self.faults.append(repr(error))
            self.done += 1

    def stop(self) -> None:
        """Let every thread end after the connection that it is at."""
        self._stop.set()


class RotationTests(TestCase):
    """One listener on loopback."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        self.pair, self.ca = directory / "pair.pem", directory / "ca.pem"
        self.ca.write_bytes(root_authority().certificate_pem)
        self.write()

    async def start(self) -> None:
        """Listen with a rotation over the files."""
        clock: Any = reactor
        self.rotation = Rotation(CredentialFiles(self.pair), ServerPolicy(), clock, deferToThread)
        self.rotation.startService()
        self.addCleanup(self.rotation.stopService)
        factory = KVTLSFactory(self.rotation.contexts, False, Factory.forProtocol(Echo))
        endpoint = TCP4ServerEndpoint(clock, 0, interface="127.0.0.1")
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        self.storm = Storm(port.getHost().port, self.ca)

    def write(self) -> None:
        identity = root_authority().issue("localhost", ["localhost", "127.0.0.1"])
        fresh = self.pair.with_suffix(".new")
        fresh.write_bytes(identity.chain_pem + identity.key_pem)
        fresh.replace(self.pair)

    async def test_connect_loop(self) -> None:
        """Reloads cost no client anything, and after each verdict the new certificate is shown."""
        await self.start()
        threads = [deferToThread(self.storm.run) for _ in range(CLIENTS)]
        try:
            for number in range(2, RELOADS + 2):
                self.write()
                verdict = await self.rotation.reload()
                self.assertEqual((verdict.ok, verdict.generation), (True, number))
                shown = await deferToThread(self.storm.meet)
                while self.storm.done < number:
                    await deferLater(reactor, 0.01)
                leaf = self.rotation.current.credentials.chain[0]
                self.assertEqual(ssl.PEM_cert_to_DER_cert(self.pem(leaf)), shown)
        finally:
            self.storm.stop()
            for thread in threads:
                await thread
        self.assertEqual(self.storm.faults, [])

    def pem(self, certificate: Any) -> str:
        from cryptography.hazmat.primitives.serialization import Encoding

        text: str = certificate.public_bytes(Encoding.PEM).decode()
        return text

    async def test_twenty_at_once(self) -> None:
        """Twenty requests at once are twenty verdicts about the new files."""
        await self.start()
        self.write()
        asked: list[Deferred[Verdict]] = [self.rotation.reload() for _ in range(20)]
        verdicts = [await one for one in asked]
        self.assertEqual({(one.ok, one.generation) for one in verdicts}, {(True, 2)})
        self.assertEqual([one.changed for one in verdicts], [True] + [False] * 19)

    async def test_bad_file_and_watch(self) -> None:
        """A bad file serves nobody; a good one is found by the watch."""
        await self.start()
        before = await deferToThread(self.storm.meet)
        self.pair.write_bytes(b"garbage")
        verdict = await self.rotation.reload()
        self.assertEqual((verdict.ok, verdict.stage), (False, "check"))
        self.assertEqual(await deferToThread(self.storm.meet), before)
        clock: Any = reactor
        watch = FileWatch(self.rotation, clock, 0.05)
        watch.startService()
        self.addCleanup(watch.stopService)
        swapped: Deferred[int] = Deferred()
        self.rotation.subscribe("test", lambda _old, new: swapped.callback(new.number))
        self.write()
        self.assertEqual(await swapped, 2)
        self.assertNotEqual(await deferToThread(self.storm.meet), before)
        await deferLater(clock, 0)
