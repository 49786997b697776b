"""When a peer's certificate ends."""

from __future__ import annotations

from cryptography import x509

__all__ = ["certificate_expiry"]


def certificate_expiry(chain: tuple[bytes, ...]) -> float | None:
    """Return the not-after of a chain's leaf.

    The leaf alone decides: what else a peer sends need not be part of the path that was
    verified.

    Args:
        chain: DER certificates, leaf first.

    Returns:
        Unix seconds; None when there is no certificate or it cannot be read (it was good
        enough for OpenSSL, so it is not for us to end the connection).
    """
    if not chain:
        return None
    try:
        return x509.load_der_x509_certificate(chain[0]).not_valid_after_utc.timestamp()
    except ValueError:
        return None
