"""The way out: plaintext that the application writes, ciphertext that the transport takes.

Owns: the queue of writes, when it is flushed, the retry of calls that OpenSSL refused
for the moment, and back-pressure.  The rules:

* One queue.  Every write goes through it, so order never changes and nothing can be
  forgotten on a second path.
* After *every* call into OpenSSL all of its output is fetched, whatever the call said.
* A refused call (WANT_READ, WANT_WRITE) is repeated with the same bytes before any other.
* What is written while ``dataReceived`` runs leaves when it ends, in one write; what is
  written at other times leaves together at the end of the reactor's turn, or at once above
  `FLUSH_SIZE`.
* While something is queued reads do not go past us: their answers would overtake it.
* Plaintext is encrypted only as fast as the transport takes ciphertext.

Source: SSL_write(3), SSL_get_error(3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from OpenSSL.SSL import Error, WantReadError, WantWriteError
from twisted.internet._producer_helpers import _PullToPush  # the one way to serve pull producers
from twisted.protocols.tls import TLSMemoryBIOProtocol

from kvproto.interfaces import IShortcutTransport
from kvproto.tls._openssl import Engine
from kvproto.tls.gate import OutputGate
from kvproto.tls.outbox import PIECE_SIZE, RECORD_SIZE, Outbox

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from kvproto.base.turn import Turn

__all__ = ["FLUSH_SIZE", "OutgoingTLS"]

FLUSH_SIZE: Final = 64 * 1024
"""Bytes of queued writes that are not held back any longer; Twisted's aggregator has 64,000."""

WATCH_AFTER: Final = 64 * 1024
"""Bytes of ciphertext after which a transport is asked to tell when it is full.

Most connections never get there, and are spared the registration."""

_MAX_IDLE_FLUSHES: Final = 2
"""Flushes without effect after which WANT_WRITE is not answered by trying again at once."""


def _owned(data: Any) -> bytes:
    """Copy a buffer that its owner may change; refuse what is no buffer."""
    return memoryview(data).tobytes()


