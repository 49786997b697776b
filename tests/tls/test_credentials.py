"""Every bad credential file, and the sentence that the operator reads."""

from __future__ import annotations

import base64
import datetime
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest import SkipTest

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import CredentialError
from kvproto.testing.certificates import Authority, deep_server_identity, root_authority
from kvproto.tls.checks import MAX_CERTIFICATE_MESSAGE, certificate_message_size, subject_of
from kvproto.tls.contexts import ServerPolicy
from kvproto.tls.credentials import Credentials, load_credentials
from kvproto.tls.files import (
    MAX_FILE,
    CredentialFiles,
    Options,
    Purpose,
    read_files,
    read_together,
)
from kvproto.tls.generation import Generation, build_generation
from tests.tls.material import NOW, credentials_of, crl_of, folder, moment, write_identity

PSS = Path(__file__).parent / "pss"
"""Made by ``openssl genpkey -algorithm RSA-PSS``: cryptography cannot make such a key."""

NAMES = ("localhost", "127.0.0.1", "::1")
OTHER_USAGES = (
    "digital_signature",
    "content_commitment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def pem(key: object, passphrase: bytes = b"", form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    """Return a private key as PEM."""
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, protection)  # type: ignore[attr-defined, no-any-return]


def self_signed(key: object, **options: object) -> bytes:
    """Return the PEM of a certificate for a key of any kind."""
    odd = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    name = options.get("subject", odd)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)  # type: ignore[arg-type]
        .issuer_name(name)  # type: ignore[arg-type]
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(7)
        .not_valid_before(moment(-1))
        .not_valid_after(moment(90))
    )
    for extension in options.get("extensions", ()):  # type: ignore[attr-defined]
        builder = builder.add_extension(extension, critical=False)
    rsa_or_ec = isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    algorithm = hashes.SHA256() if rsa_or_ec or isinstance(key, dsa.DSAPrivateKey) else None
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


class CredentialsCase(SynchronousTestCase):
    """A directory with good files, to be spoiled."""

    def setUp(self) -> None:
        self.directory = folder(self)
        identity = root_authority().issue("node", NAMES, not_after=moment(90))
        self.files = write_identity(self.directory, identity)
        self.chain = self.directory / "chain.pem"
        self.key = self.directory / "key.pem"

    def refused(self, files: CredentialFiles | None = None) -> CredentialError:
        return cast(
            CredentialError,
            self.assertRaises(CredentialError, load_credentials, files or self.files, NOW),
        )

    def check(self, option: str, path: Path, *phrases: str) -> None:
        """The error names the option, the file and each phrase."""
        error = self.refused()
        self.assertEqual((error.option, error.path), (option, path))
        self.assertIn(f"{option} {path}: ", str(error))
        for phrase in phrases:
            self.assertIn(phrase, str(error))


class GoodTests(CredentialsCase):
    """What is read from files without fault."""

    def test_values(self) -> None:
        """Chain, key, fingerprint, names and end come from the files."""
        found = load_credentials(self.files, NOW)
        leaf = x509.load_pem_x509_certificate(self.chain.read_bytes())
        self.assertEqual(found.chain, (leaf,))
        self.assertEqual(found.fingerprint, leaf.fingerprint(hashes.SHA256()).hex())
        self.assertEqual(found.names, NAMES)
        self.assertEqual(found.not_after, leaf.not_valid_after_utc.timestamp())

    def test_key_in_the_certificate_file(self) -> None:
        """One file may hold both chain and key."""
        self.chain.write_bytes(self.chain.read_bytes() + self.key.read_bytes())
        found = load_credentials(CredentialFiles(self.chain), NOW)
        self.assertEqual(len(found.chain), 1)

    def test_long_chain(self) -> None:
        """A chain with thirty intermediates is read in its order."""
        identity = deep_server_identity()
        found = load_credentials(write_identity(self.directory, identity), NOW)
        self.assertEqual(found.chain, (identity.certificate, *identity.intermediates))

    def test_encrypted_keys(self) -> None:
        """A passphrase file opens PKCS#8 and traditional encrypted keys."""
        key = ec.generate_private_key(ec.SECP256R1())
        self.chain.write_bytes(root_authority().issue("node", NAMES, key=key).chain_pem)
        secret = self.directory / "secret"
        secret.write_bytes(b"open sesame\nsecond line\n")
        files = replace(self.files, passphrase=secret)
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            self.key.write_bytes(pem(key, b"open sesame", form))
            self.assertEqual(len(load_credentials(files, NOW).chain), 1)

    def test_text_around_the_blocks(self) -> None:
        """Text that tools print before a certificate does no harm."""
        self.chain.write_bytes(b"Certificate:\n    Data:\n" + self.chain.read_bytes() + b"bye\n")
        self.assertEqual(len(load_credentials(self.files, NOW).chain), 1)

    def test_windows_line_ends(self) -> None:
        """Files with CR LF are read."""
        self.chain.write_bytes(self.chain.read_bytes().replace(b"\n", b"\r\n"))
        self.assertEqual(len(load_credentials(self.files, NOW).chain), 1)

    def test_key_is_not_in_the_representation(self) -> None:
        """Printing credentials shows no key."""
        self.assertNotIn("key=", repr(load_credentials(self.files, NOW)))

    def test_digest_follows_content(self) -> None:
        """The digest changes with any file and only then."""
        before = load_credentials(self.files, NOW).digest
        self.assertEqual(load_credentials(self.files, NOW).digest, before)
        self.key.write_bytes(self.key.read_bytes() + b"\n")
        self.assertNotEqual(load_credentials(self.files, NOW).digest, before)

    def test_client_without_certificate(self) -> None:
        """Credentials of a client may have trust only."""
        path = self.directory / "ca.pem"
        path.write_bytes(root_authority().certificate_pem)
        found = load_credentials(CredentialFiles(None, client_ca=path), NOW)
        self.assertEqual((found.chain, found.key, found.fingerprint), ((), None, ""))
        self.assertEqual(found.client_cas, (root_authority().certificate,))

    def test_each_file_is_read_once(self) -> None:
        """A file that is named twice is read once."""
        both = CredentialFiles(self.chain, self.chain, client_ca=self.chain)
        self.assertEqual(list(read_files(both)), [self.chain])


class FileTests(CredentialsCase):
    """Files that cannot be read."""

    def test_missing(self) -> None:
        """A missing file is named."""
        self.chain.unlink()
        self.check("certificate", self.chain, "there is no such file")

    def test_dangling_link(self) -> None:
        """A link to nowhere is a missing file."""
        self.chain.unlink()
        self.chain.symlink_to("nowhere")
        self.check("certificate", self.chain, "there is no such file")

    def test_directory(self) -> None:
        """A directory is no file."""
        self.key.unlink()
        self.key.mkdir()
        self.check("private_key", self.key, "is a directory")

    def test_unreadable(self) -> None:
        """A file without permission says so."""
        denied = PermissionError(13, "Permission denied")

        def refuse(*_args: object) -> int:
            raise denied

        self.patch(os, "open", refuse)
        self.check("certificate", self.chain, "may not be read by this user")

    def test_named_pipe(self) -> None:
        """A pipe is refused at once and never waited for."""
        self.chain.unlink()
        os.mkfifo(self.chain)
        self.check("certificate", self.chain, "is not a regular file")

    def test_name_that_no_file_can_have(self) -> None:
        """Any other failure of the system is told in its own words."""
        long = self.directory / ("x" * 5000)
        error = self.refused(replace(self.files, certificate=long))
        self.assertIn("cannot be read: File name too long", str(error))

    def test_huge(self) -> None:
        """A file of many megabytes is not taken into memory."""
        with self.chain.open("wb") as file:
            file.truncate(MAX_FILE + 1)
        self.check("certificate", self.chain, "is larger than 16 MiB")

    def test_empty(self) -> None:
        """An empty file says so."""
        self.key.write_bytes(b"")
        self.check("private_key", self.key, "is empty")

    def test_options_are_spelt_as_given(self) -> None:
        """Errors use the spelling of whoever named the file."""
        self.chain.unlink()
        error = self.refused(replace(self.files, options=Options(certificate="certificate=")))
        self.assertIn("certificate= ", str(error))


class PEMTests(CredentialsCase):
    """Files that are no PEM or not whole."""

    def test_garbage(self) -> None:
        """Garbage is no PEM."""
        for path, option in ((self.chain, "certificate"), (self.key, "private_key")):
            good = path.read_bytes()
            path.write_bytes(b"garbage\n")
            self.check(option, path, "is not PEM")
            path.write_bytes(good)

    def test_der(self) -> None:
        """DER is recognised and its conversion named."""
        leaf = x509.load_pem_x509_certificate(self.chain.read_bytes())
        self.chain.write_bytes(leaf.public_bytes(Encoding.DER))
        self.check("certificate", self.chain, "is DER", "openssl x509 -inform der")

    def test_cut_off(self) -> None:
        """A half-written certificate or key is recognised wherever it ends in a block."""
        for path, option in ((self.chain, "certificate"), (self.key, "private_key")):
            good = path.read_bytes()
            for keep in (40, len(good) // 2, len(good) - 10):
                path.write_bytes(good[:keep])
                self.check(option, path, "half written or cut off")
            path.write_bytes(good)

    def test_cut_off_in_the_middle(self) -> None:
        """A block without an end before another block is recognised."""
        good = self.chain.read_bytes()
        self.chain.write_bytes(good[:200] + b"\n" + good)
        self.check("certificate", self.chain, "half written or cut off")

    def test_no_certificate(self) -> None:
        """A key file is no certificate file."""
        self.chain.write_bytes(self.key.read_bytes())
        self.check("certificate", self.chain, "holds no certificate")

    def test_no_key(self) -> None:
        """A certificate file is no key file."""
        self.key.write_bytes(self.chain.read_bytes())
        self.check("private_key", self.key, "holds no private key")

    def test_spoilt_base64(self) -> None:
        """A block that holds something else does not parse."""
        spoilt = b"-----BEGIN %s-----\nAAAA\n-----END %s-----\n"
        self.key.write_bytes(spoilt % (b"PRIVATE KEY", b"PRIVATE KEY"))
        self.check("private_key", self.key, "does not parse")
        self.chain.write_bytes(self.chain.read_bytes() + spoilt % (b"CERTIFICATE", b"CERTIFICATE"))
        self.check("certificate", self.chain, "certificate 2 in it does not parse")


class KeyTests(CredentialsCase):
    """Keys that cannot be used with the certificate."""

    def test_other_key(self) -> None:
        """A key of another certificate is told from a wrong order."""
        self.key.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
        self.check("private_key", self.key, f"does not fit the certificate {self.chain}")

    def test_encrypted_without_passphrase(self) -> None:
        """An encrypted key without passphrase names the option, and nobody is asked."""
        key = ec.generate_private_key(ec.SECP256R1())
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            self.key.write_bytes(pem(key, b"secret", form))
            self.check("private_key", self.key, "is encrypted", "passphrase")

    def test_wrong_passphrase(self) -> None:
        """A wrong passphrase is the fault of its file."""
        self.key.write_bytes(pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
        secret = self.directory / "secret"
        for content, phrase in ((b"guess\n", "does not open"), (b"\nsecret\n", "is empty")):
            secret.write_bytes(content)
            self.files = replace(self.files, passphrase=secret)
            self.check("passphrase", secret, phrase)

    def test_dsa(self) -> None:
        """A key that TLS has no use for is named."""
        self.key.write_bytes(pem(dsa.generate_private_key(1024)))
        self.check("private_key", self.key, "is no RSA, EC, Ed25519, Ed448 or ML-DSA key")


class ServedTests(CredentialsCase):
    """What OpenSSL serves, is served."""

    def serve(self) -> Generation:
        """Build a generation, which shakes hands with itself."""
        generation = build_generation(1, self.files, ServerPolicy(), NOW)
        assert generation is not None
        return generation

    def write(self, *certificates: x509.Certificate) -> None:
        self.chain.write_bytes(
            b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        )

    def cross_signed(
        self, authority: Authority, by: Authority, days: float = 60
    ) -> x509.Certificate:
        """Return a second certificate of a CA, signed by another one."""
        return (
            x509.CertificateBuilder()
            .subject_name(authority.certificate.subject)
            .issuer_name(by.certificate.subject)
            .public_key(authority.key.public_key())
            .serial_number(77)
            .not_valid_before(moment(-1))
            .not_valid_after(moment(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(by.key, hashes.SHA256())
        )

    def test_rsa_pss(self) -> None:
        """A key for RSA-PSS only, with its certificate."""
        for name in ("leaf.key", "leaf.pem"):
            (self.directory / name).write_bytes((PSS / name).read_bytes())
        self.files = CredentialFiles(self.directory / "leaf.pem", self.directory / "leaf.key")
        self.assertEqual(self.serve().names, ("localhost", "127.0.0.1"))
        secret = self.directory / "secret"
        secret.write_bytes(b"secret\n")
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, (PSS / "leaf.key").read_bytes())
        (self.directory / "leaf.key").write_bytes(
            crypto.dump_privatekey(crypto.FILETYPE_PEM, key, "aes-256-cbc", b"secret")
        )
        self.files = replace(self.files, passphrase=secret)
        self.serve()

    def test_rsa_pss_and_plain(self) -> None:
        """A key of one kind and a certificate of the other, with the same numbers."""
        plain = load_pem_private_key((PSS / "leaf.key").read_bytes(), None)
        self.key.write_bytes(pem(plain))
        self.chain.write_bytes((PSS / "leaf.pem").read_bytes())
        self.check("private_key", self.key, "is for RSA-PSS, the key plain RSA")
        self.key.write_bytes((PSS / "leaf.key").read_bytes())
        self.chain.write_bytes(self_signed(plain))
        self.check("private_key", self.key, "is for plain RSA, the key RSA-PSS")

    def test_ml_dsa(self) -> None:
        """Where the OpenSSL at hand has ML-DSA; TLS 1.2 has no way to use it, and that is said."""
        try:
            from cryptography.hazmat.primitives.asymmetric import mldsa

            key = mldsa.MLDSA65PrivateKey.generate()
        except (ImportError, UnsupportedAlgorithm):
            raise SkipTest("this cryptography has no ML-DSA") from None
        self.key.write_bytes(pem(key))
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        self.chain.write_bytes(self_signed(key, extensions=[names]))
        (warning,) = self.serve().warnings
        self.assertIn("only clients with TLS 1.3 and ML-DSA", warning)

    def test_duplicate_leaf(self) -> None:
        """A certificate that is there twice is sent once, and the operator told."""
        leaf = root_authority().intermediate("upper").issue("node", NAMES, not_after=moment(90))
        self.key.write_bytes(leaf.key_pem)
        self.write(leaf.certificate, leaf.certificate, *leaf.intermediates)
        generation = self.serve()
        self.assertEqual(generation.credentials.chain, (leaf.certificate, *leaf.intermediates))
        self.assertIn("holds a certificate twice", " ".join(generation.warnings))

    def test_cross_signed(self) -> None:
        """A second certificate of an issuer is sent along, before or behind the first."""
        other = Authority.root("other")
        middle = root_authority().intermediate("middle")
        leaf = middle.issue("node", NAMES, not_after=moment(90))
        self.key.write_bytes(leaf.key_pem)
        extra = self.cross_signed(middle, other)
        for chain in (
            (leaf.certificate, middle.certificate, extra),
            (leaf.certificate, extra, middle.certificate),
            (leaf.certificate, middle.certificate, extra, other.certificate),
        ):
            self.write(*chain)
            self.assertEqual(self.serve().credentials.chain, chain)

    def test_expired_cross_signed(self) -> None:
        """One that has expired is no fault of the path; the operator is told."""
        other = Authority.root("other")
        middle = root_authority().intermediate("middle")
        leaf = middle.issue("node", NAMES, not_after=moment(90))
        self.key.write_bytes(leaf.key_pem)
        self.write(leaf.certificate, middle.certificate, self.cross_signed(middle, other, 5))
        later = moment(7).timestamp()
        generation = build_generation(1, self.files, ServerPolicy(), later)
        assert generation is not None
        self.assertIn("which is sent along, has expired", " ".join(generation.warnings))
        self.assertGreater(generation.not_after, later)

    def test_trusted_certificate(self) -> None:
        """OpenSSL's own form of certificates is read, without what it says about trust."""
        der = x509.load_pem_x509_certificate(self.chain.read_bytes()).public_bytes(Encoding.DER)
        trusted = base64.encodebytes(der + bytes.fromhex("300c300a06082b06010505070301"))
        block = b"-----BEGIN TRUSTED CERTIFICATE-----\n%b-----END TRUSTED CERTIFICATE-----\n"
        self.chain.write_bytes(block % trusted)
        self.assertEqual(self.serve().names, NAMES)
        ca = self.directory / "ca.pem"
        anchor = root_authority().certificate.public_bytes(Encoding.DER)
        ca.write_bytes(block % base64.encodebytes(anchor))
        found = load_credentials(replace(self.files, client_ca=ca), NOW)
        self.assertEqual(found.client_cas, (root_authority().certificate,))
        self.assertIn("is not looked at", " ".join(map(str, found.warnings)))
        for broken in (b"", b"\x30", b"\x30\x82\x10\x00short"):
            self.chain.write_bytes(block % base64.encodebytes(broken))
            self.check("certificate", self.chain, "does not parse")

    def test_passphrase_with_a_mark(self) -> None:
        """Byte order marks that an editor has put in front; and keys encrypted with one."""
        key = load_pem_private_key(self.key.read_bytes(), None)
        secret = self.directory / "secret"
        self.files = replace(self.files, passphrase=secret)
        for content in (
            b"\xef\xbb\xbfs\xc3\xa9cret\r\n",
            "s\xe9cret\r\n".encode("utf-16"),
            b"\xfe\xff" + "s\xe9cret".encode("utf-16-be"),
        ):
            self.key.write_bytes(pem(key, "s\xe9cret".encode()))
            secret.write_bytes(content)
            self.serve()
        self.key.write_bytes(pem(key, b"\xef\xbb\xbfsecret"))
        secret.write_bytes(b"\xef\xbb\xbfsecret\n")
        self.serve()
        secret.write_bytes(b"\xef\xbb\xbfguess\n")
        self.check("passphrase", secret, "does not open")
        secret.write_bytes(b"\xff\xfes")
        self.check("passphrase", secret, "does not open")

    def test_utf16(self) -> None:
        """PEM that was saved as UTF-16 is named as that."""
        self.chain.write_bytes(self.chain.read_bytes().decode().encode("utf-16"))
        self.check("certificate", self.chain, "is UTF-16 text")


class ChainTests(CredentialsCase):
    """Chains that clients would refuse."""

    def write_chain(self, *certificates: x509.Certificate) -> None:
        self.chain.write_bytes(
            b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        )

    def test_intermediates_swapped(self) -> None:
        """The pair that does not fit is named by number and name."""
        low = root_authority().intermediate("upper").intermediate("lower")
        leaf = low.issue("node", NAMES)
        self.key.write_bytes(leaf.key_pem)
        lower, upper = leaf.intermediates
        self.write_chain(leaf.certificate, upper, lower)
        self.check(
            "certificate",
            self.chain,
            "chain out of order",
            "certificate 2 (CN=upper) does not sign certificate 1 (CN=node)",
        )

    def test_leaf_last(self) -> None:
        """A chain that begins with the issuer says where the node's certificate is."""
        leaf = root_authority().intermediate("upper").issue("node", NAMES)
        self.key.write_bytes(leaf.key_pem)
        self.write_chain(*leaf.intermediates, leaf.certificate)
        self.check("certificate", self.chain, "belongs to certificate 2 (CN=node)", "first")

    def test_same_name_other_key(self) -> None:
        """An issuer of the right name and the wrong key is found out."""
        leaf = Authority.root("twin").issue("node", NAMES)
        self.key.write_bytes(leaf.key_pem)
        self.write_chain(leaf.certificate, Authority.root("twin").certificate)
        self.check("certificate", self.chain, "certificate 2 (CN=twin) does not sign")

    def test_issuer_is_no_ca(self) -> None:
        """A certificate that signs without being a CA is named."""
        middle = root_authority().issue("middle", NAMES)
        leaf = Authority(middle.certificate, middle.key, is_root=False).issue("node", NAMES)
        self.key.write_bytes(leaf.key_pem)
        self.write_chain(leaf.certificate, middle.certificate)
        self.check("certificate", self.chain, "certificate 2 (CN=middle)", "is no CA")

    def test_expired(self) -> None:
        """An expired certificate says until when it was valid, and what time it is here."""
        write_identity(
            self.directory,
            root_authority().issue("node", NAMES, not_before=moment(-9), not_after=moment(-2)),
        )
        ended = moment(-2).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.check("certificate", self.chain, f"has expired: it was valid until {ended}, now is")

    def test_not_yet_valid(self) -> None:
        """A certificate of the future says when it begins."""
        write_identity(self.directory, root_authority().issue("node", NAMES, not_before=moment(2)))
        begins = moment(2).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.check("certificate", self.chain, f"is not yet valid: it begins at {begins}")

    def test_expired_intermediate(self) -> None:
        """Any certificate of the chain must be valid; the error says which one is not."""
        identity = root_authority().intermediate("upper").issue("node", NAMES, not_after=moment(90))
        write_identity(self.directory, identity)
        error = self.assertRaises(
            CredentialError, load_credentials, self.files, moment(60).timestamp()
        )
        self.assertIn("certificate 2 (CN=upper) has expired", str(error))

    def test_largest_chain(self) -> None:
        """The largest chain that OpenSSL clients accept is served, one byte more is not."""
        room = MAX_CERTIFICATE_MESSAGE - 4 - 5
        found = None
        for size in range(room - 4, room + 1):
            identity = root_authority().issue("node", NAMES, size=size)
            if certificate_message_size((identity.certificate,)) <= MAX_CERTIFICATE_MESSAGE:
                found = load_credentials(write_identity(self.directory, identity), NOW)
        assert found is not None
        write_identity(self.directory, root_authority().issue("node", NAMES, size=room + 3))
        self.check("certificate", self.chain, "OpenSSL clients accept 102400", "drop")

    def test_usage(self) -> None:
        """A client's certificate cannot be served."""
        write_identity(
            self.directory,
            root_authority().issue("node", NAMES, usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        )
        self.check("certificate", self.chain, "forbids serverAuth")

    def test_usage_of_both(self) -> None:
        """Who is called and calls with one certificate needs it to allow both."""
        both = replace(self.files, purpose=Purpose.BOTH)
        for usage, word in (
            (ExtendedKeyUsageOID.CLIENT_AUTH, "serverAuth"),
            (ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth"),
        ):
            identity = root_authority().issue("node", NAMES, usages=[usage], not_after=moment(90))
            write_identity(self.directory, identity)
            error = self.assertRaises(CredentialError, load_credentials, both, NOW)
            self.assertIn(word, str(error))
        good = root_authority().issue("node", NAMES, not_after=moment(90))
        write_identity(self.directory, good)
        self.assertEqual(load_credentials(both, NOW).warnings, ())

    def test_any_usage(self) -> None:
        """The wildcard of usages, and no usages at all, allow serving."""
        for usages in ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], []):
            write_identity(self.directory, root_authority().issue("node", NAMES, usages=usages))
            self.assertEqual(len(load_credentials(self.files, NOW).chain), 1)

    def test_key_usage(self) -> None:
        """A certificate that may not sign a handshake is refused."""
        key = ec.generate_private_key(ec.SECP256R1())
        flags = dict.fromkeys(OTHER_USAGES, False)
        usage = x509.KeyUsage(key_encipherment=True, **flags)
        self.key.write_bytes(pem(key))
        self.chain.write_bytes(self_signed(key, extensions=[usage]))
        self.check("certificate", self.chain, "forbids digitalSignature")

    def test_short_rsa(self) -> None:
        """An RSA key that OpenSSL's security level refuses is named with its size."""
        key = rsa.generate_private_key(65537, 1024)
        self.key.write_bytes(pem(key))
        self.chain.write_bytes(self_signed(key))
        self.check("certificate", self.chain, "RSA key of 1024 bits", "2048")

    def test_sha1(self) -> None:
        """A SHA-1 signature is refused, except under a root's own certificate."""
        leaf, key, root = (SHA1 / name for name in ("leaf.pem", "leaf.key", "root.pem"))
        error = self.assertRaises(
            CredentialError, load_credentials, CredentialFiles(leaf, key), SHA1_TIME
        )
        self.assertIn("is signed with SHA1", str(error))
        ok = CredentialFiles(self.chain, self.key, client_ca=root)
        self.assertEqual(len(load_credentials(ok, NOW).client_cas), 1)


SHA1 = Path(__file__).resolve().parent / "sha1"
"""Made with OpenSSL: cryptography no longer signs with SHA-1.  Valid until 2078."""
SHA1_TIME = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC).timestamp()


class TrustTests(CredentialsCase):
    """Trust anchors and revocation lists."""

    def setUp(self) -> None:
        super().setUp()
        self.ca = self.directory / "ca.pem"
        self.crl = self.directory / "crl.pem"
        self.ca.write_bytes(root_authority().certificate_pem)
        self.crl.write_bytes(crl_of(root_authority()))
        self.files = replace(self.files, client_ca=self.ca)

    def with_crl(self, content: bytes) -> None:
        self.crl.write_bytes(content)
        self.files = replace(self.files, crl=self.crl)

    def test_garbage(self) -> None:
        """A CA file that does not parse is refused."""
        self.ca.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        self.check("client_ca", self.ca, "does not parse")

    def test_no_ca(self) -> None:
        """A file with leaves only holds no CA."""
        self.ca.write_bytes(root_authority().issue("node", NAMES).certificate_pem)
        self.check("client_ca", self.ca, "holds no CA", "CN=node")

    def test_leaf_among_cas(self) -> None:
        """A leaf in a bundle is left out, with a warning."""
        leaf = root_authority().issue("node", NAMES)
        self.ca.write_bytes(root_authority().certificate_pem + leaf.certificate_pem)
        found = load_credentials(self.files, NOW)
        self.assertEqual(found.client_cas, (root_authority().certificate,))
        text = [str(warning) for warning in found.warnings]
        self.assertIn("CN=node is no CA and is left out", text[-1])

    def test_expired_ca(self) -> None:
        """A file whose only CA has expired is refused; expired ones among others are told."""
        late = moment(31).timestamp()
        self.chain.write_bytes(
            (identity := root_authority().issue("node", NAMES, not_after=moment(90))).chain_pem
        )
        self.key.write_bytes(identity.key_pem)
        error = self.assertRaises(CredentialError, load_credentials, self.files, late)
        self.assertEqual(error.option, "client_ca")
        self.assertIn("has expired", str(error))

    def test_ca_in_its_last_days(self) -> None:
        """A CA in the last days of its life is announced: its clients end with it."""
        (warning,) = load_credentials(self.files, NOW + 25 * 86400).warnings
        self.assertIn(f"client_ca {self.ca}: CN=kvproto test CA expires in ", str(warning))

    def test_crl(self) -> None:
        """A current list of each CA is accepted."""
        self.with_crl(crl_of(root_authority()))
        self.assertEqual(len(load_credentials(self.files, NOW).crls), 1)
        other = Authority.root("other")
        self.ca.write_bytes(root_authority().certificate_pem + other.certificate_pem)
        # A file may hold the lists of several, and what they belong to.
        self.with_crl(crl_of(root_authority()) + other.certificate_pem + crl_of(other))
        self.assertEqual(len(load_credentials(self.files, NOW).crls), 2)

    def test_bad_crls(self) -> None:
        """Lists that are none, expired, foreign or missing are refused with the reason."""
        other = Authority.root("other")
        twin = Authority.root("kvproto test CA")
        for content, phrase in (
            (b"garbage", "is not PEM"),
            (root_authority().certificate_pem, "holds no certificate revocation list"),
            (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "does not parse"),
            (crl_of(other), "no CA in client_ca signs the list of CN=other"),
            (crl_of(twin), "no CA in client_ca signs the list of CN=kvproto test CA"),
            (crl_of(root_authority(), next_update=moment(-1)), "has expired"),
        ):
            self.with_crl(content)
            self.check("crl", self.crl, phrase)

    def test_ca_without_crl(self) -> None:
        """Every CA needs a list, or OpenSSL would refuse all its clients."""
        other = Authority.root("other")
        self.ca.write_bytes(root_authority().certificate_pem + other.certificate_pem)
        self.with_crl(crl_of(root_authority()))
        self.check("crl", self.crl, "holds no list of CN=other")

    def test_crl_without_ca(self) -> None:
        """A list without trust anchors has no use."""
        self.with_crl(crl_of(root_authority()))
        self.files = replace(self.files, client_ca=None)
        self.check("crl", self.crl, "of no use without client_ca")


class WarningTests(CredentialsCase):
    """What works and deserves a word."""

    def warnings(self) -> list[str]:
        return [str(warning) for warning in load_credentials(self.files, NOW).warnings]

    def warned(self, change: Callable[[], object], phrase: str) -> None:
        write_identity(
            self.directory,
            Authority.root("long").issue("node", NAMES, not_after=moment(90)),
        )
        self.assertEqual(self.warnings(), [])
        change()
        (warning,) = self.warnings()
        self.assertIn(f"certificate {self.chain}: ", warning)
        self.assertIn(phrase, warning)

    def test_expiry(self) -> None:
        """A certificate that ends within thirty days is announced with its date."""

        def shorten() -> None:
            identity = root_authority().issue(
                "node", NAMES, not_before=moment(-300), not_after=moment(12)
            )
            write_identity(self.directory, identity)

        end = moment(12).strftime("%Y-%m-%d")
        self.warned(shorten, f"CN=node expires in 11 days, at {end}")

    def test_short_life(self) -> None:
        """One that lives for days or hours is announced in the last fifth of its life."""
        authority = root_authority()
        for age, left, words in (
            (0.0, 1.0, ""),
            (0.79, 0.21, ""),
            (0.81, 0.19, "expires in 4 hours"),
            (8.1, 1.9, "expires in 45 hours"),
            (9.0, 2.2, "expires in 2 days"),
            (7.9, 2.1, ""),
        ):
            identity = authority.issue(
                "node", NAMES, not_before=moment(-age), not_after=moment(left)
            )
            write_identity(self.directory, identity)
            found = " ".join(self.warnings())
            self.assertEqual(words in found, True, (age, left, found))
            self.assertEqual(bool(words), bool(found), (age, left, found))

    def test_secrets_for_all(self) -> None:
        """What holds a key, or opens one, and can be read by others is told, and nothing else."""
        identity = Authority.root("long").issue("node", NAMES, not_after=moment(90))
        write_identity(self.directory, identity)
        secret = self.directory / "secret"
        secret.write_bytes(b"sesame\n")
        self.key.write_bytes(identity.encrypted_key_pem(b"sesame"))
        self.files = replace(self.files, passphrase=secret)
        for path in (self.chain, self.key, secret):
            path.chmod(0o644)
        self.assertEqual(
            [warning.partition(": users")[0] for warning in self.warnings()],
            [f"private_key {self.key}", f"passphrase {secret}"],
        )
        self.chain.write_bytes(identity.chain_pem + identity.key_pem)
        self.files = replace(self.files, private_key=None, passphrase=None)
        (warning,) = self.warnings()
        self.assertIn(f"certificate {self.chain}: users who have no business", warning)

    def test_ed25519(self) -> None:
        """An Ed25519 key is announced, since important clients cannot use it."""

        def replace_key() -> None:
            key = ed25519.Ed25519PrivateKey.generate()
            names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
            self.key.write_bytes(pem(key))
            self.chain.write_bytes(self_signed(key, extensions=[names]))

        self.warned(replace_key, "Couchbase SDK")

    def test_no_names(self) -> None:
        """A certificate without names is announced, since clients verify names."""

        def drop_names() -> None:
            identity = Authority.root("long").issue("node", not_after=moment(90))
            write_identity(self.directory, identity)

        self.warned(drop_names, "subjectAltName")


class ReadTogetherTests(CredentialsCase):
    """All files as they were at one moment."""

    def kubernetes(self) -> tuple[CredentialFiles, Callable[[str], None]]:
        """Lay files out as a Kubernetes secret volume; return a function that swaps it."""
        for name in ("..v1", "..v2"):
            (self.directory / name).mkdir()
            write_identity(self.directory / name, root_authority().issue(name, NAMES))
        for path in (self.chain, self.key):
            path.unlink()
            path.symlink_to(Path("..data") / path.name)

        def swap(version: str) -> None:
            (self.directory / "..tmp").symlink_to(version)
            (self.directory / "..tmp").replace(self.directory / "..data")

        swap("..v1")
        return self.files, swap

    def test_links_are_followed(self) -> None:
        """A volume of links is read like plain files."""
        files, swap = self.kubernetes()
        contents = read_together(files)
        self.assertEqual(contents[self.chain], (self.directory / "..v1/chain.pem").read_bytes())
        swap("..v2")
        contents = read_together(files)
        self.assertEqual(contents[self.chain], (self.directory / "..v2/chain.pem").read_bytes())

    def test_swap_between_two_files(self) -> None:
        """A swap after the first file was read never yields a mixed pair."""
        files, swap = self.kubernetes()
        really_open = os.open
        opened: list[str] = []

        def open_and_swap(path: str, *args: int) -> int:
            opened.append(str(path))
            if len(opened) == 2:
                swap("..v2")
            return really_open(path, *args)

        self.patch(os, "open", open_and_swap)
        contents = read_together(files)
        version = self.directory / "..v2"
        self.assertEqual(
            [contents[self.chain], contents[self.key]],
            [(version / "chain.pem").read_bytes(), (version / "key.pem").read_bytes()],
        )

    def test_old_directory_removed_under_our_feet(self) -> None:
        """A directory that vanishes with its swap is followed to the new one."""
        files, swap = self.kubernetes()
        really_open = os.open
        opened: list[str] = []

        def open_and_remove(path: str, *args: int) -> int:
            opened.append(str(path))
            if len(opened) == 2:
                swap("..v2")
                for name in ("chain.pem", "key.pem"):
                    (self.directory / "..v1" / name).unlink()
            return really_open(path, *args)

        self.patch(os, "open", open_and_remove)
        load = read_together(files)
        self.assertEqual(load[self.key], (self.directory / "..v2/key.pem").read_bytes())

    def test_never_quiet(self) -> None:
        """Files that change at every reading end in an error, not in a loop."""
        really_open = os.open

        def open_and_write(path: Path, *args: int) -> int:
            with self.chain.open("ab") as file:
                file.write(b"\n")
            return really_open(path, *args)

        self.patch(os, "open", open_and_write)
        error = self.assertRaises(CredentialError, read_together, self.files)
        self.assertIn("keep changing", str(error))

    def test_missing(self) -> None:
        """A file that is not there stays an error."""
        self.key.unlink()
        error = self.assertRaises(CredentialError, read_together, self.files)
        self.assertEqual((error.option, error.path), ("private_key", self.key))


class ValueTests(SynchronousTestCase):
    """Credentials as a value."""

    def test_without_chain(self) -> None:
        """Trust alone never expires and names nobody."""
        empty = Credentials((), None)
        self.assertEqual((empty.not_after, empty.names), (float("inf"), ()))

    def test_not_after_is_the_chain_s(self) -> None:
        """The first certificate of the chain to expire counts."""
        identity = (
            root_authority().intermediate("upper").issue("node", NAMES, not_after=moment(300))
        )
        found = credentials_of(identity)
        self.assertEqual(found.not_after, identity.intermediates[0].not_valid_after_utc.timestamp())

    def test_unreadable_name(self) -> None:
        """A subject that is no text is said to be unreadable, not raised."""
        der = root_authority().issue("mallory").der.replace(b"mallory", b"\xff" * 7)
        certificate = x509.load_der_x509_certificate(der)
        self.assertEqual(subject_of(certificate), "with an unreadable name")

    def test_endless_name(self) -> None:
        """A subject of many parts is cut for the log."""
        parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x" * 60) for _ in range(9)]
        key = ec.generate_private_key(ec.SECP256R1())
        content = self_signed(key, subject=x509.Name(parts))
        self.assertEqual(len(subject_of(x509.load_pem_x509_certificate(content))), 200)
