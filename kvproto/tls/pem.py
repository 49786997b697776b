"""PEM files taken apart, with words for what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509

from kvproto.tls.checks import UNREADABLE
from kvproto.tls.files import UnfinishedError

__all__ = ["first_line", "parse_certificates", "pem_blocks"]

_PEM = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----",
    re.DOTALL,
)
_CERTIFICATE_LABELS = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE"})


def pem_blocks(option: str, path: Path, content: bytes) -> list[tuple[bytes, bytes]]:
    """Return (label, block) of each PEM block in a file, in order."""
    blocks = [(match.group(1), match.group(0)) for match in _PEM.finditer(content)]
    if len(blocks) != content.count(b"-----BEGIN "):
        raise UnfinishedError(option, path, "a PEM block in it has no end: half written or cut off")
    if not blocks:
        if content[:1] == b"\x30":
            reason = "is DER, not PEM; convert it with 'openssl x509 -inform der' or 'openssl pkey'"
        else:
            reason = "is not PEM: no line in it begins with -----BEGIN"
        raise UnfinishedError(option, path, reason)
    return blocks


def parse_certificates(option: str, path: Path, content: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in a file, each of them decoded to the end."""
    blocks = [
        block for label, block in pem_blocks(option, path, content) if label in _CERTIFICATE_LABELS
    ]
    if not blocks:
        raise UnfinishedError(option, path, "holds no certificate")
    certificates = []
    for number, block in enumerate(blocks, 1):
        try:
            certificate = x509.load_pem_x509_certificate(block)
            # Extensions, keys and names are decoded late: do it here, where the file is known.
            _ = (certificate.extensions, certificate.subject, certificate.issuer)
            certificate.public_key()
        except UNREADABLE as error:
            raise UnfinishedError(
                option, path, f"certificate {number} in it does not parse: {first_line(error)}"
            ) from None
        certificates.append(certificate)
    return tuple(certificates)


def first_line(error: Exception) -> str:
    """Return what a person can use of a library's error."""
    return str(error).partition("\n")[0] or type(error).__name__
