"""Kinds of failed handshakes: few, fixed, and none of a peer's choosing."""

from __future__ import annotations

__all__ = ["HANDSHAKE_FAULTS", "handshake_fault"]

_PHRASES = (
    ("on a tls port", "plaintext"),
    ("no tls record", "plaintext"),
    ("no tls on", "plaintext"),
    ("proxy header", "proxy_header"),
    ("no tls version in common", "no_common_version"),
    ("no cipher in common", "no_common_cipher"),
    ("showed no certificate", "no_certificate"),
    ("alert unknown ca", "alert_unknown_ca"),
    ("alert", "alert"),
    ("expired", "certificate_expired"),
    ("not yet valid", "certificate_not_yet_valid"),
    ("revoked", "certificate_revoked"),
    ("unable to get local issuer", "unknown_ca"),
    ("unable to get issuer", "unknown_ca"),
    ("self-signed", "unknown_ca"),
    ("self signed", "unknown_ca"),
    ("unknown ca", "unknown_ca"),
    ("certificate", "certificate_refused"),
    ("no handshake within", "timeout"),
    ("handshake timed out", "timeout"),
    ("went away", "gone"),
)
"""Words of OpenSSL's reasons and of ours, the most telling first."""

HANDSHAKE_FAULTS = frozenset({*(kind for _, kind in _PHRASES), "other"})


def handshake_fault(reason: str) -> str:
    """Return which kind of fault a reason for people is about.

    ``alert_unknown_ca`` is said by a client that does not trust our certificate; ``unknown_ca`` is
    what we say of a client's.
    """
    words = reason.lower()
    return next((kind for phrase, kind in _PHRASES if phrase in words), "other")
