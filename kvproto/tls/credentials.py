"""Certificate chain, private key, trust anchors and CRLs: read once, checked, immutable.

Owns what may be wrong with a file and the sentence that says so.  Never asks
for a passphrase, never looks at a clock, never touches an OpenSSL context.

Keys are loaded with ``cryptography``, and with pyOpenSSL's loader only where a passphrase, right
or not, keeps it from asking for one on the terminal and holding up the reactor for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import PublicKeyAlgorithmOID
from OpenSSL import crypto

from kvproto.base.private_files import reader_fault
from kvproto.errors import CredentialError
from kvproto.tls.checks import (
    date_fault,
    end_of,
    is_ca,
    is_ending,
    names_of,
    order_fault,
    path_of,
    readable_date,
    size_fault,
    start_of,
    strength_fault,
    subject_of,
    usage_fault,
)
from kvproto.tls.files import CredentialFiles, Purpose, UnfinishedError, digest_of, read_files
from kvproto.tls.pem import TRUSTED, first_line, parse_certificates, passphrases, pem_blocks

__all__ = [
    "CredentialWarning",
    "Credentials",
    "PrivateKey",
    "load_credentials",
    "parse_credentials",
]

EXPIRY_WARNING = 30 * 86400.0
"""Seconds before the end of a certificate at which its operator is told, at the earliest."""

PrivateKey = PrivateKeyTypes
_KEYS: tuple[type, ...] = (
    rsa.RSAPrivateKey,
    ec.EllipticCurvePrivateKey,
    ed25519.Ed25519PrivateKey,
    ed448.Ed448PrivateKey,
)

_POST_QUANTUM: tuple[type, ...]
try:
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:  # an older one
    _POST_QUANTUM = ()
else:
    _POST_QUANTUM = (mldsa.MLDSA44PrivateKey, mldsa.MLDSA65PrivateKey, mldsa.MLDSA87PrivateKey)

_RSA_PSS_KEY = 912
"""OpenSSL's EVP_PKEY_RSA_PSS: a key that may sign by RSA-PSS only."""

_AS_CLIENT = {Purpose.SERVER: (False,), Purpose.CLIENT: (True,), Purpose.BOTH: (False, True)}
"""What `usage_fault` is asked for each purpose."""


