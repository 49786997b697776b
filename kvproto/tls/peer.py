"""What OpenSSL knows of a peer whose handshake has ended."""

from __future__ import annotations

from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL.SSL import TLS1_2_VERSION, TLS1_3_VERSION

__all__ = ["peer_chain", "tls_version"]

_VERSIONS: Final = {TLS1_2_VERSION: "TLSv1.2", TLS1_3_VERSION: "TLSv1.3"}
"""OpenSSL's own names, which it gives out as C strings."""


def peer_chain(connection: Any) -> tuple[bytes, ...]:
    """Return a peer's certificates as DER, leaf first; empty when it has shown none.

    Args:
        connection: pyOpenSSL's, or what stands in for one.
    """
    leaf = connection.get_peer_certificate(as_cryptography=True)
    if leaf is None:
        return ()
    chain: list[x509.Certificate] = connection.get_peer_cert_chain(as_cryptography=True) or []
    if leaf not in chain[:1]:
        # On servers OpenSSL leaves the leaf out of the chain.
        chain.insert(0, leaf)
    return tuple(one.public_bytes(Encoding.DER) for one in chain)


def tls_version(connection: Any) -> str:
    """Return the negotiated version, as OpenSSL names it."""
    number = connection.get_protocol_version()
    return _VERSIONS.get(number) or str(connection.get_protocol_version_name())
