"""Endpoints in memory: a program's servers and clients meet without a network.

::

    network = MemoryNetwork(clock)
    network.server_endpoint("kv").listen(server_factory)
    network.client_endpoint("kv").connect(client_factory)
    network.flush()  # bytes move here, and nowhere else

Connections are `kvproto.testing.transport.MemoryPair`, with all that makes real ones difficult.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.error import CannotListenError, ConnectionRefusedError, NoProtocol
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from kvproto.testing.transport import MemoryAddress, MemoryPair

__all__ = ["MemoryClientEndpoint", "MemoryNetwork", "MemoryPort", "MemoryServerEndpoint"]


class MemoryNetwork:
    """Names that can be listened on and connected to, and the connections between them.

    Args:
        clock: Turned by zero seconds in each round of `flush`, for what protocols put off.
        options: As `MemoryPair` takes them: ``chunk``, ``high_water``, ``window``.

    Attributes:
        ports: Who listens, by name.
        pairs: The connections, oldest first; one that both ends have lost is dropped by `flush`.
    """

    def __init__(self, clock: Clock | None = None, **options: Any) -> None:
        self._clock = clock
        self._options = options
        self.ports: dict[str, MemoryPort] = {}
        self.pairs: list[MemoryPair] = []

    def server_endpoint(self, name: str = "server") -> MemoryServerEndpoint:
        """Return an endpoint that listens on a name."""
        return MemoryServerEndpoint(self, name)

    def client_endpoint(self, name: str = "server") -> MemoryClientEndpoint:
        """Return an endpoint that connects to a name."""
        return MemoryClientEndpoint(self, name)

    def flush(self, rounds: int = 100_000) -> None:
        """Move bytes on all connections until nothing moves.

        Raises:
            RuntimeError: Something still does after so many rounds.
        """
        quiet = 0
        for _ in range(rounds):
            # Twice: what was put off in a quiet round may still move something.
            quiet = 0 if self._pump() else quiet + 1
            if quiet == 2:
                return
        raise RuntimeError(f"still moving after {rounds} rounds")

    def _pump(self) -> bool:
        before = len(self.pairs)
        moved = [pair.pump() for pair in tuple(self.pairs)]
        opened = len(self.pairs) > before
        self.pairs = [p for p in self.pairs if p.server.connected or p.client.connected]
        return opened or any(moved)

    def _connect(self, name: str, factory: IProtocolFactory) -> IProtocol:
        port = self.ports.get(name)
        if port is None:
            raise ConnectionRefusedError(f"nobody listens on {name!r}")
        client = factory.buildProtocol(MemoryAddress(name))
        if client is None:
            raise NoProtocol()
        server = port.factory.buildProtocol(MemoryAddress("client"))
        # As with sockets: the client's connection was made, and is closed.
        pair = MemoryPair(server or Protocol(), client, clock=self._clock, **self._options)
        pair.server.name = name
        self.pairs.append(pair)
        pair.connect()
        if server is None:
            pair.server.loseConnection()
        return client


@implementer(IListeningPort)
class MemoryPort:
    """Listens on a name of a `MemoryNetwork`; connections stay when it stops.

    Args:
        network: Where.
        name: Under which name.
        factory: Makes the servers' protocols.
    """

    def __init__(self, network: MemoryNetwork, name: str, factory: Any) -> None:
        self.network = network
        self.name = name
        self.factory = factory

    def startListening(self) -> None:
        """Begin.

        Raises:
            CannotListenError: Somebody does already.
        """
        if self.name in self.network.ports:
            raise CannotListenError(None, self.name, "somebody listens there")
        self.factory.doStart()
        self.network.ports[self.name] = self

    def stopListening(self) -> Deferred[None]:
        """End; the Deferred has fired."""
        if self.network.ports.get(self.name) is self:
            del self.network.ports[self.name]
            self.factory.doStop()
        return succeed(None)

    def getHost(self) -> MemoryAddress:
        """Return the name as an address."""
        return MemoryAddress(self.name)


@implementer(IStreamServerEndpoint)
class MemoryServerEndpoint:
    """Listens on a name; see `MemoryNetwork.server_endpoint`."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; the Deferred has fired, with the port or with ``CannotListenError``."""
        port = MemoryPort(self._network, self._name, protocolFactory)
        return execute(port.startListening).addCallback(lambda _: port)


@implementer(IStreamClientEndpoint)
class MemoryClientEndpoint:
    """Connects to a name; see `MemoryNetwork.client_endpoint`."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; the Deferred has fired, with the protocol or with ``ConnectError``."""
        return execute(self._network._connect, self._name, protocolFactory)
