"""The end of a connection: asked for, suffered, overdue; always told once.

Owns: close_notify, aborts, the two deadlines, the reason that the application gets,
and the one line in the log.  The rules:

* Every way to the end goes through ``connectionLost``, and that runs once.
* What waits is sent before close_notify, ours or the answer to the peer's.
* No end waits for a peer without limit: a peer that stops taking data, or that takes
  it and never closes, is cut after ``close_timeout`` seconds.  While at least
  `CLOSE_PROGRESS` bytes are taken in each such period it is not.
* A peer that has ended its side, by close_notify or by a FIN, gets the answers to what it
  asked before (RFC 8446 section 6.1).  An application that implements `IHalfCloseableProtocol`
  is told, and closes when it has answered.  Any other is taken to have answered at once, or, on
  a server, if it has written nothing since it was last given data or a pull producer is at work,
  when it has been silent for ``answer_pause`` seconds.  In place of ``close_timeout``
  ``half_close_timeout`` holds then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from OpenSSL.SSL import Error, WantReadError, WantWriteError, ZeroReturnError
from twisted.internet._producer_helpers import _PullToPush
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from kvproto.base.addresses import describe_peer
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.tls.contexts import verify_failure
from kvproto.tls.outgoing import OutgoingTLS
from kvproto.tls.progress import unsent_bytes
from kvproto.tls.reasons import (
    BudgetExceeded,
    CloseTimeout,
    HandshakeInterrupted,
    HandshakeTimeout,
    describe_error,
    explained,
    explanation,
    represents_eof,
)

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall


__all__ = ["CLOSE_PROGRESS", "ClosingTLS"]

log = make_logger()
peer_log = LimitedLog(log)

CLOSE_PROGRESS: Final = 16 * 1024
"""Bytes that a slow peer must take in each ``close_timeout`` for its connection to live on.

