"""PEM files taken apart, with words for what is wrong with them."""

from __future__ import annotations

import codecs
import re
from base64 import b64decode
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from kvproto.tls.checks import UNREADABLE
from kvproto.tls.files import UnfinishedError

__all__ = ["TRUSTED", "first_line", "parse_certificates", "passphrases", "pem_blocks"]

_PEM = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----",
    re.DOTALL,
)
TRUSTED = b"TRUSTED CERTIFICATE"
"""Label of OpenSSL's own form: a certificate, then what it is trusted for."""

_CERTIFICATE_LABELS = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE", TRUSTED})
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def pem_blocks(option: str, path: Path, content: bytes) -> list[tuple[bytes, bytes]]:
    """Return (label, block) of each PEM block in a file, in order."""
    blocks = [(match.group(1), match.group(0)) for match in _PEM.finditer(content)]
    if len(blocks) != content.count(b"-----BEGIN "):
        raise UnfinishedError(option, path, "a PEM block in it has no end: half written or cut off")
    if not blocks:
        if content[:1] == b"\x30":
            reason = "is DER, not PEM; convert it with 'openssl x509 -inform der' or 'openssl pkey'"
        elif content.startswith(_UTF16):
            reason = "is UTF-16 text, not PEM; save it as ASCII or UTF-8"
        else:
            reason = "is not PEM: no line in it begins with -----BEGIN"
        raise UnfinishedError(option, path, reason)
    return blocks


def parse_certificates(option: str, path: Path, content: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in a file, each of them decoded to the end."""
    blocks = [
        (label, block)
        for label, block in pem_blocks(option, path, content)
        if label in _CERTIFICATE_LABELS
    ]
    if not blocks:
        raise UnfinishedError(option, path, "holds no certificate")
    certificates = []
    for number, (label, block) in enumerate(blocks, 1):
        try:
            if label == TRUSTED:
                certificate = x509.load_der_x509_certificate(_first_value(block))
            else:
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


def _first_value(block: bytes) -> bytes:
    """Return the first DER value in a PEM block.

    Raises:
        ValueError: There is none.
    """
    der = b64decode(b"".join(block.splitlines()[1:-1]))
    if len(der) < 2:
        raise ValueError("no certificate")
    length, begin = der[1], 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[2:begin], "big")
    return der[: begin + length]


def passphrases(content: bytes) -> list[bytes]:
    """Return what the first line of a passphrase file may mean, the likelier first.

    An editor may have put a byte order mark in front, or have saved the file as UTF-16; but who
    has encrypted the key with ``openssl -passout file:`` has made the mark a part of it.
    """
    found = []
    if content.startswith(codecs.BOM_UTF8):
        found.append(content.removeprefix(codecs.BOM_UTF8))
    elif content.startswith(_UTF16):
        with suppress(UnicodeDecodeError):
            found.append(content.decode("utf-16").encode())
    found.append(content)
    return [lines[0] if (lines := text.splitlines()) else b"" for text in found]


def first_line(error: Exception) -> str:
    """Return what a person can use of a library's error."""
    return str(error).partition("\n")[0] or type(error).__name__
