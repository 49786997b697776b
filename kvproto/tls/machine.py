"""TLS without input and output: ciphertext in, plaintext and events out, and the other way round.

`TLSMachine` drives OpenSSL over memory BIOs.  It knows no transport, no clock, no application and
no log; whoever owns one gives it what was read (`TLSMachine.receive`), asks for what happened until
nothing has (`TLSMachine.next_event`), queues plaintext (`Outbox.put`), and sends what
`TLSMachine.encrypt` and `TLSMachine.take_output` return.

Theory
------

**Why a read may write.**  Handshake messages, alerts and answers to KeyUpdate are produced inside
SSL_read and SSL_do_handshake.  So all output is fetched after *every* call into OpenSSL, whatever
the call said: `dirty` says that a call was made since.  Nothing tells when more is there than one
fetch of a fixed size brings; whoever fetches less than all stalls large handshakes for ever.

**Why a write may need a read.**  While a TLS 1.2 renegotiation is under way SSL_write may answer
WANT_READ.  The identical call, with the same bytes, must then be repeated before any other write:
the bytes wait in front of the queue, and `waits_for_peer` says what for.  Input must be read on
meanwhile, even for an application that has paused.

**WANT_WRITE.**  A memory BIO takes everything and never says it.  A bounded BIO does, from any
call, and a bounded input BIO takes ciphertext in parts: the answer is to fetch the output and to
repeat the identical call, and to give up until the next event when that has moved nothing twice.

**What is asked when.**  The length of a record stands in clear in its header (`records`), so it is
known how many reads can succeed, and OpenSSL need not be asked to refuse one more.  Where headers
make no sense it is asked until it says WANT_READ.  There is no ``send(b"")`` to find out whether
something waits: on an idle connection its answer cannot be told from the end of the input.

**What cannot be known.**  Whether a FIN without close_notify is a peer that has closed altogether,
one that reads on, or an attacker's cut: the answers to what was asked are sent, and the reason says
that the end was not announced.  Whether a peer reads at all: that is the owner's deadline.

States
------

::

    HANDSHAKING ─handshake done─> OPEN ─peer's end─> PEER_ENDED ─close()─> CLOSED
                                   └────close()────> SHUT ───peer's end──> CLOSED

    any ─OpenSSL fails, budget exceeded, abort()─> CLOSED

The peer's end is its close_notify or, by `TLSMachine.end_input`, a FIN.  A renegotiation does not
leave OPEN.  `TABLE` says the same to programs and tests.

Source: SSL_read(3), SSL_write(3), SSL_get_error(3), SSL_shutdown(3); RFC 8446 section 6.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

from OpenSSL.SSL import Error, WantReadError, WantWriteError, ZeroReturnError

from kvproto.tls._openssl import Engine
from kvproto.tls.outbox import PIECE_SIZE, RECORD_SIZE, Outbox
from kvproto.tls.reasons import BudgetExceeded
from kvproto.tls.records import UNKNOWN, RecordCounter

__all__ = [
    "CLOSED",
    "HANDSHAKING",
    "OPEN",
    "PEER_ENDED",
    "SHUT",
    "TABLE",
    "Event",
    "State",
    "TLSMachine",
]

SLICE_SIZE: Final = RECORD_SIZE
"""Bytes of ciphertext fed at a time: OpenSSL's BIO keeps the size of the largest piece."""

_MAX_IDLE_FLUSHES: Final = 2
"""Fetches without output after which WANT_WRITE is not answered by trying again at once."""

_MAX_REFUSALS: Final = 2
"""Feeds of which a bounded BIO takes nothing after which feeding waits for the next event."""


