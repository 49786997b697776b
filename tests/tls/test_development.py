"""Development credentials: made once, used again, renewed in time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.tls.contexts import ServerPolicy, build_client_context, build_server_context
from kvproto.tls.credentials import load_credentials
from kvproto.tls.development import (
    CA_LIFETIME,
    DAY,
    NODE_LIFETIME,
    DevelopmentCredentials,
    ensure_development_credentials,
)
from kvproto.tls.files import CredentialFiles
from tests.tls.material import NOW, folder, moment, shake_hands


class DevelopmentTests(SynchronousTestCase):
    """A state directory, from empty to old."""

    def setUp(self) -> None:
        self.state = folder(self) / "above" / "state"

    def ensure(self, now: float = NOW, hostname: str = "kv.example") -> DevelopmentCredentials:
        return ensure_development_credentials(self.state, now, hostname)

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.state / "development").iterdir()}

    def test_first_start(self) -> None:
        """CA and node certificate are made, good for this machine's names, EC P-256."""
        made = self.ensure()
        self.assertEqual(made.made, ("ca", "node"))
        found = load_credentials(made.files(), NOW)
        self.assertEqual(found.names, ("localhost", "kv.example", "127.0.0.1", "::1"))
        self.assertEqual(found.warnings, ())
        assert isinstance(found.key, ec.EllipticCurvePrivateKey)
        self.assertEqual(found.key.curve.name, "secp256r1")

    def test_extensions(self) -> None:
        """The CA signs nodes and nothing below them; a node signs nothing."""
        made = self.ensure()
        ca = load_credentials(CredentialFiles(None, client_ca=made.ca), NOW).client_cas[0]
        node = load_credentials(made.files(), NOW).chain[0]
        for certificate, signs in ((ca, True), (node, False)):
            self.assertEqual(certificate.not_valid_before_utc, moment(0) - timedelta(hours=1))
            found = {type(one.value): one for one in certificate.extensions}
            self.assertEqual(
                {kind for kind, one in found.items() if one.critical},
                {x509.BasicConstraints, x509.KeyUsage},
            )
            self.assertEqual(
                found[x509.BasicConstraints].value,
                x509.BasicConstraints(ca=signs, path_length=0 if signs else None),
            )
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
            self.assertEqual((usage.key_cert_sign, usage.crl_sign), (signs, signs))
            self.assertTrue(usage.digital_signature)
            self.assertFalse(
                usage.content_commitment
                or usage.key_encipherment
                or usage.data_encipherment
                or usage.key_agreement
            )
        self.assertEqual(
            node.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value,
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
        )
        self.assertEqual(
            list(node.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value),
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        )

    def test_handshake(self) -> None:
        """A client that trusts the CA accepts the node."""
        made = self.ensure()
        trust = load_credentials(CredentialFiles(None, client_ca=made.ca), NOW).client_cas
        server = build_server_context(load_credentials(made.files(), NOW), ServerPolicy())
        client = build_client_context(None, trust)
        self.assertEqual(
            shake_hands(SSL.Connection(server, None), SSL.Connection(client, None)), (None, None)
        )

    def test_modes(self) -> None:
        """Directories are 0700 and private keys 0600, whatever the umask."""
        self.addCleanup(os.umask, os.umask(0))
        made = self.ensure()
        for path, mode in (
            (self.state, 0o700),
            (self.state / "development", 0o700),
            (made.private_key, 0o600),
            (self.state / "development" / "ca.key", 0o600),
            (made.ca, 0o644),
        ):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode, path)

    def test_second_start(self) -> None:
        """The next start changes nothing."""
        self.ensure()
        before = self.contents()
        self.assertEqual(self.ensure(NOW + 300 * DAY).made, ())
        self.assertEqual(self.contents(), before)
        self.assertEqual(set(before), {"ca.pem", "ca.key", "node.pem", "node.key"})

    def test_node_renewed(self) -> None:
        """A node certificate in its last month is made anew under the same CA."""
        self.ensure()
        before = self.contents()
        later = NOW + NODE_LIFETIME - 20 * DAY
        made = self.ensure(later)
        self.assertEqual(made.made, ("node",))
        after = self.contents()
        self.assertEqual(before["ca.pem"], after["ca.pem"])
        self.assertNotEqual(before["node.pem"], after["node.pem"])
        self.assertGreater(load_credentials(made.files(), later).not_after, later + 300 * DAY)

    def test_all_renewed(self) -> None:
        """A CA in its last month is made anew, and the node certificate with it."""
        self.ensure()
        self.assertEqual(self.ensure(NOW + CA_LIFETIME - 20 * DAY).made, ("ca", "node"))

    def test_new_host_name(self) -> None:
        """A machine that was renamed gets a new node certificate."""
        self.ensure()
        made = self.ensure(hostname="other.example")
        self.assertEqual(made.made, ("node",))
        self.assertIn("other.example", load_credentials(made.files(), NOW).names)

    def test_odd_host_names(self) -> None:
        """A host name that no certificate can carry, or that is there already, is left out."""
        for hostname in ("", "localhost", "bücher.example"):
            made = self.ensure(hostname=hostname)
            self.assertEqual(
                load_credentials(made.files(), NOW).names, ("localhost", "127.0.0.1", "::1")
            )

    def test_unusable_files(self) -> None:
        """What is missing, cut off or of another pair is made again."""
        cut: Callable[[Path], object] = lambda path: path.write_bytes(path.read_bytes()[:100])  # noqa: E731
        for spoil in (Path.unlink, cut):
            for name, made in (
                ("node.pem", ("node",)),
                ("node.key", ("node",)),
                ("ca.pem", ("ca", "node")),
                ("ca.key", ("ca", "node")),
            ):
                self.ensure()
                spoil(self.state / "development" / name)
                self.assertEqual(self.ensure().made, made)
                self.assertEqual(self.ensure().made, ())

    def test_node_of_another_authority(self) -> None:
        """A node certificate that the CA did not sign is made again."""
        self.ensure()
        before = self.contents()
        (self.state / "development" / "ca.pem").unlink()
        self.ensure()
        for name in ("node.pem", "node.key"):
            (self.state / "development" / name).write_bytes(before[name])
        self.assertEqual(self.ensure().made, ("node",))

    def test_whose_directory(self) -> None:
        """The state directory may be a link, what is made in it may not; nobody else may write."""
        self.ensure()
        linked = self.state.with_name("linked")
        linked.symlink_to(self.state)
        self.assertEqual(ensure_development_credentials(linked, NOW, "kv.example").made, ())
        folder, elsewhere = self.state / "development", self.state / "elsewhere"
        self.state.chmod(0o770)
        self.assertIn("others may write", str(self.assertRaises(ConfigError, self.ensure)))
        self.state.chmod(0o700)
        folder.rename(elsewhere)
        folder.symlink_to(elsewhere)
        error = self.assertRaises(ConfigError, self.ensure)
        self.assertEqual(error.option, "--state-dir")
        self.assertIn(f"{folder} is a symbolic link", str(error))

    def test_directory_cannot_be_made(self) -> None:
        """A state directory that is a file is an error that names the option."""
        self.state.parent.mkdir()
        self.state.write_bytes(b"")
        error = self.assertRaises(ConfigError, self.ensure)
        self.assertIn("--state-dir: ", str(error))
        self.assertIn("state", str(error))
