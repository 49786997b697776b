"""The way in: ciphertext that the transport brings, plaintext that the application gets.

Owns: the order of feeding and reading, the application's pause, and the budgets for
traffic that carries nothing.  The rules:

* One whole small record, the usual request, takes the short way in ``dataReceived``; so do
  several whole records, a large value, which are given to the application in one piece.
  Everything else goes through ``_drive``, slice by slice.
* OpenSSL is asked for as many records as the input can hold (``records``) and no more; where
  boundaries are unclear it is asked until it says WANT_READ.
* After the input: writes that waited are tried again, then all output is fetched.
* The application is given nothing while it has paused, and nothing after it has raised.
  What arrived before the connection was lost is given to it, paused or not, before
  ``connectionLost``.  After ``loseConnection`` it hears on until the peer closes, as with
  Twisted's own TLS; one that has paused as well does not.

Source: SSL_read(3), RFC 8446 section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from OpenSSL.SSL import Error, WantReadError, WantWriteError, ZeroReturnError

from kvproto.base.log import make_logger
from kvproto.tls.closing import ClosingTLS
from kvproto.tls.outbox import RECORD_SIZE
from kvproto.tls.reasons import BudgetExceeded
from kvproto.tls.records import (
    APPLICATION_DATA,
    HEADER_SIZE,
    UNKNOWN,
    RecordCounter,
    leading_records,
)

__all__ = ["IncomingTLS"]

log = make_logger()

SLICE_SIZE: Final = RECORD_SIZE
"""Bytes of ciphertext fed at a time: OpenSSL's BIO keeps the size of the largest piece."""

HELD_SIZE: Final = 256 * 1024
"""Most plaintext kept for an application that has paused while TLS itself must read on."""


