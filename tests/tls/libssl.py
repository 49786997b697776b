"""The system's OpenSSL through ctypes: a second TLS stack, with what pyOpenSSL does not offer.

Key updates, renegotiation by hand, and BIO pairs of a few bytes that make OpenSSL say
WANT_WRITE.  For tests only; nothing is freed before the process ends but what is asked for.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_void_p, create_string_buffer
from ctypes.util import find_library
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL.SSL import Error, WantReadError, WantWriteError, ZeroReturnError
from twisted.internet.protocol import Protocol, connectionDone

from kvproto.testing.certificates import Identity, server_identity

_WANT_READ, _WANT_WRITE, _SYSCALL, _ZERO_RETURN = 2, 3, 5, 6
_SET_MIN_VERSION, _SET_MAX_VERSION = 123, 124
_OPTION_ALLOW_RENEGOTIATION = 0x100
_MODE = 33
_PARTIAL_AND_MOVING = 1 | 2
TLS12, TLS13 = 0x0303, 0x0304

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "TLS_method": (c_void_p,),
    "SSL_CTX_new": (c_void_p, c_void_p),
    "SSL_CTX_ctrl": (c_long, c_void_p, c_int, c_long, c_void_p),
    "SSL_CTX_use_certificate_ASN1": (c_int, c_void_p, c_int, c_char_p),
    "SSL_CTX_use_PrivateKey_ASN1": (c_int, c_int, c_void_p, c_char_p, c_long),
    "SSL_CTX_set_options": (c_size_t, c_void_p, c_size_t),
    "SSL_new": (c_void_p, c_void_p),
    "SSL_free": (None, c_void_p),
    "SSL_set_bio": (None, c_void_p, c_void_p, c_void_p),
    "SSL_set_connect_state": (None, c_void_p),
    "SSL_set_accept_state": (None, c_void_p),
    "SSL_do_handshake": (c_int, c_void_p),
    "SSL_read": (c_int, c_void_p, c_char_p, c_int),
    "SSL_write": (c_int, c_void_p, c_char_p, c_int),
    "SSL_shutdown": (c_int, c_void_p),
    "SSL_key_update": (c_int, c_void_p, c_int),
    "SSL_renegotiate": (c_int, c_void_p),
    "SSL_get_error": (c_int, c_void_p, c_int),
    "SSL_get_version": (c_char_p, c_void_p),
    "BIO_new": (c_void_p, c_void_p),
    "BIO_s_mem": (c_void_p,),
    "BIO_new_bio_pair": (c_int, c_void_p, c_size_t, c_void_p, c_size_t),
    "BIO_read": (c_int, c_void_p, c_char_p, c_int),
    "BIO_write": (c_int, c_void_p, c_char_p, c_int),
    "ERR_get_error": (ctypes.c_ulong,),
    "ERR_reason_error_string": (c_char_p, ctypes.c_ulong),
    "ERR_clear_error": (None,),
}
_EC_KEY_TYPE = 408


class _Library:
    """The functions above, with their types."""

    def __init__(self) -> None:
        libraries = [ctypes.CDLL(find_library(name)) for name in ("ssl", "crypto")]
        for name, (result, *arguments) in _SIGNATURES.items():
            library = next(one for one in libraries if hasattr(one, name))
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


_library: Any = None


def _load() -> Any:
    global _library  # noqa: PLW0603  # loaded once, and only when a test asks
    if _library is None:
        _library = _Library()
    return _library


class LibConnection:
    """An OpenSSL connection with the methods of pyOpenSSL's that a TLS protocol calls.

    Args:
        server: Whether it accepts (with an identity) or connects.
        identity: What a server shows.
        version: `TLS12` or `TLS13`.
        bio_size: Bytes that fit into each direction of a BIO pair; None for memory BIOs.

    Attributes:
        want_writes: How often OpenSSL said WANT_WRITE.
        short_feeds: How often `bio_write` took less than it was given.
    """

    def __init__(
        self,
        server: bool,
        identity: Identity | None = None,
        version: int = TLS13,
        bio_size: int | None = None,
    ) -> None:
        lib = self._lib = _load()
        context = lib.SSL_CTX_new(lib.TLS_method())
        lib.SSL_CTX_ctrl(context, _SET_MIN_VERSION, version, None)
        lib.SSL_CTX_ctrl(context, _SET_MAX_VERSION, version, None)
        lib.SSL_CTX_ctrl(context, _MODE, _PARTIAL_AND_MOVING, None)
        lib.SSL_CTX_set_options(context, _OPTION_ALLOW_RENEGOTIATION)
        if server:
            self._identify(context, identity or server_identity())
        self._ssl = lib.SSL_new(context)
        if bio_size is None:
            self._into, self._out = (lib.BIO_new(lib.BIO_s_mem()) for _ in range(2))
            lib.SSL_set_bio(self._ssl, self._into, self._out)
        else:
            inner, outer = c_void_p(), c_void_p()
            lib.BIO_new_bio_pair(byref(inner), bio_size, byref(outer), bio_size)
            lib.SSL_set_bio(self._ssl, inner, inner)
            self._into = self._out = outer
        (lib.SSL_set_accept_state if server else lib.SSL_set_connect_state)(self._ssl)
        self.want_writes = 0
        self.short_feeds = 0

    def _identify(self, context: int, identity: Identity) -> None:
        der = identity.der
        key = identity.key.private_bytes(
            Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        )
        if not self._lib.SSL_CTX_use_certificate_ASN1(context, len(der), der):
            raise ValueError("the system's OpenSSL refuses the certificate")
        if not self._lib.SSL_CTX_use_PrivateKey_ASN1(_EC_KEY_TYPE, context, key, len(key)):
            raise ValueError("the system's OpenSSL refuses the key")

    def _check(self, result: int) -> int:
        if result > 0:
            return result
        reason = self._lib.SSL_get_error(self._ssl, result)
        if reason == _WANT_READ:
            raise WantReadError
        if reason == _WANT_WRITE:
            self.want_writes += 1
            raise WantWriteError
        if reason == _ZERO_RETURN:
            raise ZeroReturnError
        text = self._lib.ERR_reason_error_string(self._lib.ERR_get_error()) or b""
        self._lib.ERR_clear_error()
        raise Error([("SSL routines", "", text.decode())])

    # --- pyOpenSSL's names ----------------------------------------------------------------

    def do_handshake(self) -> None:
        self._lib.ERR_clear_error()
        self._check(self._lib.SSL_do_handshake(self._ssl))

    def recv(self, size: int) -> bytes:
        buffer = create_string_buffer(size)
        self._lib.ERR_clear_error()
        got = self._check(self._lib.SSL_read(self._ssl, buffer, size))
        return buffer.raw[:got]

    def send(self, data: bytes | memoryview) -> int:
        self._lib.ERR_clear_error()
        return self._check(self._lib.SSL_write(self._ssl, bytes(data), len(data)))

    def shutdown(self) -> bool:
        self._lib.ERR_clear_error()
        result = self._lib.SSL_shutdown(self._ssl)
        if result < 0:
            self._check(result)
        return bool(result == 1)

    def bio_read(self, size: int) -> bytes:
        buffer = create_string_buffer(size)
        got = self._lib.BIO_read(self._out, buffer, size)
        if got <= 0:
            raise WantReadError
        return buffer.raw[:got]

    def bio_write(self, data: bytes | memoryview) -> int:
        taken: int = self._lib.BIO_write(self._into, bytes(data), len(data))
        if taken < len(data):
            self.short_feeds += 1
        return max(taken, 0)

    def bio_shutdown(self) -> None:
        """A BIO pair has no end of input; the test's transport ends instead."""

    def set_app_data(self, data: object) -> None:
        """Nothing is kept: a protocol sets itself here."""

    def get_app_data(self) -> None:
        """Nothing was kept."""

    def set_accept_state(self) -> None:
        """It was set at the start."""

    def set_connect_state(self) -> None:
        """It was set at the start."""

    def get_context(self) -> None:
        """There is no pyOpenSSL context."""

    def get_certificate(self) -> bool:
        """Something that is not None: there is a certificate."""
        return True

    # --- more than pyOpenSSL has ----------------------------------------------------------

    def key_update(self, request: bool = True) -> None:
        """Change our sending keys, and ask the peer to change its own."""
        self._lib.SSL_key_update(self._ssl, 1 if request else 0)
        # The message leaves with the next handshake call.
        self.do_handshake()

    def renegotiate(self) -> None:
        """Begin another TLS 1.2 handshake; `do_handshake` goes on with it."""
        self._check(self._lib.SSL_renegotiate(self._ssl))

    def drain(self) -> bytes:
        """Return all output of a connection with memory BIOs."""
        output = b""
        try:
            while True:
                output += self.bio_read(65536)
        except WantReadError:
            return output

    def free(self) -> None:
        """Give the memory back; the connection is of no use afterwards."""
        self._lib.SSL_free(self._ssl)


