"""Certificate authorities and identities, made in memory, of any size wanted.

Owns: X.509 objects for tests (EC P-256 keys, so that making one costs less than
a millisecond).  Never touches a disk: PEM comes out as ``bytes``.  What does not
depend on the caller is cached for the life of the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "Authority",
    "Identity",
    "ca_names",
    "client_identity",
    "deep_server_identity",
    "root_authority",
    "server_identity",
]

PADDING_OID = x509.ObjectIdentifier("1.3.6.1.4.1.32473.1")
"""Extension that makes a certificate large; the arc of RFC 5612 is for examples like this."""

LIFETIME = timedelta(days=30)
"""How long certificates are valid unless told otherwise."""

SKEW = timedelta(days=1)
"""How far in the past validity begins, against clocks that differ."""


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _subject_alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Sort host names and addresses into the kinds that X.509 knows."""
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(alternatives)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate, its private key and what stands between it and the root.

    Args:
        certificate: The leaf.
        key: Its private key.
        intermediates: Issuers from the leaf's own up to, not including, the root.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        """The leaf as DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def der_size(self) -> int:
        """Bytes of DER that a handshake sends for the whole chain, without the root."""
        return sum(
            len(one.public_bytes(serialization.Encoding.DER))
            for one in (self.certificate, *self.intermediates)
        )

    @property
    def certificate_pem(self) -> bytes:
        """The leaf alone, as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def chain_pem(self) -> bytes:
        """Leaf first, then the intermediates, as PEM."""
        return b"".join(
            one.public_bytes(serialization.Encoding.PEM)
            for one in (self.certificate, *self.intermediates)
        )

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS#8 PEM."""
        return self.encrypted_key_pem(None)

    def encrypted_key_pem(self, passphrase: bytes | None) -> bytes:
        """Return the private key as PKCS#8 PEM, encrypted when there is a passphrase."""
        protection: serialization.KeySerializationEncryption = (
            serialization.NoEncryption()
            if passphrase is None
            else serialization.BestAvailableEncryption(passphrase)
        )
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
        )


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that can sign identities and further authorities.

    Args:
        certificate: Its own certificate.
        key: Its private key.
        above: Its issuers, next first, without the root; empty for a root.
        is_root: Whether `certificate` is signed by itself.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()
    is_root: bool = True

    @classmethod
    def root(cls, common_name: str = "kvproto test CA", *, size: int = 0) -> Authority:
        """Make a self-signed authority whose certificate has at least `size` bytes of DER."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _authority_builder(common_name, key)
        certificate = _signed(builder, _name(common_name), key, size)
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own certificate as PEM: the trust anchor of its identities."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def intermediate(self, common_name: str, *, size: int = 0) -> Authority:
        """Make an authority below this one.

        Args:
            common_name: Its subject.
            size: Bytes of DER to pad its certificate to; 0 for no padding.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _authority_builder(common_name, key)
        certificate = _signed(builder, self.certificate.subject, self.key, size)
        return Authority(certificate, key, self._path(), is_root=False)

    def issue(
        self,
        common_name: str,
        names: Sequence[str] = (),
        *,
        size: int = 0,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usages: Sequence[x509.ObjectIdentifier] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Identity:
        """Sign a leaf.

        Args:
            common_name: The subject's common name.
            names: DNS names and IP addresses for subjectAltName; none for no extension.
            size: Bytes of DER to pad the leaf to (exact to 2 bytes); 0 for no padding.
            not_before: Start of validity; a day ago when None.
            not_after: End of validity; in 30 days when None.
            usages: Extended key usages; none for no extension.
            key: Key to certify; a new one when None.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _base_builder(common_name, key, not_before, not_after).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        if names:
            builder = builder.add_extension(_subject_alternatives(names), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        certificate = _signed(builder, self.certificate.subject, self.key, size)
        return Identity(certificate, key, self._path())

    def _path(self) -> tuple[x509.Certificate, ...]:
        return () if self.is_root else (self.certificate, *self.above)


def _base_builder(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or now - SKEW)
        .not_valid_after(not_after or now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _authority_builder(
    common_name: str, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _base_builder(common_name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )


def _signed(
    builder: x509.CertificateBuilder,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    size: int,
) -> x509.Certificate:
    """Sign, padded to `size` bytes of DER by an extension that nobody reads."""
    builder = builder.issuer_name(issuer).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    certificate = builder.sign(key, hashes.SHA256())
    padding = size - len(certificate.public_bytes(serialization.Encoding.DER))
    while padding > 0:
        padded = builder.add_extension(
            x509.UnrecognizedExtension(PADDING_OID, bytes(padding)), critical=False
        ).sign(key, hashes.SHA256())
        # Lengths of lengths change with the padding: shave off what was too much.
        excess = len(padded.public_bytes(serialization.Encoding.DER)) - size
        if excess <= 0:
            return padded
        padding -= excess
    return certificate


@cache
def root_authority() -> Authority:
    """Return the one root that the cached identities below are signed by."""
    return Authority.root()


@cache
def server_identity(size: int = 0) -> Identity:
    """Return an identity for ``localhost``, ``127.0.0.1`` and ``::1``.

    Args:
        size: Bytes of DER of its one certificate; 0 for the smallest (about 600).
    """
    return root_authority().issue("localhost", ("localhost", "127.0.0.1", "::1"), size=size)


@cache
def client_identity(common_name: str = "alice", size: int = 0) -> Identity:
    """Return an identity without host names, for a client.

    Args:
        common_name: The user it speaks for.
        size: Bytes of DER of its one certificate; 0 for the smallest.
    """
    return root_authority().issue(common_name, size=size, usages=(ExtendedKeyUsageOID.CLIENT_AUTH,))


@cache
def deep_server_identity(intermediates: int = 30, size: int = 2048) -> Identity:
    """Return a ``localhost`` identity at the end of a long chain.

    Args:
        intermediates: Authorities between the root and the leaf.
        size: Bytes of DER of each of these certificates.
    """
    authority = root_authority()
    for depth in range(intermediates):
        authority = authority.intermediate(f"kvproto test CA {depth}", size=size)
    return authority.issue("localhost", ("localhost", "127.0.0.1", "::1"), size=size)


@cache
def ca_names(size: int = 50_000) -> tuple[Authority, ...]:
    """Return authorities whose names together fill a CertificateRequest of `size` bytes."""
    # A name costs its DER and two bytes of length; common names end at 64 characters.
    each = len(_name("x" * 64).public_bytes()) + 2
    return tuple(Authority.root(f"{number:064d}") for number in range(-(-size // each)))
