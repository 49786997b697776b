"""What may be wrong with a certificate or a chain, one function per question.

A ``*_fault`` function returns a phrase that says what is wrong and what to do, or
``""``.  Nothing here knows of files, options or OpenSSL contexts.

Sources: RFC 8446 section 4.4.2 (order of the chain, size of the message); OpenSSL
``SSL_MAX_CERT_LIST_DEFAULT`` (102400 B) and security level 2 (RSA of 2048 bits, no SHA-1).
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvproto.base.escape import printable

__all__ = [
    "MAX_CERTIFICATE_MESSAGE",
    "UNREADABLE",
    "date_fault",
    "end_of",
    "is_ca",
    "is_ending",
    "names_of",
    "order_fault",
    "path_of",
    "readable_date",
    "size_fault",
    "start_of",
    "strength_fault",
    "subject_of",
    "usage_fault",
]

MAX_CERTIFICATE_MESSAGE = 102_400
"""Bytes of one TLS Certificate message that OpenSSL accepts from its peer."""

MIN_RSA_BITS = 2048
MIN_EC_BITS = 224

MAX_SUBJECT = 200
"""Characters of a subject that are shown."""

UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for certificates that OpenSSL would take."""


def subject_of(certificate: x509.Certificate) -> str:
    """Return a short name of a certificate for people and logs.

    Its common name or all of its subject; what could forge a line of a log is escaped, since
    the certificate may be that of a peer whom nobody trusts.
    """
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        text = f"CN={names[0].value!s}" if names else certificate.subject.rfc4514_string()
    except ValueError:
        return "with an unreadable name"
    return printable(text)[:MAX_SUBJECT] or "without a name"


def path_of(chain: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a chain that lead from the first one upwards, in order.

    What is left out is sent along for clients with other trust anchors: a second certificate of
    an issuer that is in the path, signed by somebody else, and its own issuers.
    """
    path = list(chain[:1])
    for certificate in chain[1:]:
        if _signs(certificate, path[-1]):
            path.append(certificate)
    return tuple(path)


def order_fault(chain: tuple[x509.Certificate, ...]) -> str:
    """Return what is wrong with the order of a chain, ``""`` for nothing.

    Each certificate must be signed by the next one, but for what is sent along; a second
    certificate of an issuer signs what the first one signs.

    Source: RFC 8446 section 4.4.2: clients are prepared for extraneous certificates, and servers
    send cross-signed ones in times of transition.
    """
    for number, (before, certificate) in enumerate(itertools.pairwise(chain), 2):
        # Faults are rare, and most chains short: what is looked at is what came before.
        seen = chain[: number - 1]
        if not any(_signs(certificate, one) for one in seen):
            return (
                f"chain out of order: certificate {number} ({subject_of(certificate)}) does not "
                f"sign certificate {number - 1} ({subject_of(before)}); the order is the node's "
                "certificate, then each issuer"
            )
    path = path_of(chain)
    for certificate, issuer in itertools.pairwise(path):
        if not is_ca(issuer):
            return (
                f"certificate {chain.index(issuer) + 1} ({subject_of(issuer)}) signs certificate "
                f"{chain.index(certificate) + 1} but is no CA: clients will refuse the chain"
            )
    return ""


def _signs(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def certificate_message_size(chain: Iterable[x509.Certificate]) -> int:
    """Return the size in bytes of the TLS 1.3 Certificate message that carries a chain."""
    # Context length 1, list length 3; per certificate its length 3 and its extensions' length 2.
    return 4 + sum(5 + len(certificate.public_bytes(Encoding.DER)) for certificate in chain)


def size_fault(chain: tuple[x509.Certificate, ...]) -> str:
    """Clients accept no longer chain than OpenSSL does."""
    size = certificate_message_size(chain)
    if size <= MAX_CERTIFICATE_MESSAGE:
        return ""
    return (
        f"the chain needs {size} bytes in the handshake; OpenSSL clients accept "
        f"{MAX_CERTIFICATE_MESSAGE}: drop certificates that are not needed, the root first"
    )


def date_fault(certificate: x509.Certificate, now: float) -> str:
    """A certificate must be valid at `now`, in Unix seconds."""
    start, end = start_of(certificate), end_of(certificate)
    if now > end:
        return f"has expired: it was valid until {readable_date(end)}, now is {readable_date(now)}"
    if now < start:
        return f"is not yet valid: it begins at {readable_date(start)}, now is {readable_date(now)}"
    return ""


def strength_fault(certificate: x509.Certificate) -> str:
    """Return what OpenSSL's security level 2, the default since 3.2, would refuse."""
    public = certificate.public_key()
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < MIN_RSA_BITS:
        return (
            f"has an RSA key of {public.key_size} bits; OpenSSL's security level refuses fewer "
            f"than {MIN_RSA_BITS}"
        )
    if isinstance(public, ec.EllipticCurvePublicKey) and public.key_size < MIN_EC_BITS:
        return f"has an EC key of {public.key_size} bits; OpenSSL refuses fewer than {MIN_EC_BITS}"
    try:
        signature = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "is signed with an algorithm that cannot be used"
    weak = isinstance(signature, hashes.SHA1 | hashes.MD5)
    # Nobody checks the signature that a root puts under itself.
    if weak and certificate.issuer != certificate.subject:
        assert signature is not None
        return (
            f"is signed with {signature.name.upper()}, which OpenSSL's security level refuses; "
            "have it issued again with SHA-256"
        )
    return ""


def usage_fault(certificate: x509.Certificate, *, client: bool = False) -> str:
    """The node's certificate must be good for a TLS server (or client)."""
    extensions = certificate.extensions
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        word = "clientAuth" if client else "serverAuth"
        wanted = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        if not {wanted, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages):
            return (
                f"its extended key usage forbids {word}: peers will refuse it; have it issued "
                f"for {'clients' if client else 'servers'}"
            )
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return ""
    if not usage.digital_signature:
        return "its key usage forbids digitalSignature, which TLS 1.3 needs"
    return ""


def is_ca(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may sign others; a self-issued one of version 1 may."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.version is x509.Version.v1 and certificate.issuer == certificate.subject


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names, in lower case, and IP addresses of a certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (
        *(name.lower() for name in names.get_values_for_type(x509.DNSName)),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def start_of(certificate: x509.Certificate) -> float:
    """Return the first second of validity, in Unix seconds."""
    return certificate.not_valid_before_utc.timestamp()


def is_ending(left: float, life: float, enough: float) -> bool:
    """Return whether so little of a certificate's life is left that somebody should know.

    Args:
        left: Seconds.
        life: Seconds from its beginning to its end.
        enough: Seconds that are enough for any; for one that lives for days it is a fifth of that,
            since it is renewed as often.
    """
    return left < min(enough, life / 5)


def end_of(certificate: x509.Certificate) -> float:
    """Return the last second of validity, in Unix seconds."""
    return certificate.not_valid_after_utc.timestamp()


def readable_date(when: float) -> str:
    """Return Unix seconds as people write a date, in UTC."""
    moment = datetime.datetime.fromtimestamp(when, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