class LibPeer(Protocol):
    """A client or server for a `MemoryPair` that speaks TLS through `LibConnection`.

    Attributes:
        connection: The OpenSSL connection.
        established: Whether the handshake has ended.
        received: Plaintext.
        errors: What OpenSSL said against the peer's input, ``"closed"`` for close_notify.
        lost: How often the connection was lost.
    """

    transport: Any

    def __init__(self, connection: LibConnection) -> None:
        self.connection = connection
        self.established = False
        self.received = bytearray()
        self.errors: list[str] = []
        self.lost = 0

    def connectionMade(self) -> None:
        self.drive()

    def dataReceived(self, data: bytes) -> None:
        self.connection.bio_write(data)
        self.drive()

    def connectionLost(self, reason: object = connectionDone) -> None:
        self.lost += 1

    def drive(self) -> None:
        """Go on with the handshake, read what there is, send what waits."""
        try:
            self.connection.do_handshake()
            self.established = True
            while True:
                self.received += self.connection.recv(16384)
        except WantReadError:
            pass
        except ZeroReturnError:
            self.errors.append("closed")
        except Error as error:
            self.errors.append(error.args[0][-1][-1])
        self.send_waiting()

    def send_waiting(self) -> None:
        """Put OpenSSL's output on the wire."""
        output = self.connection.drain()
        if output:
            self.transport.write(output)

    def say(self, data: bytes) -> None:
        """Send application data."""
        self.connection.send(data)
        self.send_waiting()
