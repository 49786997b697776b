"""Handshakes of every size, over real TCP, as server and as client."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from kvproto.testing.certificates import (
    ca_names,
    client_identity,
    deep_server_identity,
    server_identity,
)
from kvproto.testing.contexts import TLS12, TLS13, client_context, server_context
from tests.integration.tls_echo import Asker, Echo, EchoTestCase, reactor
from tests.tls.wired import STOCK

STALL_S = 1.0
"""How long a stock handshake is watched; on loopback a good one takes 5 ms."""


def servers() -> list[tuple[str, SSL.Context, SSL.Context]]:
    """Return what makes a server's flight large: name, its context, its clients' context."""
    cases = []
    for version in (TLS12, TLS13):
        plain = client_context(version)
        for size in (9_000, 33_000, 60_000, 90_000, 102_000):
            context = server_context(version, server_identity(size))
            cases.append((f"{size} bytes", context, plain))
        cases.append(("30 intermediates", server_context(version, deep_server_identity()), plain))
        names = server_context(version, clients=True, names=ca_names(50_000))
        cases.append(("50 KB of CA names", names, client_context(version, client_identity())))
    return cases


def clients() -> list[tuple[str, SSL.Context, SSL.Context]]:
    """Return what makes a client's flight large, in the same form."""
    cases = []
    for version in (TLS12, TLS13):
        verifying = server_context(version, clients=True)
        for size in (33_000, 60_000, 102_000):
            show = client_context(version, client_identity(size=size))
            cases.append((f"client with {size} bytes", verifying, show))
    return cases


class TCPSizeTests(EchoTestCase):
    """KVTLSProtocol on both ends."""

    def test_all_sizes(self) -> Deferred[list[bytes]]:
        """Every handshake ends, and an echo follows, on TLS 1.2 and 1.3."""
        answers = []
        for _name, server, client in servers() + clients():
            port, _accepted = self.listen(server)
            answers.append(self.ask(port, client).answered)
        done: Deferred[list[bytes]] = gatherResults(answers, consumeErrors=True)
        return done.addCallback(lambda all_answers: self.assertEqual(set(all_answers), {b"hello"}))


class StockStallTests(EchoTestCase):
    """The same handshakes with stock TLS on the sending end: expected to stall.

    When one of these fails, Twisted has mended it: say so in
    ``docs/explanation/stock-twisted-tls.md`` and take the case out.
    """

    def test_stock_server_stalls(self) -> Deferred[None]:
        """A stock server's flight above 32 KiB never arrives."""
        askers: dict[tuple[str, int], Asker] = {}
        for number, (name, server, client) in enumerate(servers()):
            port, _accepted = self.listen(server, STOCK)
            askers[name, number] = self.ask(port, client)

        def check(_: object) -> None:
            answered = {name for (name, _), asker in askers.items() if asker.answered.called}
            self.assertEqual(answered, {"9000 bytes"})

        return deferLater(reactor, STALL_S, lambda: None).addCallback(check)

    def test_stock_client_stalls(self) -> Deferred[None]:
        """A stock client's certificate above 32 KiB never arrives."""
        servers_seen: list[list[Echo]] = []
        for _name, server, client in clients():
            port, accepted = self.listen(server)
            servers_seen.append(accepted)
            # Without a question: on TLS 1.3 a write would push the rest out.
            self.ask(port, client, STOCK, question=b"")

        def check(_: object) -> None:
            handshakes = [accepted[0].handshakes for accepted in servers_seen]
            self.assertEqual(handshakes, [0] * len(servers_seen))

        return deferLater(reactor, STALL_S, lambda: None).addCallback(check)