class State(enum.Enum):
    """What can be said through TLS."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    PEER_ENDED = "peer ended"
    SHUT = "shut"
    CLOSED = "closed"

    # Each is there once, so that where it is will do; the usual hash is Python code.
    __hash__ = object.__hash__


class Event(enum.Enum):
    """What `TLSMachine.next_event` tells besides plaintext."""

    HANDSHAKE_DONE = "handshake done"
    PEER_ENDED = "peer ended"
    FAILED = "failed"


HANDSHAKING, OPEN, PEER_ENDED, SHUT, CLOSED = _H, _O, _P, _S, _C = State
"""The states, for who asks often: CPython looks at length for each attribute of an enumeration."""

_HANDSHAKE_DONE: Final = Event.HANDSHAKE_DONE

TABLE: Final[dict[str, dict[State, State]]] = {
    "handshake done": {_H: _O, _O: _O, _P: _P, _S: _S, _C: _C},
    "peer ended": {_H: _C, _O: _P, _P: _P, _S: _C, _C: _C},
    "close": {_H: _C, _O: _S, _P: _C, _S: _S, _C: _C},
    "fail": dict.fromkeys(State, _C),
}
"""``TABLE[what happens][state]`` is the state after it; nothing else changes the state."""

_HEARS: Final = frozenset({_H, _O, _S})
"""States in which input means something."""


class TLSMachine:
    """One connection's TLS.

    Args:
        engine: Its OpenSSL connection, in connect or accept state.
        junk_budget: Bytes of ciphertext that may arrive without application data in them.
        renegotiations: How many of them may be done.

    Attributes:
        engine: As given.
        state: See above.
        last: The state before `State.CLOSED`, the same as `state` while it is not closed.
        error: Why it is `State.CLOSED`, where that was a failure: OpenSSL's error or
            `kvproto.tls.reasons.BudgetExceeded`.
        truncated: Whether the peer's end was a FIN without close_notify.
        outbox: Plaintext that waits to be encrypted.
        junk: Bytes of ciphertext since the last application data; set to 0 by whoever opens
            records past `next_event`.
        dirty: Whether OpenSSL may hold output of its own.
        waits_for_peer: Whether OpenSSL refuses to write until it has read something.
        unfed: Ciphertext that OpenSSL has not been given.
        first_bytes: The first bytes that the peer has sent, 8 at most.
    """

    __slots__ = (
        "_final",
        "_idle_flushes",
        "_junk_budget",
        "_news",
        "_odd",
        "_readable",
        "_ready",
        "_records",
        "_refusals",
        "_renegotiations",
        "_retry",
        "_uncounted",
        "dirty",
        "engine",
        "error",
        "first_bytes",
        "junk",
        "last",
        "outbox",
        "state",
        "truncated",
        "unfed",
        "waits_for_peer",
    )

    def __init__(self, engine: Engine, junk_budget: int, renegotiations: int) -> None:
        self.engine = engine
        self.junk = 0
        self.outbox = Outbox()
        self.state = self.last = HANDSHAKING
        self.dirty = self.waits_for_peer = self.truncated = False
        self.error: Exception | None = None
        self.first_bytes = b""
        self.unfed: list[bytes | memoryview] = []
        self._readable = 0  # records that may be complete in OpenSSL
        self._retry: bytes | memoryview | None = None  # refused by OpenSSL; goes first, unchanged
        self._records = RecordCounter()
        self._ready: list[bytes] = []  # output fetched to make room for a refused call
        self._news: Event | None = None
        self._odd: tuple[Error, int] | None = None  # what OpenSSL said to the short way
        self._final = False  # no more input will come: OpenSSL is to be told
        self._uncounted = 0  # bytes fed of which it is not known yet whether they are junk
        self._idle_flushes = self._refusals = 0
        self._junk_budget = junk_budget
        self._renegotiations = renegotiations

    def _move(self, what: str) -> None:
        self.state = new = TABLE[what][self.state]
        if new is not CLOSED:
            self.last = new

    # --- in -------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take ciphertext that was read; `next_event` tells what follows from it."""
        if not data or self.state not in _HEARS:
            return
        if self.state is HANDSHAKING and len(self.first_bytes) < 8:
            self.first_bytes = (self.first_bytes + data[:8])[:8]
        self.unfed.append(data)

    def next_event(self) -> bytes | Event | None:
        """Return the next plaintext or event, None when there is nothing more for the moment."""
        engine = self.engine
        while True:
            if self._news is not None:
                news, self._news = self._news, None
                return news
            if self._odd is not None:
                (error, size), self._odd = self._odd, None
                self._act_on(error, size)
            elif self._readable:
                try:
                    plaintext = engine.read()
                except WantWriteError:
                    if not self._make_room():
                        return None
                except Error as error:
                    self._readable = 0
                    self._act_on(error, self._uncounted)
                else:
                    self._readable -= 1
                    self._uncounted = self.junk = 0
                    return plaintext
            elif self.unfed and self.state in _HEARS and self._refusals < _MAX_REFUSALS:
                self._feed()
            elif self._final and self.state in _HEARS:
                self._final = False
                engine.end_of_input()
                self._readable = UNKNOWN
            else:
                # A bounded BIO may be full; when reading did not help, the next event will.
                self._refusals = 0
                return None

    def open_records(self, data: bytes, ends: Sequence[int]) -> bytes:
        """Decrypt a read that begins with whole records of application data.

        Only while `idle`.  What is behind them, or odd, is told by `next_event`.

        Args:
            data: The read.
            ends: Where each record ends (`kvproto.tls.records.leading_records`).

        Returns:
            The plaintext of all, joined.
        """
        plaintext, fed, error = self.engine.open_all(data, ends)
        if fed < len(data):
            self.unfed.append(memoryview(data)[fed:])
            if fed not in (0, *ends):
                # A bounded BIO has taken a part of a record: its rest is no record.
                self._records.count(data[max((end for end in ends if end < fed), default=0) : fed])
        if error is not None:
            self._odd = error, 0 if plaintext else fed
        if plaintext:
            self.junk = 0
        return plaintext

    def note_odd(self, error: Error, size: int) -> None:
        """Take what OpenSSL has raised at a record that was fed past `next_event`.

        Args:
            error: What it raised.
            size: Bytes of the record.
        """
        unfed, self.engine.unfed = self.engine.unfed, None
        if unfed is not None:
            record: Any = unfed.obj
            self._records.count(record[: len(record) - len(unfed)])
            self.unfed.insert(0, unfed)
        self._odd = error, size

    @property
    def idle(self) -> bool:
        """Whether the next input begins a record, and nothing waits to be told."""
        return (
            self.state is OPEN
            and self._records.aligned
            and not (self.unfed or self._readable or self._news or self._odd)
        )

    @property
    def has_input(self) -> bool:
        """Whether `next_event` may have something to tell."""
        return bool(self.unfed or self._readable or self._news or self._odd)

    def handshake(self) -> None:
        """Go on with the handshake; `next_event` tells of its end."""
        engine = self.engine
        done = False
        failure: Error | None = None
        engine.busy = self.dirty = True
        try:
            while True:
                try:
                    done = engine.handshake()
                    break
                except WantWriteError:
                    if not self._make_room():
                        break
        except Error as error:
            failure = error
        finally:
            engine.busy = False
        if failure is not None:
            self._fail(failure)
        elif done and self.state is HANDSHAKING:
            self._records.cipher_changes = 0
            self._move("handshake done")
            self._news = _HANDSHAKE_DONE

    def end_input(self) -> None:
        """Take a FIN for the peer's end, where it has not said close_notify before."""
        if self.state in _HEARS:
            self.truncated = True
            self._peer_ended()

    def finish_input(self) -> None:
        """Let `next_event` tell all that is left; the transport is gone."""
        if self.state is not HANDSHAKING:
            self._readable = UNKNOWN
            self._final = True

    def takes_fin_for_goodbye(self) -> bool:
        """Return whether a FIN without close_notify is an orderly end to OpenSSL's options."""
        if not self.engine.may_take_fin_for_goodbye():
            return False
        self.engine.end_of_input()
        try:
            self.engine.read()
        except ZeroReturnError:
            return True
        except Error:
            return False
        return False

    def _feed(self) -> None:
        """Feed one slice, and find out how many records can be read."""
        data = self.unfed.pop(0)
        size = len(data)
        piece = data if size <= SLICE_SIZE else memoryview(data)[:SLICE_SIZE]
        taken = self.engine.feed(piece)
        if taken < size:
            self.unfed.insert(0, memoryview(data)[taken:])
        if taken != len(piece):
            piece = piece[:taken]
        self._refusals = 0 if taken else self._refusals + 1
        records = self._records.count(piece) if taken else UNKNOWN
        if self.state is HANDSHAKING:
            self.handshake()
            more = self._news is _HANDSHAKE_DONE and self.engine.may_hold_input()
            records = UNKNOWN if more else 0
            taken = 0  # a handshake has a deadline, not a budget
        elif self._records.cipher_changes and not self._renegotiate():
            return
        self._readable = records
        self._uncounted = taken
        if not records:
            self._count_junk(taken)

    def _renegotiate(self) -> bool:
        """Count a renegotiation that is about to end; return whether it is within the limit."""
        self._renegotiations -= self._records.cipher_changes
        self._records.cipher_changes = 0
        # One that is granted may carry large certificates.
        self.junk = 0
        if self._renegotiations >= 0:
            return True
        self._fail(BudgetExceeded("the peer renegotiates too often"))
        return False

    def _act_on(self, error: Error, size: int) -> None:
        """Act on what OpenSSL says instead of giving plaintext.

        Args:
            error: What it raised.
            size: Bytes of ciphertext that carried no application data.
        """
        self._uncounted = 0
        if isinstance(error, WantReadError):
            self.dirty = True
            self._count_junk(size)
        elif isinstance(error, WantWriteError):
            self._readable = UNKNOWN
        elif isinstance(error, ZeroReturnError):
            self._peer_ended()
        else:
            self._fail(error)

    def _count_junk(self, size: int) -> None:
        """Count ciphertext that gave no application data, and fail above the budget."""
        self.junk += size
        if self.junk > self._junk_budget:
            self._fail(BudgetExceeded("too much TLS traffic without application data"))

    def _peer_ended(self) -> None:
        if self.state not in _HEARS:
            return
        self._move("peer ended")
        self.unfed.clear()
        if self.waits_for_peer:
            # Nothing will come any more that could let OpenSSL write.
            self.waits_for_peer = False
            self._forget_output()
        self._news = Event.PEER_ENDED

    def _fail(self, error: Exception) -> None:
        if self.state is CLOSED:
            return
        # Without its frames: they would keep whoever called, and with it the connection.
        self.error = error.with_traceback(None)
        self.abort()
        self._news = Event.FAILED

    def abort(self) -> None:
        """End TLS at once: only an alert that OpenSSL has made can still be taken."""
        self._move("fail")
        self.unfed.clear()
        self._readable = 0
        self._forget_output()
        self.dirty = True

    # --- out ------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether plaintext waits to be encrypted."""
        return self._retry is not None or bool(self.outbox.pieces)

    def encrypt(self) -> bytes:
        """Encrypt what comes next, at most `PIECE_SIZE` bytes of it.

        Returns:
            Ciphertext; ``b""`` where OpenSSL refuses for the moment.
        """
        outbox, write = self.outbox, self.engine.write
        while True:
            piece = self._retry
            total = 0
            try:
                # Fetching 64 KiB at once costs half of fetching each record.
                while total < PIECE_SIZE and (piece is not None or outbox.pieces):
                    if piece is None:
                        piece = outbox.take()
                    while (sent := write(piece)) != len(piece):
                        piece = memoryview(piece)[sent:]
                        total += sent
                    total += sent
                    piece = None
            except WantReadError:
                self._retry, self.waits_for_peer = piece, True
                return self.take_output()
            except WantWriteError:
                self._retry = piece
                if self._make_room():
                    continue
                return self.take_output()
            except Error as error:
                self._fail(error)
                return self.take_output()
            if self._retry is not None:
                self._retry, self.waits_for_peer = None, False
                self._idle_flushes = 0
            ciphertext = self.engine.fetch(total)
            return self._with_ready(ciphertext) if self._ready else ciphertext

    def seal(self, plaintext: bytes | memoryview) -> bytes:
        """Encrypt what fits into one record, where nothing waits before it.

        Only where the engine `seals`, and `has_output` is false.

        Returns:
            All output; ``b""`` when OpenSSL refuses: then `encrypt` goes on with it.
        """
        try:
            return self.engine.seal(plaintext)
        except (WantReadError, WantWriteError):
            self._retry = plaintext
        except Error as error:
            self._fail(error)
        return b""

    def take_output(self) -> bytes:
        """Return all ciphertext that waits to be sent."""
        self.dirty = False
        ciphertext = self.engine.drain()
        return self._with_ready(ciphertext) if self._ready else ciphertext

    def close(self) -> None:
        """Send close_notify, where there is a way to; nothing can be written after it."""
        engine = self.engine
        self.dirty = True
        both = False
        try:
            while True:
                try:
                    both = engine.shutdown()
                    break
                except WantWriteError:
                    if not self._make_room():
                        break
        except Error:
            # In the middle of a handshake OpenSSL has no way to say it.
            both = False
        self._move("fail" if both else "close")

    def _forget_output(self) -> None:
        self.outbox.clear()
        self._retry = None

    def _with_ready(self, ciphertext: bytes) -> bytes:
        ready, self._ready = self._ready, []
        return b"".join((*ready, ciphertext))

    def _make_room(self) -> bool:
        """Answer WANT_WRITE; return whether repeating the identical call may help."""
        self.engine.bounded = True
        output = self.engine.drain()
        if output:
            self._ready.append(output)
            self._idle_flushes = 0
            return True
        self._idle_flushes += 1
        return self._idle_flushes < _MAX_IDLE_FLUSHES
