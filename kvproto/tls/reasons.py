"""Why a TLS connection ended, as exceptions and in words.

Each class is also what Twisted programs expect in the same place (a ``ConnectionLost``,
a ``TimeoutError``, ...), so that ``reason.check(...)`` keeps working when kvproto takes the
place of Twisted's TLS.  OpenSSL's own errors stay `OpenSSL.SSL.Error`, with two more
attributes: ``reason``, one phrase for people, and ``stage``.
"""

from __future__ import annotations

from OpenSSL.SSL import Error, SysCallError
from twisted.internet.error import ConnectionAborted, ConnectionLost, TimeoutError
from twisted.internet.main import CONNECTION_LOST

from kvproto.errors import RemoteProtocolError

__all__ = [
    "BudgetExceeded",
    "CloseTimeout",
    "HandshakeInterrupted",
    "HandshakeTimeout",
    "describe_error",
    "explained",
    "explanation",
    "represents_eof",
]


class HandshakeTimeout(RemoteProtocolError, TimeoutError):
    """The peer did not end the handshake before the deadline."""

    def __str__(self) -> str:
        return self.reason


class HandshakeInterrupted(RemoteProtocolError, ConnectionLost):
    """The peer went away before the handshake ended."""

    def __str__(self) -> str:
        return self.reason


class BudgetExceeded(RemoteProtocolError, ConnectionAborted):
    """The peer kept the TLS layer busy without sending or taking application data."""

    def __str__(self) -> str:
        return self.reason


class CloseTimeout(RemoteProtocolError, ConnectionAborted):
    """The peer neither closed nor took what was left for it before the deadline."""

    def __str__(self) -> str:
        return self.reason


def explained(error: Error, reason: str, stage: str) -> Error:
    """Return an error like `error` that has never been raised and says more.

    Args:
        error: What an OpenSSL call raised.
        reason: One phrase for people.
        stage: ``"handshake"``, ``"established"`` or ``"closing"``.
    """
    said = type(error)(*error.args)
    said.reason = reason  # type: ignore[attr-defined]
    said.stage = stage  # type: ignore[attr-defined]
    said.add_note(f"TLS ({stage}): {reason}")
    return said


_LOST_WORDS = str(CONNECTION_LOST)
"""How most connections end; Twisted would put the words together anew each time."""


def explanation(error: BaseException | None) -> str:
    """Return the phrase for people that comes with any reason of ``connectionLost``."""
    if error is CONNECTION_LOST:
        return _LOST_WORDS
    return str(getattr(error, "reason", "") or error)


def represents_eof(error: BaseException) -> bool:
    """Return whether OpenSSL's error means that the input ended without close_notify.

    Depending on its version OpenSSL says so by a `SysCallError`, by a reason text or
    by an error with an empty queue.
    """
    if isinstance(error, SysCallError):
        return str(error.args[-1]).casefold().startswith("unexpected eof")
    if not isinstance(error, Error) or not error.args:
        return False
    queue = error.args[0]
    return not queue or str(queue[-1][-1]).casefold().startswith("unexpected eof")


_HTTP_METHODS = (b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC")

_WORDS = {
    "http request": "HTTP request on a TLS port",
    "https proxy request": "HTTP request on a TLS port",
    "wrong version number": "no TLS record, or a version that is not TLS",
    "unsupported protocol": "no TLS version in common",
    "no shared cipher": "no cipher in common",
    "peer did not return a certificate": "the client showed no certificate",
}
"""OpenSSL's reasons that operators meet most, in words that say what to look for."""


_CONTENT_TYPES = range(0x14, 0x18)
"""With which a record begins (RFC 8446, section 5.1)."""


def describe_error(error: Error, first_bytes: bytes, stage: str) -> str:
    """Return one phrase about why OpenSSL gave up.

    Args:
        error: What an OpenSSL call raised.
        first_bytes: The first bytes that the peer sent, at least 4 where it sent as many.
        stage: As in `explained`.
    """
    queue = error.args[0] if error.args else ()
    text = str(queue[-1][-1]) if queue and not isinstance(queue, int) else ""
    if stage == "handshake" and first_bytes:
        if first_bytes.startswith(_HTTP_METHODS):
            return "HTTP request on a TLS port"
        if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in first_bytes):
            return "text protocol on a TLS port"
        # What OpenSSL calls bytes that are no record differs between its versions.
        no_record = text == "record layer failure" and first_bytes[0] not in _CONTENT_TYPES
        if text == "wrong version number" or no_record:
            return f"no TLS on a TLS port (first byte 0x{first_bytes[0]:02x})"
    return _WORDS.get(text, text) or "TLS failed without a reason"
