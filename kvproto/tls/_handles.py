"""A cheaper way into OpenSSL: the handles inside pyOpenSSL's connections.

pyOpenSSL allocates a buffer for each call, wraps each argument, and asks OpenSSL for an
error after each success.  `CffiEngine` makes the same calls into OpenSSL with buffers
that the process keeps, and goes to pyOpenSSL only when one of them does not succeed: what
is raised then is what pyOpenSSL raises.  `NativeEngine` does the same in compiled code, where
the installation had a C compiler: OpenSSL's functions are called at their addresses.  Measured
for one small request and reply, microseconds: pyOpenSSL 4.2, handles 1.5, compiled 0.75.

The only module that touches private parts of pyOpenSSL: ``OpenSSL._util``'s ``lib`` and
``ffi``, and of a connection ``_ssl``, ``_into_ssl``, ``_from_ssl``, ``_raise_ssl_error``; and of
cryptography: the library behind them, whose functions have addresses.  Where one is missing, or a
connection is not pyOpenSSL's own with memory BIOs, `engine_for` gives the next best engine, in the
end the public `kvproto.tls._openssl.Engine`.

The buffers are shared by all connections: what OpenSSL has written into them is copied out
before anything else can run.  Like all of a protocol, engines belong to one thread.

Source: SSL_read(3), SSL_write(3), BIO_s_mem(3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import Any, Final

from OpenSSL import SSL

from kvproto.base.compiled import compiled
from kvproto.tls._openssl import Engine
from kvproto.tls.outbox import PIECE_SIZE, RECORD_SIZE
from kvproto.tls.shortcut import Answer, Shortcut

__all__ = ["AVAILABLE", "NATIVE", "CffiEngine", "NativeEngine", "engine_for"]

_SIZE: Final = PIECE_SIZE + 4 * RECORD_SIZE
"""Room for a flush, encrypted, with much to spare."""

_CALLS: Final = (
    *("BIO_get_mem_data", "BIO_read", "BIO_write", "SSL_clear_mode", "SSL_do_handshake"),
    *("SSL_get_error", "SSL_pending", "SSL_read", "SSL_write"),
)

_TRANSFERS: Final = ("BIO_read", "BIO_write", "SSL_read", "SSL_write")
_TRANSFER_TYPES: Final = {"int(*)(BIO *, void *, int)", "int(*)(SSL *, void *, int)"}
"""What compiled code takes them for."""

_native = compiled("kvproto.tls._native")

lib: Any
ffi: Any
try:
    from OpenSSL._util import ffi, lib
except ImportError:
    lib = ffi = None

AVAILABLE: Final = (
    lib is not None
    and all(hasattr(lib, name) for name in _CALLS)
    and hasattr(SSL.Connection, "_raise_ssl_error")
)
"""Whether this pyOpenSSL has what the module needs."""

if AVAILABLE:
    _BIO_read, _BIO_write = lib.BIO_read, lib.BIO_write
    _SSL_read, _SSL_write = lib.SSL_read, lib.SSL_write
    _SSL_do_handshake, _SSL_get_error = lib.SSL_do_handshake, lib.SSL_get_error
    _SSL_pending, _BIO_get_mem_data = lib.SSL_pending, lib.BIO_get_mem_data
    _WANT_READ, _NULL = lib.SSL_ERROR_WANT_READ, ffi.NULL
    _from_buffer = ffi.from_buffer
    _buffer = ffi.new("char[]", _SIZE)
    _view = ffi.buffer(_buffer, _SIZE)


class CffiEngine(Engine):
    """An `Engine` for pyOpenSSL's own connections with memory BIOs."""

    __slots__ = ("_from_ssl", "_into_ssl", "_ssl")

    seals = True

    def __init__(self, connection: SSL.Connection) -> None:
        super().__init__(connection)
        self._ssl = self.connection._ssl
        self._into_ssl = self.connection._into_ssl
        self._from_ssl = self.connection._from_ssl
        # Several records in one call; a memory BIO takes them all.
        lib.SSL_clear_mode(self._ssl, lib.SSL_MODE_ENABLE_PARTIAL_WRITE)

    def feed(self, data: bytes | memoryview) -> int:
        """Give ciphertext to OpenSSL and return how many bytes it took."""
        source = data if data.__class__ is bytes else _from_buffer(data)
        taken: int = _BIO_write(self._into_ssl, source, len(data))
        return taken if taken > 0 else super().feed(data)

    def open(self, record: bytes) -> bytes:
        """Feed one whole small record and return its plaintext."""
        size = len(record)
        if record.__class__ is not bytes or _BIO_write(self._into_ssl, record, size) != size:
            return super().open(record)
        got = _SSL_read(self._ssl, _buffer, RECORD_SIZE)
        if got <= 0:
            self.connection._raise_ssl_error(self._ssl, got)
        plaintext: bytes = _view[:got]
        return plaintext

    def open_all(self, data: bytes, ends: Sequence[int]) -> tuple[bytes, int, SSL.Error | None]:
        """Feed whole records and open them, one after the other."""
        into_ssl, ssl = self._into_ssl, self._ssl
        source = _from_buffer(data)
        at = size = 0
        for end in ends:
            if size > _SIZE - RECORD_SIZE:
                break
            if _BIO_write(into_ssl, source + at, end - at) != end - at:
                break
            at = end
            got = _SSL_read(ssl, _buffer + size, RECORD_SIZE)
            if got <= 0:
                plaintext = _view[:size]
                try:
                    self.connection._raise_ssl_error(ssl, got)
                except SSL.Error as error:
                    return plaintext, at, error.with_traceback(None)
            size += got
        return _view[:size], at, None

    def read(self) -> bytes:
        """Return the plaintext of the next record."""
        got = _SSL_read(self._ssl, _buffer, RECORD_SIZE)
        if got <= 0:
            self.connection._raise_ssl_error(self._ssl, got)
        plaintext: bytes = _view[:got]
        return plaintext

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt, and return how many bytes of `data` that covered: all of them."""
        source = data if data.__class__ is bytes else _from_buffer(data)
        sent: int = _SSL_write(self._ssl, source, len(data))
        if sent <= 0:
            self.connection._raise_ssl_error(self._ssl, sent)
        return sent

    def seal(self, data: bytes | memoryview) -> bytes:
        """Encrypt all of `data`, and return all ciphertext that waits."""
        source = data if data.__class__ is bytes else _from_buffer(data)
        sent = _SSL_write(self._ssl, source, len(data))
        if sent <= 0:
            self.connection._raise_ssl_error(self._ssl, sent)
        size = _BIO_read(self._from_ssl, _buffer, _SIZE)
        if 0 < size < _SIZE:
            ciphertext: bytes = _view[:size]
            return ciphertext
        return (_view[:size] if size > 0 else b"") + self.drain()

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it has ended, or waits for the peer."""
        ssl = self._ssl
        result = _SSL_do_handshake(ssl)
        if result == 1:
            return True
        # A callback that has raised makes OpenSSL fail: pyOpenSSL need not be asked about those.
        if _SSL_get_error(ssl, result) != _WANT_READ:
            self.connection._raise_ssl_error(ssl, result)
        return False

    def may_hold_input(self) -> bool:
        """Return whether there is ciphertext that was fed and has not been looked at.

        OpenSSL takes record after record out of the BIO, and none before it is asked for more.
        """
        return bool(_BIO_get_mem_data(self._into_ssl, _NULL) or _SSL_pending(self._ssl))

    def shortcut(
        self, owner: Any, answer: Answer, queued: Sized, write: Callable[[bytes], object]
    ) -> Shortcut:
        """Return a shortcut through this engine; see `kvproto.tls.shortcut`."""
        return Shortcut(self, owner, answer, queued, write)

    def fetch(self, plaintext_size: int) -> bytes:
        """Return all ciphertext that waits after `plaintext_size` bytes were encrypted."""
        return self.drain()

    def drain(self) -> bytes:
        """Return all ciphertext that waits, however much; empty when there is none."""
        size = _BIO_read(self._from_ssl, _buffer, _SIZE)
        if size < _SIZE:
            return _view[:size] if size > 0 else b""
        pieces: list[bytes] = []
        while size > 0:
            pieces.append(_view[:size])
            size = _BIO_read(self._from_ssl, _buffer, _SIZE) if size == _SIZE else 0
        return b"".join(pieces)


