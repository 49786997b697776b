"""Endpoints in memory behave as those of sockets do."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import (
    CannotListenError,
    ConnectionDone,
    ConnectionRefusedError,
    NoProtocol,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.testing.endpoints import MemoryNetwork


class Echo(Protocol):
    """Sends back what it gets."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Noting(Protocol):
    """Notes what happens to it."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class Started(Factory):
    """Counts its ports."""

    protocol = Echo
    started = 0

    def startFactory(self) -> None:
        self.started += 1

    def stopFactory(self) -> None:
        self.started -= 1


class Nobody(Factory):
    """Refuses every connection."""

    def buildProtocol(self, addr: Any) -> None:
        return None


class EndpointTests(SynchronousTestCase):
    """One network, one server."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.factory = Started()

    def connect(self, factory: Any = None, name: str = "server") -> Any:
        client = self.network.client_endpoint(name)
        verifyObject(IStreamClientEndpoint, client)
        return client.connect(factory or Factory.forProtocol(Noting))

    def listen(self, factory: Any = None, name: str = "server") -> Any:
        server = self.network.server_endpoint(name)
        verifyObject(IStreamServerEndpoint, server)
        return self.successResultOf(server.listen(factory or self.factory))

    def test_bytes_move_in_flush(self) -> None:
        """Connecting is immediate; bytes wait for `flush`, on every connection."""
        self.listen()
        clients = [self.successResultOf(self.connect()) for _ in range(3)]
        for client in clients:
            client.transport.write(b"hello")
            self.assertEqual(client.received, b"")
        self.network.flush()
        self.assertEqual([client.received for client in clients], [b"hello"] * 3)

    def test_addresses(self) -> None:
        """Both ends and the port name the name."""
        port = self.listen(name="kv")
        verifyObject(IListeningPort, port)
        client = self.successResultOf(self.connect(name="kv"))
        self.assertEqual(client.transport.getPeer().name, "kv")
        self.assertEqual(client.transport.getHost().name, "client")
        self.assertEqual(port.getHost().name, "kv")

    def test_nobody_listens(self) -> None:
        """A name that nobody listens on refuses, before and after there was somebody."""
        self.failureResultOf(self.connect(), ConnectionRefusedError)
        port = self.listen()
        self.successResultOf(port.stopListening())
        self.failureResultOf(self.connect(), ConnectionRefusedError)

    def test_one_listener_for_a_name(self) -> None:
        """The second is refused and the first undisturbed; another name is free."""
        self.listen()
        second = self.network.server_endpoint().listen(Started())
        self.failureResultOf(second, CannotListenError)
        self.listen(Started(), "other")
        self.successResultOf(self.connect())

    def test_factory_hears_of_its_port(self) -> None:
        """As with sockets, once at each end; stopping twice is stopping."""
        port = self.listen()
        self.assertEqual(self.factory.started, 1)
        self.successResultOf(port.stopListening())
        self.successResultOf(port.stopListening())
        self.assertEqual(self.factory.started, 0)

    def test_connections_outlive_the_port(self) -> None:
        """A port that stops takes nobody with it."""
        port = self.listen()
        client = self.successResultOf(self.connect())
        self.successResultOf(port.stopListening())
        client.transport.write(b"still")
        self.network.flush()
        self.assertEqual(client.received, b"still")

    def test_refused_by_the_server(self) -> None:
        """A factory without a protocol closes the connection that was made."""
        self.listen(Nobody())
        client = self.successResultOf(self.connect())
        self.network.flush()
        assert client.lost is not None
        client.lost.trap(ConnectionDone)
        self.assertEqual(self.network.pairs, [])

    def test_refused_by_the_client(self) -> None:
        """A client's factory without a protocol fails the Deferred, and connects nobody."""
        self.listen()
        self.failureResultOf(self.connect(Nobody()), NoProtocol)
        self.assertEqual(self.network.pairs, [])

    def test_lost_connections_are_dropped(self) -> None:
        """Once both ends know."""
        self.listen()
        client = self.successResultOf(self.connect())
        client.transport.loseConnection()
        self.network.flush()
        self.assertIsNotNone(client.lost)
        self.assertEqual(self.network.pairs, [])

    def test_options_of_pairs(self) -> None:
        """Connections are as difficult as asked for."""
        self.network = MemoryNetwork(chunk=1, window=3)
        self.listen()
        client = self.successResultOf(self.connect())
        client.transport.write(b"hello world")
        client.transport.send()
        self.assertEqual(bytes(client.transport.wire), b"hel")
        self.network.flush()
        self.assertEqual(client.received, b"hello world")

    def test_endless(self) -> None:
        """Two that never end are told of."""
        self.listen()
        client = self.successResultOf(self.connect(Factory.forProtocol(Echo)))
        client.transport.write(b"x")
        self.assertRaises(RuntimeError, self.network.flush, 100)
