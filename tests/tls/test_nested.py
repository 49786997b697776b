"""TLS inside TLS: our protocol on a transport that is not a socket but TLS itself."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.contexts import client_context, server_context
from kvproto.testing.transport import MemoryPair
from kvproto.tls import KVTLSFactory
from tests.tls.wired import STOCK, App, creator

MUCH = 1_000_000
"""Bytes: so many that the inner TLS has asked the outer one to say when it is full."""


class NestedTests(SynchronousTestCase):
    """Two layers of TLS on one wire."""

    def nested(self, outer: type[TLSMemoryBIOFactory]) -> tuple[App, App, MemoryPair]:
        """Return the applications of a server and a client inside two layers, and the wire."""
        clock = Clock()
        server, client = App(), App()

        def layers(app: App, tls: Any, is_client: bool) -> Any:
            inner = KVTLSFactory(creator(tls), is_client, Factory.forProtocol(lambda: app), clock)
            return outer(creator(tls), is_client, inner, clock).buildProtocol(None)

        pair = MemoryPair(
            layers(server, server_context(None), False),
            layers(client, client_context(None), True),
            clock=clock,
        )
        pair.connect()
        pair.flush()
        return server, client, pair

    def test_closes_after_much(self) -> None:
        """The end of a long conversation is not held up by one layer waiting for the other."""
        for outer in (KVTLSFactory, STOCK):
            for who in ("server", "client"):
                server, client, pair = self.nested(outer)
                server.echo()
                client.tls.write(b"x" * MUCH)
                pair.flush()
                self.assertEqual(len(client.received), MUCH)
                (server if who == "server" else client).tls.loseConnection()
                # No time passes: no deadline does what the layers should have done.
                pair.flush()
                for app in (server, client):
                    self.assertEqual([r.type for r in app.reasons], [ConnectionDone], (outer, who))

    def test_last_words(self) -> None:
        """Everything that was written before closing arrives through both layers."""
        for outer in (KVTLSFactory, STOCK):
            server, client, pair = self.nested(outer)
            server.tls.write(b"x" * MUCH)
            server.tls.loseConnection()
            pair.flush()
            self.assertEqual(len(client.received), MUCH)
            self.assertEqual([r.type for r in client.reasons], [ConnectionDone])