About 5 KiB/s with the default: slower than any link we expect, and a bound on how long
a peer that trickles on purpose can hold a large reply."""


class ClosingTLS(OutgoingTLS):
    """The part of `kvproto.tls.KVTLSProtocol` that ends connections."""

    handshake_timeout: float | None
    close_timeout: float | None
    half_close_timeout: float | None
    answer_pause: float

    close_reason = ""
    """Why the connection ended, for people; ``""`` while it has not."""

    _reason: Failure | None = None
    _first_bytes = b""
    _ended = False
    _is_client = False  # we spoke first
    _app_failed = False  # the application raised: it is given nothing more
    _shutdown_sent = False
    _input_ended = False  # the transport's input has: a FIN
    _taken = 0
    _written = 0
    _handshake_call: IDelayedCall | None = None
    _close_call: IDelayedCall | None = None
    _answer_call: IDelayedCall | None = None

    @property
    def stage(self) -> str:
        """``"handshake"``, ``"established"`` or ``"closing"``."""
        if not self._handshakeDone:
            return "handshake"
        return "closing" if self.disconnecting or self._peer_done else "established"

    # --- asked for ------------------------------------------------------------------------

    def loseConnection(self) -> None:
        """Send what is queued and close; nothing received from now on is delivered.

        With a producer registered, closing begins when it unregisters.
        """
        if self.disconnecting or not self.connected:
            return
        if not self._handshakeDone and not self._outbox.pieces:
            # close_notify cannot be sent before the handshake, and nobody needs it.
            self.abortConnection()
            return
        self.disconnecting = True
        self._mute = self._producer is None
        self._arm_close()
        self._input_rules_changed()
        if self._producer is None or self._outbox.pieces:
            self._flush()

    def abortConnection(self) -> None:
        """Drop the connection and all that is queued, at once."""
        if self._aborted or self._ended:
            return
        if self._reason is None:
            self._reason = Failure(ConnectionAborted())
        self._aborted = self._mute = True
        self.disconnecting = True
        self._outbox.clear()
        self._input_rules_changed()
        if self._engine is not None and self._engine.busy:
            # Called from a verification callback: OpenSSL has to return first.
            return
        self._shutdownTLS()
        self._abort_transport()

    def failVerification(self, reason: Failure) -> None:
        """Abort the handshake because of the peer's certificate.

        Args:
            reason: What the application's ``connectionLost`` gets.
        """
        if self._reason is None and not self._ended:
            self._reason = reason
        self.abortConnection()

    def _cut(self, reason: Exception) -> None:
        """Abort because the peer left a limit behind."""
        if self._reason is None:
            self._reason = Failure(reason)
        self.abortConnection()

    def _abort_transport(self) -> None:
        if self._ended:
            return
        # Not every transport can abort; all of them can lose their connection.
        abort = getattr(self.transport, "abortConnection", None) or self.transport.loseConnection
        abort()

    # --- the TLS layer's own end ----------------------------------------------------------

    def _output_done(self) -> None:
        if self._peer_done:
            truncated = self._input_ended
            self._shutdownTLS()
            if not self._lostTLSConnection:
                self._tlsShutdownFinished(self._how_input_ended() if truncated else None)
        elif self._producer is None and not self._shutdown_sent:
            self._shutdownTLS()

    def loseWriteConnection(self) -> None:
        """Send what is queued and close_notify; go on receiving until the peer closes.

        TLS 1.2 peers answer by closing at once (RFC 5246, 7.2.1); TLS 1.3 peers need not.
        """
        if self._mute or not self.connected:
            return
        self._half_closed = True
        self._close_shortcut()
        self._mute = self._producer is None
        self._flush()

    # --- the peer has ended its side ------------------------------------------------------

    def _peer_ended(self) -> None:
        """Let what the peer has asked be answered; then say goodbye."""
        if self._peer_done:
            return
        self._peer_done = True
        self._input_rules_changed()
        if self._waits_for_peer:
            # Nothing will come any more that could let OpenSSL write.
            self._retry = None
            self._outbox.clear()
            self._mute = True
        self._await_answers()
        if not self._ended and not self._lostTLSConnection:
            self._flush()
            self._arm_close()

    def _await_answers(self) -> None:
        """Find out how the application tells that it has answered."""
        if self._mute or self.disconnecting or self._app_failed:
            return
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self._answering = True
            try:
                self.wrappedProtocol.readConnectionLost()
            except BaseException:
                self._app_failed = True
                self.abortConnection()
                raise
        elif self._may_answer():
            self._answering = True
            self._await_silence()
        else:
            self._mute = True

    def lose_when_answered(self) -> None:
        """Close when the application has written nothing for ``answer_pause`` seconds.

        For whoever stands between this and an application that cannot be told that the peer has
        ended its side.  Where there is nothing to wait for it closes at once.
        """
        if self._answering and self._may_answer():
            self._await_silence()
        else:
            self.loseConnection()

    def _may_answer(self) -> bool:
        """Return whether an application that says nothing about it may be about to write."""
        if not self.answer_pause or self.close_timeout is None:
            return False
        gate = self._producer
        if gate is not None and isinstance(gate.producer, _PullToPush):
            return True
        asked = self._engine.asked_at == self._given and not self._outbox.pieces
        return asked and not self._is_client

    def _await_silence(self) -> None:
        self._written = self._given + self._outbox.size
        if self._answer_call is None:
            self._answer_call = self._clock.callLater(self.answer_pause, self._answer_overdue)

    def _answer_overdue(self) -> None:
        self._answer_call = None
        gate = self._producer
        pulls = gate is not None and isinstance(gate.producer, _PullToPush)
        if pulls or self._outbox.pieces or self._written != self._given:
            self._await_silence()
            return
        self.unregisterProducer()
        self.loseConnection()

    def _how_input_ended(self) -> Failure | None:
        """Ask OpenSSL what a FIN without close_notify is to it; None for an orderly end."""
        engine = self._engine
        engine.end_of_input()
        try:
            engine.read()
        except ZeroReturnError:
            return None
        except Error as error:
            if not represents_eof(error) and not isinstance(error, WantReadError):
                return Failure(self._explained(error))
        return Failure(CONNECTION_LOST)

    def _shutdownTLS(self) -> None:
        """Send close_notify; close the transport if the peer has sent its own."""
        if self._lost_transport():
            return
        self._shutdown_sent = True
        engine = self._engine
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
            # In the middle of a handshake OpenSSL has no way to say close_notify.
            both = False
        self._drain()
        if both and not self._ended:
            self._close_transport()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        """Note that nothing more can come through TLS, and close the transport.

        Args:
            reason: For the application; None for whatever the transport will say.
        """
        if reason is not None and reason.value is not None and represents_eof(reason.value):
            reason = Failure(CONNECTION_LOST)
        if self._reason is None:
            self._reason = reason
        self._lostTLSConnection = self._mute = True
        self._outbox.clear()
        self._retry = None
        self._input_rules_changed()
        # The alert that says what was wrong goes out before the transport closes.
        self._drain()
        if not self._ended:
            self._close_transport()

    def _openssl_failed(self, error: Error) -> None:
        if self._aborted:
            self._abort_transport()
        elif represents_eof(error):
            self._tlsShutdownFinished(Failure(CONNECTION_LOST))
        else:
            self._tlsShutdownFinished(Failure(self._explained(error)))

    def _explained(self, error: Error) -> Error:
        """Return OpenSSL's error, with words.

        The class stays exactly OpenSSL's: programs compare it.  The object is another: one
        that was raised keeps its frames, and with them this connection, alive for as long as
        the application keeps the reason.
        """
        words = verify_failure(self._engine.connection) if not self._handshakeDone else ""
        words = words or describe_error(error, self._first_bytes, self.stage)
        return explained(error, words, self.stage)

    def _close_transport(self) -> None:
        self._arm_close()
        gate = self._gate
        if gate is not None:
            # Sockets wait for a producer that they have paused, other transports (TLS below
            # this one) for any; the application's producer is stopped in connectionLost.
            self._gate = None
            self.transport.unregisterProducer()
        self.transport.loseConnection()

    # --- deadlines ------------------------------------------------------------------------

    def _arm_handshake(self) -> None:
        if self.handshake_timeout is not None and self._handshake_call is None:
            self._handshake_call = self._clock.callLater(
                self.handshake_timeout, self._handshake_overdue
            )

    def _disarm_handshake(self) -> None:
        call = self._handshake_call
        if call is not None:
            self._handshake_call = None
            call.cancel()

    def _handshake_overdue(self) -> None:
        self._handshake_call = None
        what = "renegotiation" if self._handshakeDone else "TLS handshake"
        self._cut(HandshakeTimeout(f"{what} not finished in {self.handshake_timeout} s"))

    def _arm_close(self) -> None:
        if self.close_timeout is None or self._close_call is not None or self._ended:
            return
        period = self.half_close_timeout if self._peer_done else self.close_timeout
        if period is not None:
            self._taken = self._given - (unsent_bytes(self.transport) or 0)
            self._drained = False
            self._close_call = self._clock.callLater(period, self._close_overdue)

    def _close_overdue(self) -> None:
        self._close_call = None
        unsent = unsent_bytes(self.transport)
        taken = self._taken if unsent is None else self._given - unsent
        app_is_busy = (
            self._producer is not None
            and not self._full
            and not self._peer_done
            and self._retry is None
            and not self._lostTLSConnection
        )
        if app_is_busy or self._drained or taken - self._taken >= CLOSE_PROGRESS:
            self._arm_close()
            return
        if self._peer_done:
            what = f"nothing more was answered or taken within {self.half_close_timeout} s"
            overdue = CloseTimeout(f"the peer has ended its side, and {what}")
        else:
            overdue = CloseTimeout(f"the peer did not close within {self.close_timeout} s")
        self._reason = self._reason or Failure(overdue)
        self._aborted = self._lostTLSConnection = self._mute = True
        self._input_rules_changed()
        self._abort_transport()

    # --- the end --------------------------------------------------------------------------

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hear from the transport that it is gone; tell the application, once."""
        if self._ended:
            return
        self._ended = self._mute = True
        clean = self._lostTLSConnection or self._handshakeDone
        # After a reset OpenSSL has nothing to say about how it ended, and while input takes its
        # short way it holds none: then there is nothing to ask it for.
        nothing_left = self._fast and isinstance(reason.value, ConnectionLost)
        if not (self._lostTLSConnection or self._aborted or self._app_failed or nothing_left):
            self._read_last()
        self._lostTLSConnection = True
        self._cancel_calls()
        registered, self.connected = self.connected, False
        reason = self._final_reason(reason, clean)
        try:
            self._report(reason)
        except Exception:
            # Whatever a transport answers to getPeer, the application hears of its end.
            log.failure("the end of a TLS connection could not be logged")
        gate, self._gate, self._producer = self._gate or self._producer, None, None
        try:
            if gate is not None:
                gate.stopProducing()
                gate.close()
            if registered:
                self.factory.unregisterProtocol(self)
        finally:
            try:
                self.wrappedProtocol.connectionLost(reason)
            finally:
                self._release()

    def _final_reason(self, reason: Failure, clean: bool) -> Failure:
        known = self._reason
        if known is not None:
            self._reason = None
            return known
        if not clean and isinstance(reason.value, (ConnectionDone, ConnectionLost)):
            return Failure(HandshakeInterrupted("the peer went away during the TLS handshake"))
        return reason

    def _cancel_calls(self) -> None:
        turn = self._turn
        if turn is not None:
            self._turn = None
            turn.discard(self)
        calls = self._handshake_call, self._close_call, self._answer_call
        if calls == (None, None, None):
            return
        self._handshake_call = self._close_call = self._answer_call = None
        for call in calls:
            if call is not None and call.active():
                call.cancel()

    def _release(self) -> None:
        """Break the circle of protocol, application and OpenSSL objects."""
        self.wrappedProtocol = None  # type: ignore[assignment]
        self._outbox.clear()
        self._retry = None
        self._fast = False
        self._close_shortcut()
        if self._engine is not None:
            self._engine.made = None
        self._engine = None  # type: ignore[assignment]

    def _report(self, reason: Failure) -> None:
        """Write the one line about how this connection ended."""
        error = reason.value
        self.close_reason = explanation(error)
        if self._is_worth_a_warning(error):
            # In a service the application knows more of the connection than its address.
            known = getattr(self.wrappedProtocol, "log_fields", None)
            peer_log.warn(
                "TLS connection with {peer} ended ({stage}): {reason}"
                if known is None
                else CONNECTION + ": TLS ended ({stage}): {reason}",
                **({"peer": self._peer_name()} if known is None else known()),
                stage=getattr(error, "stage", self.stage),
                reason=self.close_reason,
            )
        else:
            # Nothing is put into words for a log that nobody keeps.
            log.debug(
                "TLS connection with {peer()} ended: {error}", peer=self._peer_name, error=error
            )

    def _is_worth_a_warning(self, error: BaseException | None) -> bool:
        """Return whether a server's operator wants to know; a client's program hears anyway."""
        if self._is_client:
            return False
        if isinstance(error, HandshakeInterrupted):
            # Probes of load balancers connect and go without a word.
            return bool(self._first_bytes)
        if isinstance(error, (HandshakeTimeout, BudgetExceeded, CloseTimeout)):
            return True
        if not isinstance(error, Error):
            return False
        # Without a certificate nothing else was to be expected: the program found none for
        # the name that the client asked for, and has said so.
        shown = getattr(self.getHandle(), "get_certificate", None)
        return self._handshakeDone or (shown is not None and shown() is not None)

    def _peer_name(self) -> str:
        peer = getattr(self.transport, "getPeer", None)
        return "an unknown peer" if peer is None else describe_peer(peer())

    # --- what the other parts of the protocol add -----------------------------------------

    def _lost_transport(self) -> bool:
        return self._ended or self._engine is None

    def _read_last(self) -> None:
        """Deliver what can still be decrypted; the transport is gone."""
        raise NotImplementedError

    def _input_rules_changed(self) -> None:
        """Hear that a fact has changed that decides what happens with input."""
        raise NotImplementedError
