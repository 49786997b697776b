"""What CPython makes of the attributes of a protocol object."""

from __future__ import annotations

import gc

from OpenSSL.SSL import TLS1_2_VERSION, TLS1_3_VERSION
from twisted.trial.unittest import SynchronousTestCase

from kvproto.tls import KVTLSFactory, KVTLSProtocol
from tests.tls.wired import Wired

MANY = 60
"""More connections at once than a class may have attributes side by side."""


def has_dictionary(protocol: KVTLSProtocol) -> bool:
    """Return whether CPython keeps its attributes in a dictionary (looking does not make one)."""
    return any(isinstance(what, dict) for what in gc.get_referents(protocol))


class SideBySideTests(SynchronousTestCase):
    """Attributes of a connection lie side by side: faster, smaller, fewer lines of the cache.

    CPython decides by what it has seen of the class when there were few instances, so each test
    has a class of its own, and many connections begin before the first goes on.
    """

    def check(self, version: int) -> None:
        """Let many connections do what they usually do."""

        class Fresh(KVTLSProtocol):
            pass

        class FreshFactory(KVTLSFactory):
            protocol = Fresh
            serves = True
            handshake_timeout = None

        many = [Wired(FreshFactory, version=version).connect() for _ in range(MANY)]
        for wired in many:
            wired.server_app.echo()
            wired.flush()
            wired.client.write(b"x" * 100_000)
            wired.flush()
            wired.clock.advance(1)
            wired.flush()
            self.assertEqual(len(wired.client_app.received), 100_000)
        self.assertFalse(any(has_dictionary(wired.server) for wired in many))

    def test_tls12(self) -> None:
        """With TLS 1.2."""
        self.check(TLS1_2_VERSION)

    def test_tls13(self) -> None:
        """With TLS 1.3."""
        self.check(TLS1_3_VERSION)

    def test_can_be_told(self) -> None:
        """The question itself has both answers."""
        protocol = Wired().server
        self.assertFalse(has_dictionary(protocol))
        for number in range(40):
            setattr(protocol, f"more_{number}", None)
        self.assertTrue(has_dictionary(protocol))
