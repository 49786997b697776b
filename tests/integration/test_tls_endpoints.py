"""``kvtls:`` endpoint strings over real sockets."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from kvproto.testing.certificates import (
    Authority,
    Identity,
    deep_server_identity,
    root_authority,
    server_identity,
)
from tests.integration.service import PATIENCE

PAYLOAD = bytes(range(256)) * 4000
"""A megabyte: many TLS records and several socket buffers."""


class Echo(Protocol):
    """Sends back what it gets."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Asker(Protocol):
    """Sends the payload, closes when it is all back."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.answered: Deferred[bytes] = Deferred()
        self.lost: Deferred[BaseException] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(PAYLOAD)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if len(self.received) == len(PAYLOAD):
            assert self.transport is not None
            self.transport.loseConnection()
            self.answered.callback(bytes(self.received))

    def connectionLost(self, reason: Failure = Failure(Exception("unknown"))) -> None:  # noqa: B008
        assert reason.value is not None
        self.lost.callback(reason.value)


class EndpointTests(TestCase):
    """A server and clients in one process, on loopback."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir(parents=True)
        self.ca = self.directory / "ca.pem"
        self.ca.write_bytes(root_authority().certificate_pem)
        self.relative = os.path.relpath(self.directory / "s")
        self.node = self.write("node.pem", server_identity())
        self.alice = self.write("alice.pem", root_authority().issue("alice"))

    def write(self, name: str, identity: Identity) -> Path:
        path = self.directory / name
        path.write_bytes(identity.chain_pem + identity.key_pem)
        return path

    async def listen(self, words: str) -> IListeningPort:
        endpoint = serverFromString(reactor, f"kvtls:{words}")
        port: IListeningPort = await endpoint.listen(Factory.forProtocol(Echo))
        self.addCleanup(port.stopListening)
        return port

    async def ask(self, words: str) -> Asker:
        endpoint: Any = clientFromString(reactor, f"kvtls:{words}")
        asker: Asker = await endpoint.connect(Factory.forProtocol(Asker))
        return asker

    async def echo(self, words: str) -> None:
        """A megabyte goes there and back."""
        asker = await self.ask(words)
        self.assertEqual(await asker.answered, PAYLOAD)
        await asker.lost

    async def test_tcp(self) -> None:
        """Over IPv4, with the server's address or its name verified."""
        port = await self.listen(f"0:interface=127.0.0.1:certificate={self.node}")
        number = port.getHost().port  # type: ignore[attr-defined]
        await self.echo(f"127.0.0.1:{number}:caCertificate={self.ca}")
        await self.echo(f"127.0.0.1:{number}:hostname=localhost:caCertificate={self.ca}")

    async def test_large_chain(self) -> None:
        """Thirty intermediates cross the wire."""
        node = self.write("deep.pem", deep_server_identity())
        port = await self.listen(f"0:interface=127.0.0.1:certificate={node}")
        number = port.getHost().port  # type: ignore[attr-defined]
        await self.echo(f"127.0.0.1:{number}:caCertificate={self.ca}")

    async def test_ipv6(self) -> None:
        """Over IPv6."""
        port = await self.listen(f"0:interface=\\:\\:1:certificate={self.node}")
        number = port.getHost().port  # type: ignore[attr-defined]
        await self.echo(f"\\:\\:1:{number}:caCertificate={self.ca}")

    async def test_unix(self) -> None:
        """Over a UNIX socket, with a name to verify; the path is short enough for a socket."""
        here = self.relative
        await self.listen(f"unix={here}:certificate={self.node}")
        await self.echo(f"endpoint=unix\\:{here}:hostname=localhost:caCertificate={self.ca}")

    async def test_client_certificate(self) -> None:
        """A client certificate is asked for and shown."""
        port = await self.listen(
            f"0:interface=127.0.0.1:certificate={self.node}:clientCA={self.ca}:clientAuth=required"
        )
        number = port.getHost().port  # type: ignore[attr-defined]
        await self.echo(f"127.0.0.1:{number}:caCertificate={self.ca}:certificate={self.alice}")
        asker = await self.ask(f"127.0.0.1:{number}:caCertificate={self.ca}")
        reason = await asker.lost
        # The alert may be lost behind the reset that the megabyte on its way earns.
        self.assertNotIsInstance(reason, ConnectionDone)
        self.assertEqual(asker.received, b"")

    async def test_wrong_name(self) -> None:
        """A server of another name is left before a byte of the application is sent."""
        port = await self.listen(f"0:interface=127.0.0.1:certificate={self.node}")
        number = port.getHost().port  # type: ignore[attr-defined]
        asker = await self.ask(
            f"127.0.0.1:{number}:hostname=elsewhere.example:caCertificate={self.ca}"
        )
        reason = await asker.lost
        self.assertIn("elsewhere.example", str(reason))

    async def test_rotation(self) -> None:
        """A certificate that is written anew is shown to the next client, and watching ends."""
        port = await self.listen(f"0:interface=127.0.0.1:certificate={self.node}:watch=0.05")
        number = port.getHost().port  # type: ignore[attr-defined]
        await self.echo(f"127.0.0.1:{number}:caCertificate={self.ca}")
        other = Authority.root("another root")
        self.write("node.pem", other.issue("node", ["localhost", "127.0.0.1", "::1"]))
        (self.directory / "other.pem").write_bytes(other.certificate_pem)
        trusting = f"127.0.0.1:{number}:caCertificate={self.directory / 'other.pem'}"

        async def is_shown() -> bool:
            asker = await self.ask(trusting)
            return isinstance(await asker.lost, ConnectionDone)

        while not await is_shown():
            # Each turn is a connection, and the test's timeout bounds them.
            pass
        await maybeDeferred(port.stopListening)
        # trial itself fails the test if a look at the files is still to come

    async def test_independent_client(self) -> None:
        """Python's own ssl module is served."""
        port = await self.listen(f"0:interface=127.0.0.1:certificate={self.node}")
        number = port.getHost().port  # type: ignore[attr-defined]
        answer = await deferToThread(self.talk, number)
        self.assertEqual(answer, b"hello")

    def talk(self, number: int) -> bytes:
        import socket

        context = ssl.create_default_context(cafile=str(self.ca))
        with (
            socket.create_connection(("127.0.0.1", number), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"hello")
            return secure.recv(100)