class OutgoingTLS(TLSMemoryBIOProtocol):
    """The sending half of `kvproto.tls.KVTLSProtocol`."""

    junk_budget: int

    transport: Any  # whatever the program puts below: asked for what it can do
    _engine: Engine = None  # type: ignore[assignment]  # from the beginning to the end only
    _outbox: Outbox
    _gate: OutputGate | None = None
    _handshakeDone = False
    _lostTLSConnection = False
    _aborted = False

    _reading = False  # dataReceived is running: it flushes when it ends
    _flushing = False
    _mute = False  # the application may write no more
    _full = False  # the transport has asked for a pause
    _watching = False  # the gate stays registered for the rest of the connection
    _fast = False  # the short way in dataReceived is open
    _half_closed = False  # the application will read on after our close_notify
    _peer_done = False  # the peer has ended its side
    _answering = False  # ... and the application has not, yet
    _retry: bytes | memoryview | None = None  # refused by OpenSSL; goes first, unchanged
    _waits_for_peer = False  # OpenSSL refused a write until it has read something
    _idle_flushes = 0
    _given = 0  # bytes of ciphertext given to the transport
    _unread = 0  # ... of these, while it was full
    _drained = False  # the transport became empty since the flag was last cleared
    _turn: Turn[OutgoingTLS] | None = None  # at whose end we flush; None while nothing is put off

    @property
    def _clock(self) -> IReactorTime:
        clock: IReactorTime = self.factory._clock
        return clock

    # --- for the application --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue application bytes; dropped when the connection is closing or gone.

        Raises:
            TypeError: `data` is no bytes-like object.
        """
        if data.__class__ is not bytes:
            data = _owned(data)
        if self._mute or not data:
            return
        outbox = self._outbox
        outbox.pieces.append(data)
        outbox.size += len(data)
        if outbox.size > FLUSH_SIZE or not (
            self._reading or (self._turn is not None and not self._engine.armed)
        ):
            self._plan_flush()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Queue several writes without joining them: large values are not copied.

        Raises:
            TypeError: One of them is no bytes-like object; then none is queued.
        """
        pieces = [piece if piece.__class__ is bytes else _owned(piece) for piece in iovec]
        if self._mute:
            return
        outbox = self._outbox
        for piece in pieces:
            if piece:
                outbox.put(piece)
        if outbox.pieces and (not self._reading or outbox.size > FLUSH_SIZE):
            self._plan_flush()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write as fast as the peer reads; pull producers are driven.

        Raises:
            RuntimeError: Another producer is registered.
        """
        if self._lostTLSConnection:
            producer.stopProducing()
            return
        if self._producer is not None:
            raise RuntimeError(f"{self!r} has a producer already: {self._producer.producer!r}")
        push = producer if streaming else _PullToPush(producer, self)
        gate = self._gate or OutputGate(self)
        gate.attach(push)
        if self._gate is None:
            self.transport.registerProducer(gate, True)
            self._gate = gate
        self._producer = gate
        if not streaming:
            push.startStreaming()
        if self._full or self._retry is not None:
            gate.hold()

    def unregisterProducer(self) -> None:
        """Let the producer go; a connection that waited for it to close does so now."""
        gate, self._producer = self._producer, None
        if gate is None:
            return
        if isinstance(gate.producer, _PullToPush):
            gate.producer.stopStreaming()
        gate.detach()
        if self._full:
            # Only a registered producer hears that a full transport has room again.
            self._watching = True
        if not self._watching:
            self._gate = None
            self._close_shortcut()
            self.transport.unregisterProducer()
        if self.disconnecting or self._half_closed:
            self._mute = True
            self._flush()

    # --- for the transport, through the gate ----------------------------------------------

    def transport_full(self) -> None:
        """Hear that the transport holds as much as it wants to."""
        self._full = True
        self._close_shortcut()

    def transport_ready(self) -> None:
        """Hear that the transport has given away all it held."""
        self._full = False
        self._drained = True
        self._unread = 0
        self._flush()

    # --- flushing -------------------------------------------------------------------------

    def _plan_flush(self) -> None:
        """Flush now what is much, soon what is little."""
        engine = self._engine
        if engine.armed:
            engine.armed = False
            self.transport.shortcut = None
        if self._outbox.size > FLUSH_SIZE:
            self._flush()
        elif self._turn is None and not self._full:
            self._turn = turn = self._this_turn()
            turn.add(self)

    def turn_ended(self) -> None:
        """Send what was written in a turn of the reactor, apart from answers to reads."""
        self._turn = None
        if self._outbox.pieces:
            self._flush_quickly()
        else:
            self._flush()

    def _flush(self) -> None:
        """Encrypt and send what is queued, as far as OpenSSL and the transport take it."""
        if self._flushing or self._lostTLSConnection:
            # A transport that calls back from its write ends up here: the loop below sees
            # what came in addition.
            return
        outbox = self._outbox
        if self._handshakeDone:
            self._flushing = True
            try:
                while outbox.pieces or self._retry is not None:
                    if self._full or self._ended_meanwhile() or not self._send_batch():
                        break
            finally:
                self._flushing = False
        if self._ended_meanwhile():
            return
        if outbox.pieces or self._retry is not None:
            self._close_shortcut()
            if self._gate is not None:
                self._gate.hold()
        elif self._ends_after_output():
            if self._handshakeDone:
                self._output_done()
        elif self._gate is not None and not self._full:
            self._gate.release()
            if self._fast:
                self._offer_shortcut()

    def _ends_after_output(self) -> bool:
        """Return whether close_notify follows what is queued; a producer is waited for."""
        if self._peer_done and not self._answering:
            return True
        return self._producer is None and bool(self.disconnecting or self._half_closed)

    def _flush_quickly(self) -> None:
        """Send what one read has been answered with: `_flush` by its shortest way, if it is open.

        While input takes its short way the connection is neither closing nor lost nor paused.
        """
        outbox, engine = self._outbox, self._engine
        if (
            not (self._fast and engine.seals)
            or outbox.size > RECORD_SIZE
            or self._full
            or self._flushing
            or self._half_closed
            or self._retry is not None
        ):
            self._flush()
            return
        pieces = outbox.pieces
        if len(pieces) == 1:
            piece = pieces.popleft()
            outbox.size = 0
        else:
            piece = outbox.take()
        try:
            ciphertext = engine.seal(piece)
        except (WantReadError, WantWriteError):
            # The identical call is repeated there, and what follows from its answer is done.
            self._retry = piece
            self._flush()
            return
        except Error as error:
            self._openssl_failed(error)
            return
        given = self._given = self._given + len(ciphertext)
        self._flushing = True
        try:
            if given > WATCH_AFTER and not self._watching:
                self._watch()
            self.transport.write(ciphertext)
        finally:
            self._flushing = False
        if pieces:
            self._flush()
        elif not engine.armed:
            self._offer_shortcut()

    def _offer_shortcut(self) -> None:
        """Let the reads to come go past us while nothing else is under way.

        With a gate only: what goes past us is not counted, so the transport has to tell us when it
        is full.  Whatever may make us keep something back closes the shortcut.
        """
        engine = self._engine
        if (
            engine.armed
            or not self._fast
            or self._gate is None
            or self._full
            or self._mute
            or self._half_closed
            or self._outbox.pieces
        ):
            return
        shortcut = engine.made
        if shortcut is None:
            answer = getattr(self.wrappedProtocol, "answer", None)
            if answer is None or not IShortcutTransport.providedBy(self.transport):
                return
            shortcut = engine.made = engine.shortcut(self, answer)
        engine.armed = True
        self.transport.shortcut = shortcut

    def _close_shortcut(self) -> None:
        """Have all reads given to us."""
        engine = self._engine
        if engine is not None and engine.armed:
            engine.armed = False
            self.transport.shortcut = None

    def _ended_meanwhile(self) -> bool:
        """Return whether a callback has ended TLS (a call, so that nobody assumes the answer)."""
        return self._lostTLSConnection

    def _send_batch(self) -> bool:
        """Encrypt what comes next and give it to the transport; return whether to go on."""
        outbox = self._outbox
        write = self._engine.write
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
            self._retry = piece
            self._drain()
            self._peer_must_go_first()
            return False
        except WantWriteError:
            self._retry = piece
            return self._make_room()
        except Error as error:
            self._retry = None
            self._openssl_failed(error)
            return False
        if self._retry is not None:
            self._retry = None
            self._idle_flushes = 0
            if self._waits_for_peer:
                self._peer_has_gone_first()
        self._transmit(self._engine.fetch(total))
        return True

    def _transmit(self, ciphertext: bytes) -> None:
        """Give ciphertext to the transport."""
        if not ciphertext:
            return
        self._given += len(ciphertext)
        if self._given > WATCH_AFTER and not self._watching:
            self._watch()
        self.transport.write(ciphertext)

    def _drain(self) -> bool:
        """Give all of OpenSSL's output to the transport; return whether there was any."""
        if self._lost_transport():
            return False
        ciphertext = self._engine.drain()
        if self._full and not self._flushing:
            # Answers of the TLS layer itself; nothing else is produced for a full transport.
            self._unread += len(ciphertext)
        self._transmit(ciphertext)
        return bool(ciphertext)

    def _make_room(self) -> bool:
        """Answer WANT_WRITE; return whether repeating the identical call may help."""
        if not self._lost_transport():
            self._engine.bounded = True
        if self._drain():
            self._idle_flushes = 0
            return True
        self._idle_flushes += 1
        return self._idle_flushes < _MAX_IDLE_FLUSHES

    def _watch(self) -> None:
        """Ask the transport to say when it is full, from now on."""
        self._watching = True
        if self._gate is not None:
            return
        register = getattr(self.transport, "registerProducer", None)
        if register is None:
            return
        gate = self._gate = OutputGate(self)
        try:
            register(gate, True)
        except RuntimeError:
            # Somebody registered a producer behind our back: it hears of pauses, we do not.
            self._gate = None

    def _this_turn(self) -> Turn[OutgoingTLS]:
        """Return what flushes us at the end of the reactor's turn, with others if there are any."""
        raise NotImplementedError

    # --- what the other half of the protocol adds -----------------------------------------

    def _output_done(self) -> None:
        """Hear that nothing is queued and the connection is to be closed."""
        raise NotImplementedError

    def _openssl_failed(self, error: Error) -> None:
        """Hear that OpenSSL cannot go on."""
        raise NotImplementedError

    def _peer_must_go_first(self) -> None:
        """Hear that writing has to wait until something has been read."""
        raise NotImplementedError

    def _peer_has_gone_first(self) -> None:
        """Hear that writing goes on after such a wait."""
        raise NotImplementedError

    def _lost_transport(self) -> bool:
        """Return whether there is nobody left to give ciphertext to."""
        raise NotImplementedError