class IncomingTLS(ClosingTLS):
    """The receiving half of `kvproto.tls.KVTLSProtocol`."""

    renegotiation_limit: int

    _records: RecordCounter
    _unfed: list[bytes | memoryview]  # input that OpenSSL has not been given
    _held: list[bytes]  # plaintext for an application that has paused

    _read_paused = False  # by the application
    _transport_paused = False  # by us
    _gap = False  # something was dropped: what follows it would pass for what is missing
    _leftover = False  # OpenSSL may hold plaintext that a pause left there
    _dirty = False  # OpenSSL may hold output of the TLS layer itself
    _junk = 0
    _held_size = 0
    _refusals = 0

    # --- from the transport ---------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take ciphertext from the transport, and do all that follows from it."""
        size = len(data)
        if (
            not self._fast
            or self._reading
            or size < HEADER_SIZE
            or data[0] != APPLICATION_DATA
            or (data[3] << 8 | data[4]) != size - HEADER_SIZE
        ):
            ends = leading_records(data) if self._fast and not self._reading else ()
            if ends:
                self._receive_records(data, ends)
            else:
                self._receive(data)
            return
        engine = self._engine
        try:
            plaintext = engine.open(data)
        except Error as error:
            self._receive_odd(error, size)
            return
        self._junk = 0
        engine.asked_at = self._given
        self._reading = True
        try:
            self.wrappedProtocol.dataReceived(plaintext)
        except BaseException:
            self._app_failed = True
            self._fast = False
            raise
        finally:
            self._reading = False
        # Exactly one record came and it was application data: OpenSSL has nothing to say.
        if self._unfed:
            self._drive()
        elif self._outbox.pieces or self._retry is not None:
            self._flush_quickly()

    def _go_on(self, replies: list[bytes], rest: bytes) -> None:
        """Go on where the shortcut of a read has ended.

        Args:
            replies: What it has been answered with so far.
            rest: What the application has not dealt with yet.
        """
        self._reading = True
        try:
            self.writeSequence(replies)
        finally:
            self._reading = False
        if rest:
            self._hand_over(rest)
        if self._unfed:
            self._drive()
        elif self._outbox.pieces or self._retry is not None:
            self._flush_quickly()

    def _receive_records(self, data: bytes, ends: Sequence[int]) -> None:
        """Take whole records at once; what is behind them, or odd, takes the long way."""
        plaintext, fed, error = self._engine.open_all(data, ends)
        if fed < len(data):
            self._unfed.append(memoryview(data)[fed:])
            if fed not in (0, *ends):
                # A bounded BIO has taken a part of a record: its rest is no record.
                self._records.count(data[max((end for end in ends if end < fed), default=0) : fed])
        if plaintext:
            self._hand_over(plaintext)
        if isinstance(error, WantWriteError):
            self._leftover = True
        elif error is not None and not self._deaf():
            self._nothing_read(error, 0 if plaintext else fed)
        if self._unfed or error is not None:
            self._drive()
        elif self._outbox.pieces or self._retry is not None:
            self._flush()

    def _hand_over(self, plaintext: bytes) -> None:
        """Give the application what the short way has decrypted."""
        self._junk = 0
        self._engine.asked_at = self._given
        self._reading = True
        try:
            self.wrappedProtocol.dataReceived(plaintext)
        except BaseException:
            self._app_failed = True
            self._fast = False
            raise
        finally:
            self._reading = False

    def _receive(self, data: bytes) -> None:
        """Take ciphertext on the long way."""
        if not data or self._deaf():
            return
        if not self._handshakeDone:
            if len(self._first_bytes) < 8:
                self._first_bytes = (self._first_bytes + data[:8])[:8]
            if not (self._unfed or self._reading or len(data) > SLICE_SIZE):
                self._shake_hands(data)
                return
        self._unfed.append(data)
        if not self._reading:
            self._drive()

    def _shake_hands(self, data: bytes) -> None:
        """Take one read during the handshake: what `_drive` does, where that is all there is."""
        engine = self._engine
        more = False
        self._reading = True
        try:
            taken = engine.feed(data)
            if taken != len(data):
                self._unfed.append(memoryview(data)[taken:])
                data = data[:taken]
            self._records.count(data)
            if self._handshake():
                more = bool(self._outbox.pieces or self.disconnecting)
                if not self._deaf() and engine.may_hold_input():
                    more = True
                    self._read(UNKNOWN, taken)
        finally:
            self._reading = False
        if more or self._unfed:
            self._drive()

    def _receive_odd(self, error: Error, size: int) -> None:
        """Go on after one record that was fed whole but gave no application data."""
        unfed, self._engine.unfed = self._engine.unfed, None
        if unfed is not None:
            record: Any = unfed.obj
            self._records.count(record[: len(record) - len(unfed)])
            self._unfed.insert(0, unfed)
        if isinstance(error, WantWriteError):
            self._leftover = True
        else:
            self._nothing_read(error, size)
        self._drive()

    def _deaf(self) -> bool:
        """Return whether input is of no use to anybody any more."""
        return self._lostTLSConnection or self._aborted or self._peer_done or self._app_failed

    def _drive(self) -> None:
        """Feed, hand over, retry, fetch: until nothing is left or the application pauses."""
        self._reading = True
        try:
            while self._held and not self._read_paused:
                self._deliver(self._held.pop(0))
            if self._leftover and not self._holds_input():
                self._leftover = False
                self._read(UNKNOWN, 0)
            while self._unfed and not self._deaf() and not self._holds_input():
                if not self._feed():
                    break
        finally:
            self._reading = False
            if self._held_size and not self._held:
                self._held_size = 0
        self._input_rules_changed()
        self._flush()
        if self._dirty:
            self._dirty = False
            self._drain()
            if self._unread > self.junk_budget:
                self._cut(BudgetExceeded("the peer makes TLS answer and does not read"))
        if self._input_ended and not (self._deaf() or self._leftover or self._held):
            self._peer_ended()

    def _feed(self) -> bool:
        """Feed one segment by slices and read what each completes; return whether to go on."""
        data = self._unfed.pop(0)
        size = len(data)
        view = data if size <= SLICE_SIZE else memoryview(data)
        fed = 0
        while fed < size and not self._deaf() and not (self._read_paused and self._holds_input()):
            piece = view[fed : fed + SLICE_SIZE]
            taken = self._engine.feed(piece)
            fed += taken
            if taken != len(piece):
                piece = piece[:taken]
            if self._handshakeDone:
                records = self._records.count(piece) if taken else UNKNOWN
                if self._records.cipher_changes and not self._renegotiated():
                    return False
            else:
                self._records.count(piece)
                ended = self._handshake() and not self._deaf()
                records = UNKNOWN if ended and self._engine.may_hold_input() else 0
            if records:
                self._read(records, taken)
            else:
                self._count_junk(taken)
            # A bounded BIO may be full once; when reading did not help, the next event will.
            self._refusals = 0 if taken else self._refusals + 1
            if self._refusals >= 2:
                break
        if fed < size:
            self._unfed.insert(0, memoryview(data)[fed:])
        return self._refusals < 2

    def _renegotiated(self) -> bool:
        """Count a renegotiation that is about to end; return whether it is within the limit."""
        self.renegotiation_limit -= self._records.cipher_changes
        self._records.cipher_changes = 0
        # A renegotiation that is granted may carry large certificates.
        self._junk = 0
        if self.renegotiation_limit >= 0:
            return True
        self._cut(BudgetExceeded("the peer renegotiates too often"))
        return False

    def _read(self, records: int, size: int) -> None:
        """Hand over what OpenSSL can decrypt.

        Args:
            records: How many records can be complete.
            size: Bytes of ciphertext that this comes from.
        """
        engine = self._engine
        got = 0
        try:
            while got < records:
                try:
                    plaintext = engine.read()
                except WantWriteError:
                    if self._make_room():
                        continue
                    break
                got += 1
                self._deliver(plaintext)
                if self._read_paused and self._holds_input():
                    self._leftover = True
                    break
                if self._lostTLSConnection or self._aborted:
                    return
        except Error as error:
            self._nothing_read(error, 0 if got else size)
        else:
            if got < records:
                self._dirty = True
        if got:
            self._junk = 0

    def _nothing_read(self, error: Error, size: int) -> None:
        """Act on what OpenSSL says instead of giving plaintext.

        Args:
            error: What it raised.
            size: Bytes of ciphertext that carried no application data.
        """
        if isinstance(error, WantReadError):
            self._dirty = True
            self._count_junk(size)
        elif isinstance(error, ZeroReturnError):
            self._peer_ended()
        else:
            self._openssl_failed(error)

    def _count_junk(self, size: int) -> None:
        """Count ciphertext that gave no application data, and cut the peer above the budget."""
        if not self._handshakeDone:
            return
        self._junk += size
        if self._junk > self.junk_budget:
            self._cut(BudgetExceeded("too much TLS traffic without application data"))

    def _deliver(self, plaintext: bytes) -> None:
        """Give plaintext to the application, or keep it, or drop it."""
        if self._read_paused and not self._ended:
            if self.disconnecting:
                self._gap = True
                return
            self._held.append(plaintext)
            self._held_size += len(plaintext)
            return
        if self._gap:
            return
        self._engine.asked_at = self._given
        try:
            self.wrappedProtocol.dataReceived(plaintext)
        except BaseException:
            self._app_failed = True
            self._fast = False
            raise

    def readConnectionLost(self) -> None:
        """Hear that the transport's input has ended: what came before it is answered."""
        if self._input_ended or self._ended:
            return
        self._input_ended = True
        if self._lostTLSConnection or self._aborted or self._app_failed:
            return
        if not self._handshakeDone:
            self.transport.loseConnection()
        elif not self._reading:
            self._drive()

    def writeConnectionLost(self) -> None:
        """Nothing to do: it is us who close the transport for writing, and all of it."""

    def _read_last(self) -> None:
        self._unfed, unfed = [], self._unfed
        if not self._handshakeDone:
            return
        self._reading = True
        try:
            for plaintext in self._held:
                self._deliver(plaintext)
            self._read(UNKNOWN, 0)
            for data in unfed:
                if not self._deaf():
                    self._engine.feed(data)
                    self._read(UNKNOWN, 0)
            if not self._deaf():
                self._engine.end_of_input()
                self._read(UNKNOWN, 0)
        except Exception:
            log.failure("the application failed while it was given its last data")
        finally:
            self._reading = False

    # --- pauses ---------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`; TLS itself reads on where it has to."""
        self._read_paused = True
        self._input_rules_changed()

    def resumeProducing(self) -> None:
        """Deliver what has waited, then read on."""
        self._read_paused = False
        if not self._reading and (self._held or self._leftover or self._unfed) and not self._deaf():
            self._drive()
        else:
            self._input_rules_changed()

    def stopProducing(self) -> None:
        """Close: there is nobody to deliver to."""
        self.loseConnection()

    def _holds_input(self) -> bool:
        """Return whether input waits for the application to resume."""
        return (
            self._read_paused
            and self._handshakeDone
            and not (self.disconnecting or self._ended)
            and (self._retry is None or self._held_size > HELD_SIZE)
        )

    def _input_rules_changed(self) -> None:
        self._close_shortcut()
        paused = self._holds_input()
        self._fast = not (
            paused
            or self._read_paused
            or not self._handshakeDone
            or self.disconnecting
            or self._deaf()
            or self._unfed
            or self._held
            or self._leftover
            or not self._records.aligned
        )
        if paused is not self._transport_paused and not (self._ended or self._input_ended):
            self._transport_paused = paused
            if paused:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def _peer_must_go_first(self) -> None:
        self._waits_for_peer = True
        self._arm_handshake()
        self._input_rules_changed()

    def _peer_has_gone_first(self) -> None:
        self._waits_for_peer = False
        self._disarm_handshake()
        self._input_rules_changed()

    # --- what the rest of the protocol adds -----------------------------------------------

    def _handshake(self) -> bool:
        """Let OpenSSL go on with the handshake; return whether it has ended well."""
        raise NotImplementedError
