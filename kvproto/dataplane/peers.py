"""Other services on the same engine: whether they can be reached, and so are named to clients.

The SDK spreads its connections over all servers that the cluster's configuration names, and sends
each key to one of them.  A peer that is gone must not be named for long; one that comes is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from kvproto.base.log import make_logger

__all__ = ["PeerWatch"]

log = make_logger()

INTERVAL_S = 1.0
TIMEOUT_S = 1.5

Peer = tuple[str, int]


class PeerWatch(Service):
    """Connects to each peer now and then, and says which of them answer.

    Args:
        peers: Host and port of each.
        reactor: For connections and time.
        changed: Called with those that answer, in the given order, when these are others.
        endpoint: Makes the endpoint of a peer; the usual one when None.
    """

    name = "peers"

    def __init__(
        self,
        peers: Sequence[Peer],
        reactor: Any,
        changed: Callable[[tuple[Peer, ...]], object],
        endpoint: Callable[[Peer], IStreamClientEndpoint] | None = None,
    ) -> None:
        self._reactor = reactor
        self._changed = changed
        self._endpoint = endpoint or self._usual_endpoint
        self._there = dict.fromkeys(peers, False)
        self._calls: dict[Peer, IDelayedCall] = {}
        self._attempts: dict[Peer, Deferred[Any]] = {}

    def change(self, peers: Sequence[Peer]) -> None:
        """Look at these from now on; those that were looked at before stay what they are."""
        before = self._there
        self._there = {peer: before.get(peer, False) for peer in peers}
        for peer in before.keys() - self._there.keys():
            if peer in self._calls:
                self._calls.pop(peer).cancel()
        if self.running:
            for peer in self._there.keys() - before.keys():
                if peer not in self._attempts:
                    self._look(peer)
        self._tell()

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        for peer in self._there:
            self._look(peer)

    def stopService(self) -> None:
        """Stop looking."""
        super().stopService()
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
        for attempt in list(self._attempts.values()):
            attempt.cancel()

    def _usual_endpoint(self, peer: Peer) -> IStreamClientEndpoint:
        host, port = peer
        if isIPAddress(host):
            return TCP4ClientEndpoint(self._reactor, host, port, timeout=TIMEOUT_S)
        if isIPv6Address(host):
            return TCP6ClientEndpoint(self._reactor, host, port, timeout=TIMEOUT_S)
        return HostnameEndpoint(self._reactor, host.encode(), port, timeout=TIMEOUT_S)

    def _look(self, peer: Peer) -> None:
        self._calls.pop(peer, None)
        factory = Factory.forProtocol(_Probe)
        factory.noisy = False
        attempt: Deferred[Any] = self._endpoint(peer).connect(factory)
        self._attempts[peer] = attempt
        attempt.addCallbacks(lambda _: True, lambda _: False)
        attempt.addCallback(self._looked, peer)
        attempt.addErrback(lambda failure: log.failure("a peer was lost", failure=failure))

    def _looked(self, there: bool, peer: Peer) -> None:
        self._attempts.pop(peer, None)
        if not self.running or peer not in self._there:
            return
        self._calls[peer] = self._reactor.callLater(INTERVAL_S, self._look, peer)
        if there != self._there[peer]:
            self._there[peer] = there
            host, port = peer
            if there:
                log.info("peer {host}:{port} answers", host=host, port=port)
            else:
                log.info(
                    "peer {host}:{port} does not answer: clients are no longer told of it",
                    host=host,
                    port=port,
                )
            self._tell()

    def _tell(self) -> None:
        self._changed(tuple(one for one, answers in self._there.items() if answers))


class _Probe(Protocol):
    """Leaves at once."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.loseConnection()
