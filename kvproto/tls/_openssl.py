"""Every call into an OpenSSL connection with memory BIOs: the seam for a faster way.

Owns: the sequence of pyOpenSSL calls that one step of the protocol needs.  Never
touches a transport, a clock or an application.  All calls are public pyOpenSSL; a
module that uses cheaper handles can give the protocol another class with these
methods and the same meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, Final

from OpenSSL.SSL import (
    OP_IGNORE_UNEXPECTED_EOF,
    Connection,
    Error,
    WantReadError,
    WantWriteError,
)

from kvproto.tls.outbox import RECORD_SIZE

__all__ = ["Answer", "Engine"]

Answer = Callable[[bytes, list[bytes]], int]
"""`kvproto.interfaces.IAnswers.answer`."""

_DRAIN_SIZE: Final = 80 * 1024
"""Fetches a `PIECE_SIZE` of plaintext, encrypted, in one go."""

_RECORD_OVERHEAD: Final = 256
"""More than a record adds to its plaintext in any version and cipher of TLS."""


class Engine:
    """One OpenSSL connection, between ciphertext and plaintext.

    All methods let OpenSSL's exceptions through.

    Args:
        connection: In its connect or accept state, with memory BIOs.

    Attributes:
        connection: The same.
        bounded: Whether its output is bounded, as a WANT_WRITE has shown: then output comes
            in pieces of any size, and `drain` asks until it is refused.
        unfed: The rest of a record that `open` could not feed, a view of the record.
        asked_at: Bytes given to the transport when the application was last given data, -1 before
            that; set by who gives.
        busy: Whether a call to `handshake` is on the stack, callbacks included; set by its caller.
    """

    __slots__ = ("asked_at", "bounded", "busy", "connection", "unfed")

    seals = False
    """Whether there is a `seal`: an encryption that is whole or not at all."""

    def __init__(self, connection: Connection) -> None:
        # Any: tests and programs put other objects with the same methods here.
        self.connection: Any = connection
        self.unfed: memoryview | None = None
        self.asked_at = -1
        self.bounded = self.busy = False

    def feed(self, data: bytes | memoryview) -> int:
        """Give ciphertext to OpenSSL and return how many bytes it took."""
        try:
            taken = self.connection.bio_write(data)
        except (WantReadError, WantWriteError):
            # A bounded BIO that is full says "retry" in one of these ways.
            return 0
        return len(data) if taken is None else int(taken)

    def open(self, record: bytes) -> bytes:
        """Feed one whole small record and return its plaintext.

        What a bounded BIO did not take is left in `unfed`, with a `WantReadError`.
        """
        size = len(record)
        taken = self.feed(record)
        if taken != size:
            self.unfed = memoryview(record)[taken:]
            raise WantReadError
        plaintext: bytes = self.connection.recv(size)
        return plaintext

    def open_all(self, data: bytes, ends: Sequence[int]) -> tuple[bytes, int, Error | None]:
        """Feed whole records and open them, one after the other.

        Args:
            data: Ciphertext that begins with the records.
            ends: Where each ends.

        Returns:
            Their plaintext joined, how many bytes were fed, and what OpenSSL raised at the last
            one that was fed; None when all were opened, or when no more fit at once.
        """
        view = memoryview(data)
        pieces: list[bytes] = []
        at = 0
        try:
            for end in ends:
                at += (taken := self.feed(view[at:end]))
                if at != end:
                    # Whatever a bounded BIO has of this record is not to be read yet.
                    return b"".join(pieces), at, None if taken else WantReadError()
                pieces.append(self.read())
        except Error as error:
            # Without its frames: they would keep this call's caller, and the connection.
            return b"".join(pieces), at, error.with_traceback(None)
        return b"".join(pieces), at, None

    def read(self) -> bytes:
        """Return the plaintext of the next record."""
        plaintext: bytes = self.connection.recv(RECORD_SIZE)
        return plaintext

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt, and return how many bytes of `data` that covered."""
        sent: int = self.connection.send(data)
        return sent

    def seal(self, data: bytes | memoryview) -> bytes:
        """Encrypt all of `data`, and return all ciphertext that waits."""
        raise NotImplementedError

    def shortcut(
        self, owner: Any, answer: Answer, queued: Sized, write: Callable[[bytes], object]
    ) -> Any:
        """Return a `kvproto.tls.shortcut.Shortcut`, where there is a `seal`."""
        raise NotImplementedError

    def fetch(self, plaintext_size: int) -> bytes:
        """Return all ciphertext that waits after `plaintext_size` bytes were encrypted."""
        size = plaintext_size + _RECORD_OVERHEAD
        try:
            ciphertext: bytes = self.connection.bio_read(size)
        except WantReadError:
            return b""
        if len(ciphertext) < size and not self.bounded:
            return ciphertext
        return ciphertext + self.drain()

    def drain(self) -> bytes:
        """Return all ciphertext that waits, however much; empty when there is none."""
        read = self.connection.bio_read
        pieces: list[bytes] = []
        try:
            # A short read is exact for a memory BIO, and asking until it refuses would
            # never end on stand-ins that always have something.
            while not pieces or len(pieces[-1]) == _DRAIN_SIZE or self.bounded:
                pieces.append(read(_DRAIN_SIZE))
        except Error:
            return b"".join(pieces)
        return b"".join(pieces)

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it has ended, or waits for the peer."""
        try:
            self.connection.do_handshake()
        except WantReadError:
            return False
        return True

    def may_hold_input(self) -> bool:
        """Return whether there may be ciphertext that was fed and has not been looked at."""
        return True

    def shutdown(self) -> bool:
        """Send close_notify; return whether the peer's has arrived as well."""
        return bool(self.connection.shutdown())

    def may_take_fin_for_goodbye(self) -> bool:
        """Return whether the options tell OpenSSL to take the end of the input for a goodbye."""
        # Absent in older pyOpenSSL, and in what tests put here: then OpenSSL is to be asked.
        set_options = getattr(self.connection, "set_options", None)
        return set_options is None or bool(set_options(0) & OP_IGNORE_UNEXPECTED_EOF)

    def end_of_input(self) -> None:
        """Mark the end of the input: no more ciphertext will be fed."""
        try:
            self.connection.bio_shutdown()
        except Error:
            # Nothing more can be said to a connection that is broken already.
            return
