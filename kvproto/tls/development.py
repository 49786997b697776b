"""A certificate authority and a node certificate for trying things out.

Made on first start in the state directory, used again on the next: a client that
was told to trust ``ca.pem`` goes on working.  EC P-256, because every client can use it.
Not for production: whoever reads ``ca.key`` can pose as this node.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvproto.base.private_files import directory_fault, replace_file
from kvproto.errors import ConfigError, CredentialError
from kvproto.tls.credentials import Credentials, load_credentials
from kvproto.tls.files import CredentialFiles, Options

__all__ = ["LOCAL_NAMES", "DevelopmentCredentials", "ensure_development_credentials"]

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""What every node certificate made here is good for."""

DAY = 86400
CA_LIFETIME = 3650 * DAY
NODE_LIFETIME = 365 * DAY
RENEW_BEFORE = 30 * DAY
"""Seconds before its end at which a certificate is made anew."""

SKEW = 3600
"""Seconds in the past at which validity begins, for clients whose clock is slow."""

STATE_DIR = "--state-dir"


@dataclass(frozen=True, slots=True)
class DevelopmentCredentials:
    """Where the development credentials are.

    Args:
        ca: What clients must trust.
        certificate: The node's certificate.
        private_key: Its key.
        made: Names of what was made just now: ``"ca"``, ``"node"``; empty when all was there.
    """

    ca: Path
    certificate: Path
    private_key: Path
    made: tuple[str, ...] = ()

    def files(self) -> CredentialFiles:
        """Return them as credentials to serve with."""
        return CredentialFiles(self.certificate, self.private_key)


def ensure_development_credentials(
    state_dir: Path, now: float, hostname: str = ""
) -> DevelopmentCredentials:
    """Return usable development credentials, made where they are missing or no good.

    Args:
        state_dir: Made with mode 0700 when it is not there; the files are in ``development``.
        now: Unix seconds.
        hostname: This machine's name, added to `LOCAL_NAMES`; ``""`` for none.

    Raises:
        ConfigError: The directory cannot be made or written, or is not the user's own.
    """
    folder = state_dir / "development"
    ca = _Pair(folder / "ca.pem", folder / "ca.key")
    node = _Pair(folder / "node.pem", folder / "node.key")
    names = [*LOCAL_NAMES, *([hostname.lower()] if _is_dns_name(hostname) else [])]
    made = []
    try:
        # One by one: mkdir gives its mode to the last directory only.
        for directory in (state_dir, folder):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if fault := directory_fault(directory, linked=directory is state_dir):
                raise ConfigError(STATE_DIR, f"{directory} {fault}")
        folder.chmod(0o700)
        authority = ca.load(now)
        if authority is None:
            authority = _make_authority(now)
            ca.save(authority)
            made.append("ca")
        if not _good_node(node.load(now), authority, names):
            node.save(_make_node(authority, names, now))
            made.append("node")
    except OSError as error:
        raise ConfigError(
            STATE_DIR, f"{error.filename or folder} cannot be written: {error.strerror}"
        ) from None
    return DevelopmentCredentials(ca.certificate, node.certificate, node.key, tuple(made))


def _is_dns_name(hostname: str) -> bool:
    return bool(hostname) and hostname.isascii() and hostname.lower() not in LOCAL_NAMES


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate file and its key file."""

    certificate: Path
    key: Path

    def load(self, now: float) -> Credentials | None:
        """Return what the files hold; None when they are no good, or not for long."""
        options = Options(certificate=STATE_DIR, private_key=STATE_DIR)
        files = CredentialFiles(self.certificate, self.key, options=options)
        try:
            found = load_credentials(files, now)
        except CredentialError:
            return None
        return found if found.not_after - now > RENEW_BEFORE else None

    def save(self, credentials: Credentials) -> None:
        """Write both files; should that end in between, they do not fit and are made again."""
        assert isinstance(credentials.key, ec.EllipticCurvePrivateKey)
        pem = credentials.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        replace_file(self.key, pem, 0o600)
        replace_file(self.certificate, credentials.chain[0].public_bytes(Encoding.PEM), 0o644)


def _good_node(node: Credentials | None, authority: Credentials, names: Sequence[str]) -> bool:
    if node is None or not set(names) <= set(node.names):
        return False
    try:
        node.chain[0].verify_directly_issued_by(authority.chain[0])
    except Exception:
        # Whatever the reason: it is not this authority's, and clients trust only that.
        return False
    return True


def _make_authority(now: float) -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial in the name keeps two authorities of one client's trust store apart.
    name = _name(f"kvproto development CA {x509.random_serial_number() % 0xFFFFFF:06x}")
    usage = _usage(digital_signature=True, signs_certificates=True)
    certificate = (
        _builder(name, key, now, CA_LIFETIME)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Credentials((certificate,), key)


def _make_node(authority: Credentials, names: Sequence[str], now: float) -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.chain[0]
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
    certificate = (
        _builder(_name("kvproto development node"), key, now, NODE_LIFETIME)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return Credentials((certificate,), key)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: float, lifetime: int
) -> x509.CertificateBuilder:
    start = datetime.datetime.fromtimestamp(now - SKEW, datetime.UTC)
    end = datetime.datetime.fromtimestamp(now + lifetime, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, digital_signature: bool, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
