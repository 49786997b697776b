"""The shortest way of a request: from ciphertext that was read to ciphertext to send, in one call.

Most reads hold one record, and in it requests that the application can answer at once.  A
`Shortcut` takes such a read past the TLS protocol and the application's protocol: it decrypts,
asks the application's `IAnswers.answer`, and encrypts what that gives.  It is offered to the
transport (`IShortcutTransport`) only while nothing else is under way, and whatever is out of the
ordinary goes on in the TLS protocol:

* a read that is not exactly one record: the transport gives it to the protocol as ever;
* a record that holds no application data, or is broken: ``take_odd_record``;
* requests that cannot be answered in place, replies that do not fit into a record, or that
  OpenSSL will not take now: ``finish_read``.

What is answered later, and not in a read, takes half of that way (`Shortcut.send`) while nothing
waits before it.

A compiled one, ``kvproto.tls._native``, does the same where it was built, and reads from the socket
and sends to it as well (`kvproto.listeners.transport.DirectServer`), so that nothing is made of
what is only passed on; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, Protocol

from OpenSSL.SSL import Error

from kvproto.tls._openssl import Answer, Engine
from kvproto.tls.outbox import PIECE_SIZE, RECORD_SIZE
from kvproto.tls.records import APPLICATION_DATA, HEADER_SIZE

__all__ = ["Answer", "Shortcut", "ShortcutOwner"]


class ShortcutOwner(Protocol):
    """The TLS protocol, for a shortcut."""

    def take_odd_record(self, error: Error, size: int) -> None:
        """Go on after one record that was fed whole but gave no application data."""

    def finish_read(self, replies: list[bytes], rest: bytes) -> None:
        """Send replies, then give the application the rest of what was read."""


class Shortcut:
    """One connection's shortcut.

    Args:
        engine: Its OpenSSL, one that can `seal`.
        owner: Goes on where this ends.
        answer: The application's.
        queued: What waits to be encrypted, longer than nothing if something does.
        write: Takes ciphertext for the transport.
    """

    __slots__ = ("_answer", "_engine", "_owner", "_queued", "_write")

    def __init__(
        self,
        engine: Engine,
        owner: Any,
        answer: Answer,
        queued: Sized,
        write: Callable[[bytes], object],
    ) -> None:
        self._engine = engine
        self._owner: ShortcutOwner = owner
        self._answer = answer
        self._queued = queued
        self._write = write

    def send(self, data: bytes) -> bool:
        """Encrypt and write what nothing waits before.

        Returns:
            Whether that was done; otherwise nothing was.
        """
        if self._queued or not 0 < len(data) <= PIECE_SIZE:
            return False
        try:
            ciphertext = self._engine.seal(data)
        except Error:
            # OpenSSL says the same once more, to who knows what follows from it.
            return False
        self._write(ciphertext)
        return True

    def __call__(self, data: bytes) -> bytes | None:
        """Take a read.

        Returns:
            What to send, ``b""`` for nothing; None when nothing was done with the read.
        """
        size = len(data)
        if (
            size < HEADER_SIZE
            or data[0] != APPLICATION_DATA
            or (data[3] << 8 | data[4]) != size - HEADER_SIZE
        ):
            return None
        engine = self._engine
        try:
            plaintext = engine.open(data)
        except Error as error:
            self._owner.take_odd_record(error, size)
            return b""
        replies: list[bytes] = []
        at = self._answer(plaintext, replies)
        if at == len(plaintext):
            size = sum(map(len, replies))
            if not size:
                return b""
            # What is more than a record is not joined: that would copy a large value.
            if size <= RECORD_SIZE:
                reply = replies[0] if len(replies) == 1 else b"".join(replies)
                try:
                    return engine.seal(reply)
                except Error:
                    # OpenSSL says the same once more, to who knows what follows from it.
                    replies = [reply]
        self._owner.finish_read(replies, plaintext[at:])
        return b""