@dataclass(frozen=True, slots=True)
class CredentialWarning:
    """Something that works today and that the operator should know.

    Args:
        option: The option that named the file.
        path: The file.
        reason: What will go wrong, and when or for whom.
    """

    option: str
    path: Path | None
    reason: str

    def __str__(self) -> str:
        return f"{self.option} {self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was read: immutable, complete and checked.

    Args:
        chain: The node's certificate, then each issuer that is sent along; empty for none.
        key: The private key of ``chain[0]``.
        client_cas: Trust anchors for peers' certificates.
        crls: Revocation lists of these.
        digest: SHA-256 over the content of all files, to tell whether a file has changed.
        warnings: See `CredentialWarning`.
        openssl_key: The private key as OpenSSL has it, where ``cryptography`` cannot hand it over
            without a loss (RSA-PSS, ML-DSA); None elsewhere.
    """

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey | None = field(repr=False)
    client_cas: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    digest: str = ""
    warnings: tuple[CredentialWarning, ...] = ()
    openssl_key: crypto.PKey | None = field(default=None, repr=False)

    @property
    def path(self) -> tuple[x509.Certificate, ...]:
        """The part of the chain that leads upwards from the node's certificate."""
        return path_of(self.chain)

    @property
    def tls13_only(self) -> bool:
        """Whether TLS 1.2 has no way to sign with the key."""
        return isinstance(self.key, _POST_QUANTUM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the node's certificate, lower-case hexadecimal; ``""`` without one."""
        return self.chain[0].fingerprint(hashes.SHA256()).hex() if self.chain else ""

    @property
    def not_after(self) -> float:
        """When the first certificate of the path to expire does so, in Unix seconds."""
        return min((end_of(certificate) for certificate in self.path), default=float("inf"))

    @property
    def names(self) -> tuple[str, ...]:
        """DNS names and IP addresses that the node's certificate is good for."""
        return names_of(self.chain[0]) if self.chain else ()


def load_credentials(files: CredentialFiles, now: float) -> Credentials:
    """Read every file once and check all of it.

    Args:
        files: Where they are.
        now: Unix seconds.

    Raises:
        CredentialError: A file cannot be read or used; names option, file and reason.
    """
    return parse_credentials(files, read_files(files), now)


def parse_credentials(
    files: CredentialFiles, contents: Mapping[Path, bytes], now: float
) -> Credentials:
    """Turn the content of files into checked credentials.

    Args:
        files: Which file is what.
        contents: What `read_files` returned.
        now: Unix seconds; certificates must be valid then.

    Raises:
        CredentialError: Something cannot be used; names option, file and reason.
    """
    warnings: list[CredentialWarning] = []
    chain: tuple[x509.Certificate, ...] = ()
    key: PrivateKey | None = None
    openssl_key: crypto.PKey | None = None
    if files.certificate is not None:
        found = parse_certificates(
            files.options.certificate, files.certificate, contents[files.certificate]
        )
        chain = tuple(dict.fromkeys(found))
        if len(chain) < len(found):
            reason = "holds a certificate twice; it is sent once"
            warnings.append(CredentialWarning(files.options.certificate, files.certificate, reason))
        key, openssl_key = _parse_key(files, contents)
        _check_chain(files, chain, key, now)
        _check_kind(files, chain, openssl_key)
        warnings += _chain_warnings(files, chain, key, now)
        warnings += _reader_warnings(files)
    client_cas: tuple[x509.Certificate, ...] = ()
    if files.client_ca is not None:
        client_cas = _parse_cas(files, contents[files.client_ca], now, warnings)
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    if files.crl is not None:
        crls = _parse_crls(files, contents[files.crl], client_cas, now)
    digest = digest_of(contents.values())
    return Credentials(chain, key, client_cas, crls, digest, tuple(warnings), openssl_key)


# --- key ------------------------------------------------------------------------------------


def _parse_key(
    files: CredentialFiles, contents: Mapping[Path, bytes]
) -> tuple[PrivateKey, crypto.PKey | None]:
    """Return the private key, and as OpenSSL has it where that is another."""
    option, path = files.options.private_key, files.private_key
    if path is None:
        path = files.certificate
        assert path is not None
    blocks = [
        block
        for label, block in pem_blocks(option, path, contents[path])
        if label.endswith(b"PRIVATE KEY")
    ]
    if not blocks:
        raise UnfinishedError(option, path, "holds no private key")
    block = blocks[0]
    encrypted = b"ENCRYPTED" in block
    possible: list[bytes] = []
    if encrypted:
        if files.passphrase is None:
            raise CredentialError(
                option, path, f"is encrypted; give its passphrase with {files.options.passphrase}"
            )
        possible = [one for one in passphrases(contents[files.passphrase]) if one]
        if not possible:
            raise CredentialError(
                files.options.passphrase, files.passphrase, "its first line is empty"
            )
    try:
        key, passphrase = _open_key(block, possible)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise UnfinishedError(
                files.options.passphrase,
                files.passphrase,
                f"its passphrase does not open the private key {path}",
            ) from None
        reason = f"the private key in it does not parse: {first_line(error)}"
        raise UnfinishedError(option, path, reason) from None
    if isinstance(key, (rsa.RSAPrivateKey, *_POST_QUANTUM)):
        return key, _lossless(option, path, key, block, passphrase)
    if not isinstance(key, _KEYS):
        raise CredentialError(
            option, path, "is no RSA, EC, Ed25519, Ed448 or ML-DSA key: TLS cannot use it"
        )
    return key, None


def _lossless(
    option: str, path: Path, key: PrivateKey, block: bytes, passphrase: bytes | None
) -> crypto.PKey | None:
    """Return a key as OpenSSL reads it, None where ``cryptography``'s has lost nothing."""
    try:
        # Never without a passphrase: OpenSSL would ask for one on the terminal.
        found = crypto.load_privatekey(crypto.FILETYPE_PEM, block, passphrase or b"-")
    except crypto.Error:
        if isinstance(key, rsa.RSAPrivateKey):
            return None  # in an encryption that only ``cryptography`` knows
        reason = "the OpenSSL at hand cannot use keys of this kind"
        raise CredentialError(option, path, reason) from None
    plain = isinstance(key, rsa.RSAPrivateKey) and found.type() != _RSA_PSS_KEY
    return None if plain else found


def _open_key(block: bytes, possible: list[bytes]) -> tuple[PrivateKey, bytes | None]:
    """Return a key and the passphrase that has opened it, None where there is none.

    Raises:
        ValueError: None of them opens it, or there is no key.
        TypeError, UnsupportedAlgorithm: It is no key that can be used.
    """
    for passphrase in possible[:-1]:
        try:
            return load_pem_private_key(block, passphrase), passphrase
        except ValueError:
            continue
    last = possible[-1] if possible else None
    return load_pem_private_key(block, last), last


def _public_bytes(public: object) -> bytes:
    return public.public_bytes(  # type: ignore[attr-defined, no-any-return]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


# --- chain ----------------------------------------------------------------------------------


def _check_chain(
    files: CredentialFiles, chain: tuple[x509.Certificate, ...], key: PrivateKey, now: float
) -> None:
    option, path = files.options.certificate, files.certificate
    assert path is not None
    _check_key_fits(files, chain, key)
    for check in (order_fault, size_fault):
        if fault := check(chain):
            raise CredentialError(option, path, fault)
    for certificate in path_of(chain):
        number = chain.index(certificate) + 1
        which = f"certificate {number} ({subject_of(certificate)})" if len(chain) > 1 else "it"
        for fault in (date_fault(certificate, now), strength_fault(certificate)):
            if fault:
                raise CredentialError(option, path, f"{which} {fault}")
    for client in _AS_CLIENT[files.purpose]:
        if fault := usage_fault(chain[0], client=client):
            raise CredentialError(option, path, fault)


def _check_kind(
    files: CredentialFiles, chain: tuple[x509.Certificate, ...], openssl_key: crypto.PKey | None
) -> None:
    """Refuse an RSA key and a certificate of which only one is for RSA-PSS alone."""
    pss = chain[0].public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS
    if pss == (openssl_key is not None and openssl_key.type() == _RSA_PSS_KEY):
        return
    kinds = "RSA-PSS, the key plain RSA" if pss else "plain RSA, the key RSA-PSS"
    raise CredentialError(
        files.options.private_key,
        files.private_key or files.certificate,
        f"is of another kind than the certificate {files.certificate}: that one is for {kinds}; "
        "OpenSSL takes them together only when both are of one kind",
    )


def _check_key_fits(
    files: CredentialFiles, chain: tuple[x509.Certificate, ...], key: PrivateKey
) -> None:
    wanted = _public_bytes(key.public_key())
    fits = [
        number
        for number, certificate in enumerate(chain, 1)
        if _public_bytes(certificate.public_key()) == wanted
    ]
    if fits and fits[0] == 1:
        return
    if fits:
        raise UnfinishedError(
            files.options.certificate,
            files.certificate,
            f"chain out of order: the private key belongs to certificate {fits[0]} "
            f"({subject_of(chain[fits[0] - 1])}); put that one first, then each issuer",
        )
    raise UnfinishedError(
        files.options.private_key,
        files.private_key or files.certificate,
        f"does not fit the certificate {files.certificate} ({subject_of(chain[0])}); "
        "both must come from the same request",
    )


def _chain_warnings(
    files: CredentialFiles, chain: tuple[x509.Certificate, ...], key: PrivateKey, now: float
) -> list[CredentialWarning]:
    option, path = files.options.certificate, files.certificate
    upwards = path_of(chain)
    reasons = [text for certificate in upwards if (text := _ending(certificate, now))]
    reasons += [
        f"{subject_of(certificate)}, which is sent along, {fault}"
        for certificate in chain
        if certificate not in upwards and (fault := date_fault(certificate, now))
    ]
    if isinstance(key, _POST_QUANTUM):
        reasons.append(
            "has an ML-DSA key: only clients with TLS 1.3 and ML-DSA (OpenSSL 3.5) can connect"
        )
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        reasons.append(
            "has an Ed25519 or Ed448 key: the Couchbase SDK and other clients cannot use it; "
            "EC P-256 is the safe choice"
        )
    if files.purpose is not Purpose.CLIENT and not names_of(chain[0]):
        reasons.append(
            "names no DNS name and no IP address (subjectAltName): clients that verify names "
            "will refuse it"
        )
    return [CredentialWarning(option, path, reason) for reason in reasons]


def _reader_warnings(files: CredentialFiles) -> list[CredentialWarning]:
    """Return a warning where others may read the key, or what opens it."""
    in_chain = files.private_key is None
    secrets = [
        (files.options.certificate, files.certificate if in_chain else None),
        (files.options.private_key, files.private_key),
        (files.options.passphrase, files.passphrase),
    ]
    return [
        CredentialWarning(option, path, fault)
        for option, path in secrets
        if path is not None and (fault := reader_fault(path))
    ]


def _ending(certificate: x509.Certificate, now: float) -> str:
    """Return a warning about a certificate near its end, ``""`` for another one."""
    end = end_of(certificate)
    left = end - now
    if not is_ending(left, end - start_of(certificate), EXPIRY_WARNING):
        return ""
    days, hours = int(left // 86400), int(left // 3600)
    span = f"{days} days" if days > 1 else f"{hours} hours"
    return f"{subject_of(certificate)} expires in {span}, at {readable_date(end)}"


# --- trust ----------------------------------------------------------------------------------


def _parse_cas(
    files: CredentialFiles, content: bytes, now: float, warnings: list[CredentialWarning]
) -> tuple[x509.Certificate, ...]:
    option, path = files.options.client_ca, files.client_ca
    assert path is not None
    found = parse_certificates(option, path, content)
    if TRUSTED in content:
        reason = "holds a TRUSTED CERTIFICATE; what it is said to be trusted for is not looked at"
        warnings.append(CredentialWarning(option, path, reason))
    cas = tuple(certificate for certificate in found if is_ca(certificate))
    if not cas:
        raise CredentialError(
            option,
            path,
            f"holds no CA: {subject_of(found[0])} may not sign certificates; "
            "give the certificate of the authority that issues them",
        )
    faults = {ca: fault for ca in cas if (fault := date_fault(ca, now))}
    if len(faults) == len(cas):
        raise CredentialError(option, path, f"{subject_of(cas[0])} {faults[cas[0]]}")
    reasons = [f"{subject_of(ca)} {fault}" for ca, fault in faults.items()]
    reasons += [text for ca in cas if ca not in faults and (text := _ending(ca, now))]
    reasons += [
        f"{subject_of(certificate)} is no CA and is left out"
        for certificate in found
        if not is_ca(certificate)
    ]
    warnings += [CredentialWarning(option, path, reason) for reason in reasons]
    return cas


def _parse_crls(
    files: CredentialFiles, content: bytes, cas: tuple[x509.Certificate, ...], now: float
) -> tuple[x509.CertificateRevocationList, ...]:
    """Read CRLs: one per CA, signed by it, current.

    OpenSSL with CRLs asks for one of every CA in a peer's chain and refuses the peer
    without it, as nginx and HAProxy do; so what is missing is said here, not to clients.
    """
    option, path = files.options.crl, files.crl
    assert path is not None
    if not cas:
        raise CredentialError(option, path, f"is of no use without {files.options.client_ca}")
    crls = []
    for label, block in pem_blocks(option, path, content):
        if label != b"X509 CRL":
            continue
        try:
            crls.append(x509.load_pem_x509_crl(block))
        except ValueError as error:
            raise UnfinishedError(
                option, path, f"list {len(crls) + 1} in it does not parse: {first_line(error)}"
            ) from None
    if not crls:
        raise CredentialError(option, path, "holds no certificate revocation list")
    for crl in crls:
        issuer = crl.issuer.rfc4514_string()
        if not any(_signs_crl(ca, crl) for ca in cas):
            raise CredentialError(
                option, path, f"no CA in {files.options.client_ca} signs the list of {issuer}"
            )
        due = crl.next_update_utc
        if due is not None and due.timestamp() < now:
            raise CredentialError(
                option,
                path,
                f"the list of {issuer} has expired: its next update was due at "
                f"{readable_date(due.timestamp())}, now is {readable_date(now)}",
            )
    subjects = {ca.subject for ca in cas}
    for ca in cas:
        if not any(crl.issuer == ca.subject for crl in crls):
            raise CredentialError(
                option, path, f"holds no list of {subject_of(ca)}; every CA in a chain needs one"
            )
        if ca.issuer not in subjects:
            raise CredentialError(
                option,
                path,
                f"OpenSSL checks revocation up to a root: put {ca.issuer.rfc4514_string()}, which "
                f"issued {subject_of(ca)}, into {files.options.client_ca} too, and its list here",
            )
    return tuple(crls)


def _signs_crl(ca: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    try:
        return ca.subject == crl.issuer and crl.is_signature_valid(
            ca.public_key()  # type: ignore[arg-type]
        )
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False
