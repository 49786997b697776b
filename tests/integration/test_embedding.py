"""The service inside another Twisted program, on the reactor that trial runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.application.service import Application, IService, IServiceCollection
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from kvproto.config import Config
from kvproto.errors import ConfigError
from kvproto.service import KVTLSService, check
from tests.integration.service import PATIENCE


class TextClient(Protocol):
    """Collects what comes until a line says END."""

    def __init__(self) -> None:
        self.received = b""
        self.answered: Deferred[bytes] = Deferred()
        self.closed: Deferred[bool] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"END\r\n") and not self.answered.called:
            self.answered.callback(self.received)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.closed.callback(reason.check(ConnectionDone) is not None)


class EmbeddingTests(TestCase):
    """A `KVTLSService` under an application that is not ours."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()

    def config(self, **fields: Any) -> Config:
        # A Unix socket's path has to be short: no control socket in trial's long directory.
        fields.setdefault("state_dir", Path("embedded-state"))
        return Config(listen=("tcp:0:interface=127.0.0.1",), **fields)

    async def ask(self, service: KVTLSService, text: bytes) -> TextClient:
        port = service.acceptors[0].address.rpartition(":")[2]
        ca = service.rotation.files.certificate
        assert ca is not None
        trusted = ca.with_name("ca.pem")
        endpoint = clientFromString(reactor, f"kvtls:127.0.0.1:{port}:caCertificate={trusted}")
        client: TextClient = await connectProtocol(endpoint, TextClient())
        assert client.transport is not None
        client.transport.write(text)
        return client

    async def test_serves_and_stops(self) -> None:
        """It starts with its parent, serves, and leaves nothing on the reactor when it stops."""
        application = Application("other program")
        service = KVTLSService(self.config(), reactor)
        service.setServiceParent(IServiceCollection(application))
        parent = IService(application)
        parent.privilegedStartService()
        parent.startService()
        client = await self.ask(service, b"set k 0 0 1\r\nv\r\nget k\r\n")
        answer = await client.answered
        self.assertEqual(answer, b"STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\n")
        await parent.stopService()
        self.assertTrue(await client.closed)
        self.assertEqual(len(service.ledger), 0)

    async def test_starts_again(self) -> None:
        """A service that was stopped can be started again, with its data."""
        service = KVTLSService(self.config(), reactor)
        service.startService()
        client = await self.ask(service, b"set k 0 0 1\r\nv\r\nget k\r\n")
        await client.answered
        await service.stopService()
        service.startService()
        client = await self.ask(service, b"get k\r\n")
        self.assertEqual(await client.answered, b"VALUE k 0 1\r\nv\r\nEND\r\n")
        await service.stopService()

    def test_check(self) -> None:
        """A configuration can be tried without starting anything."""
        self.assertEqual(check(self.config()), [])
        bad = Config(certificate=self.directory / "none.pem")
        self.assertRaises(ConfigError, check, bad)
