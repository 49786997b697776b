"""Kinds of failed handshakes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners.faults import HANDSHAKE_FAULTS, handshake_fault


class FaultTests(SynchronousTestCase):
    """From the words of OpenSSL, and ours, to a label."""

    def test_table(self) -> None:
        """What an operator looks at differently is told apart; anything is of a fixed set."""
        for words, kind in (
            ("HTTP request on a TLS port", "plaintext"),
            ("no TLS on a TLS port (first byte 0x80)", "plaintext"),
            ("no TLS version in common", "no_common_version"),
            ("the client showed no certificate", "no_certificate"),
            ("tlsv1 alert unknown ca", "alert_unknown_ca"),
            ("ssl/tls alert bad certificate", "alert"),
            ("unable to get local issuer certificate", "unknown_ca"),
            ("self-signed certificate in certificate chain", "unknown_ca"),
            ("certificate has expired", "certificate_expired"),
            ("certificate revoked", "certificate_revoked"),
            ("certificate signature failure", "certificate_refused"),
            ("no PROXY header", "proxy_header"),
            ("", "other"),
            ("something new\n{}", "other"),
        ):
            self.assertEqual(handshake_fault(words), kind, words)
            self.assertIn(kind, HANDSHAKE_FAULTS)