class NativeEngine(CffiEngine):
    """The same; what every request needs is compiled."""

    # These three are methods of a `kvproto.tls._native.Pipe`, found on the instance.
    __slots__ = ("_pipe", "drain", "open", "seal")

    def __init__(self, connection: SSL.Connection) -> None:
        super().__init__(connection)
        ssl = self._ssl
        # It knows the connection, which does not know it: no circle.
        self._pipe = pipe = _native.Pipe(
            _address(ssl),
            _address(self._into_ssl),
            _address(self._from_ssl),
            connection,
            partial(connection._raise_ssl_error, ssl),
        )
        self.open, self.seal, self.drain = pipe.open, pipe.seal, pipe.drain  # type: ignore[method-assign]

    def shortcut(
        self, owner: Any, answer: Answer, queued: Sized, write: Callable[[bytes], object]
    ) -> Shortcut:
        """Return a shortcut, compiled as well."""
        made: Shortcut = _native.Shortcut(self._pipe, owner, answer, queued, write)
        return made


def _address(pointer: Any) -> int:
    """Return where a cffi pointer points."""
    return int(ffi.cast("uintptr_t", pointer))


def _addresses() -> list[int]:
    """Return where OpenSSL's functions are; nothing where that is not known for certain."""
    try:
        # pyOpenSSL's copy of the library has the functions, the original also their addresses.
        from cryptography.hazmat.bindings._rust import _openssl

        functions = [_openssl.ffi.addressof(_openssl.lib, name) for name in _TRANSFERS]
    except (ImportError, AttributeError, TypeError):
        return []
    if any(_openssl.ffi.typeof(function).cname not in _TRANSFER_TYPES for function in functions):
        return []
    return [_address(function) for function in functions]


def _use(native: Any) -> bool:
    """Give compiled code the addresses of OpenSSL's functions; return whether it can be used."""
    addresses = _addresses() if AVAILABLE and native is not None else []
    if addresses:
        native.use(*addresses)
    return bool(addresses)


NATIVE: Final = _use(_native)
"""Whether there is compiled code that can be used."""

_best_engine: type[Engine] = NativeEngine if NATIVE else CffiEngine


def engine_for(connection: Any) -> Engine:
    """Return the best engine that there is for a connection."""
    # A subclass may have methods of its own, which must be called then.
    if (
        AVAILABLE
        and connection.__class__ is SSL.Connection
        and getattr(connection, "_ssl", None) is not None
        and getattr(connection, "_into_ssl", None) is not None
        and getattr(connection, "_from_ssl", None) is not None
    ):
        return _best_engine(connection)
    return Engine(connection)
