"""Certificates made in memory are what they claim to be."""

from __future__ import annotations

from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import (
    Authority,
    ca_names,
    client_identity,
    deep_server_identity,
    root_authority,
    server_identity,
)


class SizeTests(SynchronousTestCase):
    """A wanted size is met, so that handshake flights are as large as a test says."""

    def test_padded_leaf(self) -> None:
        """A leaf has the DER size asked for, but for what its signatures differ in length."""
        for size in (9_000, 33_000, 60_000, 90_000, 102_000):
            # Each of two numbers is a byte shorter once in 256 times, two once in 65,536.
            self.assertApproximates(server_identity(size).der_size, size, 8)

    def test_small_leaf(self) -> None:
        """Without a size nothing is padded."""
        self.assertLess(client_identity().der_size, 700)

    def test_long_chain(self) -> None:
        """Thirty intermediates and a leaf of 2 KiB each make a chain of 62 KiB."""
        identity = deep_server_identity()
        self.assertEqual(len(identity.intermediates), 30)
        self.assertApproximates(identity.der_size, 31 * 2048, 31 * 2)

    def test_many_authority_names(self) -> None:
        """The list of names fills at least the size asked for."""
        names = [one.certificate.subject.public_bytes() for one in ca_names()]
        self.assertGreaterEqual(sum(len(name) + 2 for name in names), 50_000)


class IssuingTests(SynchronousTestCase):
    """Signatures, names and keys fit together."""

    def test_chain_is_signed_upwards(self) -> None:
        """Each certificate is issued by the next, the last one by the root."""
        identity = deep_server_identity(3, 0)
        chain = [identity.certificate, *identity.intermediates, root_authority().certificate]
        for lower, upper in pairwise(chain):
            lower.verify_directly_issued_by(upper)

    def test_names(self) -> None:
        """DNS names and addresses end up in the right kind of alternative name."""
        leaf = Authority.root().issue("node", ("node.example", "192.0.2.1")).certificate
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["node.example"])
        self.assertEqual([str(a) for a in names.get_values_for_type(x509.IPAddress)], ["192.0.2.1"])

    def test_encrypted_key(self) -> None:
        """A key with a passphrase opens with it and with nothing else."""
        identity = client_identity()
        pem = identity.encrypted_key_pem(b"secret")
        key = serialization.load_pem_private_key(pem, b"secret")
        self.assertEqual(key.public_key(), identity.certificate.public_key())
        self.assertRaises(ValueError, serialization.load_pem_private_key, pem, b"other")

    def test_cached(self) -> None:
        """The same identity is made once per process."""
        self.assertIs(server_identity(9_000), server_identity(9_000))
