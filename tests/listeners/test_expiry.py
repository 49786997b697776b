"""When a peer's certificate ends."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners.expiry import certificate_expiry
from kvproto.testing.certificates import client_identity


class ExpiryTests(SynchronousTestCase):
    """The not-after of a chain's leaf."""

    def test_no_certificate(self) -> None:
        """Who showed none never expires."""
        self.assertIsNone(certificate_expiry(()))

    def test_unreadable(self) -> None:
        """What cannot be read does not end a connection that OpenSSL accepted."""
        self.assertIsNone(certificate_expiry((b"no certificate",)))

    def test_leaf_decides(self) -> None:
        """The leaf's not-after counts, whatever comes after it in the chain."""
        leaf = client_identity("alice")
        expires = certificate_expiry((leaf.der, b"no certificate"))
        self.assertEqual(expires, leaf.certificate.not_valid_after_utc.timestamp())
