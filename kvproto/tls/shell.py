"""`Shell`: what surrounds a `kvproto.tls.machine.TLSMachine` between two Twisted protocols.

Owns the transport, the deadlines, the producers, the application's pauses and how a connection
ends; what is said in TLS, and when, is the machine's business; what transport and application see
is `kvproto.tls.protocol.KVTLSProtocol`, which has no state of its own.  The rules that a change
must keep:

* One queue for all writes, so their order never changes.  What is written while ``dataReceived``
  runs leaves when it ends, in one write; what is written at other times leaves together at the
  end of the reactor's turn, or at once above `FLUSH_SIZE`.
* Plaintext is encrypted only as fast as the transport takes ciphertext, and of what many
  connections have to send only some megabytes in one turn of the reactor.
* The application is given nothing while it has paused, and nothing after it has raised.  What
  arrived before the connection was lost is given to it, paused or not, before ``connectionLost``.
  After ``loseConnection`` it hears on until the peer closes, as with Twisted's own TLS; one that
  has paused as well does not.
* Reads may go past this class (`kvproto.tls.shortcut`) only while nothing is queued, held or
  ending: their answers would overtake it.
* A peer that has ended its side gets the answers to what it asked before (RFC 8446 section 6.1).
  An application that implements `IHalfCloseableProtocol` is told, and closes when it has answered.
  Any other is taken to have answered at once; on a server, if it has written nothing since it was
  last given data or a pull producer is at work, when it has been silent for ``answer_pause``.
* Every way to the end goes through ``connectionLost``, and that runs once.  No end waits for a
  peer without limit: one that takes less than `CLOSE_PROGRESS` bytes in ``close_timeout`` seconds
  (``half_close_timeout`` after its own end) is cut.

Three answers are kept because every read or write asks for them: `_fast`, `_mute` and, at the
transport, whether it reads.  All are set in `_rules_changed`, and nowhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from OpenSSL.SSL import OP_NO_RENEGOTIATION, Connection, Error
from twisted.internet._producer_helpers import _PullToPush  # the one way to serve pull producers
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import BaseProtocol, connectionDone
from twisted.python.failure import Failure

from kvproto.base.addresses import describe_peer
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.base.turn import Pieces, Turn
from kvproto.interfaces import IShortcutTransport
from kvproto.tls._handles import engine_for
from kvproto.tls.contexts import OP_ALLOW_CLIENT_RENEGOTIATION
from kvproto.tls.declare import provide_what
from kvproto.tls.ending import explain_failure, final_reason, is_worth_a_warning
from kvproto.tls.gate import ProducerGate
from kvproto.tls.machine import (
    CLOSED,
    HANDSHAKING,
    OPEN,
    PEER_ENDED,
    SHUT,
    Event,
    TLSMachine,
)
from kvproto.tls.outbox import PIECE_SIZE, RECORD_SIZE
from kvproto.tls.progress import ProgressDeadline
from kvproto.tls.reasons import (
    BudgetExceeded,
    CloseTimeout,
    HandshakeTimeout,
    explanation,
    represents_eof,
)
from kvproto.tls.records import APPLICATION_DATA, HEADER_SIZE, leading_records

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
    from twisted.protocols.tls import TLSMemoryBIOFactory

__all__ = ["FLUSH_SIZE", "HELD_SIZE", "Shell"]

log = make_logger()

peer_log = LimitedLog(log)

FLUSH_SIZE: Final = 64 * 1024
"""Bytes of queued writes that are not held back any longer; Twisted's aggregator has 64,000."""

WATCH_AFTER: Final = 64 * 1024
"""Bytes of ciphertext after which a transport is asked to tell when it is full.

Most connections never get there, and are spared the registration."""

AT_ONCE: Final = 2 * PIECE_SIZE
"""Bytes of queued writes that wait for nobody else's."""

SHARE_SIZE: Final = 4 * PIECE_SIZE
"""Bytes that a connection with more than that sends before others have their turn."""

SHARES_PER_TURN: Final = 16
"""Shares of all such connections of a factory in one turn of the reactor: 4 MiB, some 5 to 15 ms.
A socket may take 2.6 MB of each, and more."""

HELD_SIZE: Final = 256 * 1024
"""Most plaintext kept for an application that has paused while TLS itself must read on."""


# CPython looks at length for each attribute of an enumeration; these every connection needs.
_HANDSHAKE_DONE, _PEER_ENDED = Event.HANDSHAKE_DONE, Event.PEER_ENDED

_UNANNOUNCED: Final = Failure(CONNECTION_LOST)
"""The end of most connections, made once as Twisted does with its own."""


def _owned(data: Any) -> bytes:
    """Copy a buffer that its owner may change; refuse what is no buffer."""
    return memoryview(data).tobytes()


class Shell:
    """One connection's TLS, from what the transport reads to what the application is given.

    It is no part of `kvproto.tls.protocol.KVTLSProtocol`, which is a Twisted `ProtocolWrapper`:
    those hand on what they lack, and CPython looks at length for each attribute of such a class.

    Args:
        factory: The TLS factory of the connection.
        wrappedProtocol: The application's protocol.

    Attributes:
        machine: From the beginning of the connection to its end, None before and after.
        disconnecting: Whether it has been asked to close.
        producer: The gate of the application's producer, None while it has none.
    """

    # CPython keeps them in this order; what a request needs shares lines of the processor's cache.
    __slots__ = (
        "_aborted",
        "_answer_call",
        "_answering",
        "_app_failed",
        "_armed",
        "_asked_at",
        "_closing",
        "_ended",
        "_fast",
        "_flushing",
        "_full",
        "_gap",
        "_gate",
        "_given",
        "_half_closed",
        "_handshake_call",
        "_held",
        "_input_ended",
        "_is_client",
        "_mute",
        "_pieces",
        "_protocol",
        "_read_paused",
        "_reading",
        "_reason",
        "_shortcut",
        "_transport_paused",
        "_turn",
        "_unread",
        "_watching",
        "_written",
        "connected",
        "disconnecting",
        "factory",
        "machine",
        "producer",
        "transport",
        "wrappedProtocol",
    )

    def __init__(self, factory: TLSMemoryBIOFactory, wrappedProtocol: IProtocol) -> None:
        self.factory: Any = factory
        self.wrappedProtocol: Any = wrappedProtocol
        self.transport: Any = None  # whatever the program puts below: asked for what it can do
        self.machine: Any = None  # a TLSMachine while there is one
        self._protocol: Any = None  # the KVTLSProtocol, while connected
        self._fast = self._reading = self._flushing = self._full = False
        self._mute = self._watching = self._armed = False
        self.connected = self.disconnecting = self._ended = False
        self._aborted = False  # by us: the transport's word is all that is missing
        self._app_failed = False  # the application raised: it is given nothing more
        self._is_client = False  # we spoke first
        self._half_closed = False  # the application will read on after our close_notify
        self._answering = False  # the peer has ended its side; the application may still answer
        self._input_ended = False  # the transport's input has: a FIN
        self._read_paused = False  # by the application
        self._transport_paused = False  # by us
        self._gap = False  # something was dropped: what follows would pass for what is missing
        self._given = 0  # bytes of ciphertext given to the transport
        self._asked_at = -1  # ... when the application was last given data
        self._unread = 0  # bytes of TLS's own answers given to a transport that was full
        self._written = 0
        self._reason: Failure | None = None
        self._gate: ProducerGate | None = None
        self.producer: ProducerGate | None = None
        self._shortcut: Any = None
        self._turn: Turn[Shell] | None = None  # at whose end we flush; None while nothing waits
        self._pieces: Pieces[Shell] | None = None  # where we wait for others; None until then
        self._held: deque[bytes] = deque()
        self._handshake_call: IDelayedCall | None = None
        self._answer_call: IDelayedCall | None = None
        self._closing: ProgressDeadline | None = None

    @property
    def _clock(self) -> IReactorTime:
        clock: IReactorTime = self.factory._clock
        return clock

    @property
    def stage(self) -> str:
        """``"handshake"``, ``"established"`` or ``"closing"``."""
        machine = self.machine
        if machine is None or machine.last is HANDSHAKING:
            return "handshake"
        return "closing" if self.disconnecting or machine.last is not OPEN else "established"

    def use(self, connection: Connection) -> None:
        """Speak TLS by an OpenSSL connection from now on."""
        engine = engine_for(connection)
        if self.machine is None:
            limits = self._protocol
            self.machine = TLSMachine(engine, limits.junk_budget, limits.renegotiation_limit)
        else:
            self.machine.engine = engine

    # --- the beginning --------------------------------------------------------------------

    def begin(self, protocol: Any, transport: Any, *, connect: bool) -> None:
        """Begin TLS on a transport.

        Args:
            protocol: The `KVTLSProtocol`, for both sides and for its limits.
            transport: The transport.
            connect: Whether the application's protocol is to be connected.
        """
        provide_what(protocol, transport)
        self._protocol = protocol
        self.transport = protocol.transport = transport
        failure = self._create_machine()
        self.connected = True
        BaseProtocol.makeConnection(protocol, transport)
        self.factory.registerProtocol(protocol)
        if failure is None:
            self._arm_handshake()
        else:
            self._reason = failure
            self._aborted = self._mute = True
        if connect:
            try:
                self.wrappedProtocol.makeConnection(protocol)
            except BaseException:
                self._app_failed = True
                self.abortConnection()
                raise
        if failure is not None:
            self._abort_transport()
            return
        machine = self.machine
        if not getattr(self.factory, "serves", False) and not self._aborted:
            machine.handshake()
            if machine.state is HANDSHAKING:
                self._send_output()
            else:
                # Stand-ins that are done at once may have nothing to fetch from.
                machine.dirty = False
            self._is_client = self._given > 0
        if machine.has_input or machine.has_output:
            self._drive(spoke=True)

    def _create_machine(self) -> Failure | None:
        """Make the OpenSSL connection; return why that failed."""
        factory: Any = self.factory
        try:
            # Twisted 26 has a callable, 24 and 25 a method.
            create = getattr(factory, "_creatorCallable", None) or factory._createConnection
            connection = create(self._protocol)
        except Exception:
            failure = Failure()
            peer_log.failure("no TLS connection could be made for {peer}", peer=self._peer_name())
            return failure
        # Absent in older pyOpenSSL; then OpenSSL's own default, to refuse clients, holds.
        set_options = getattr(connection, "set_options", None)
        if set_options is not None:
            allowed = self._protocol.allow_renegotiation
            set_options(OP_ALLOW_CLIENT_RENEGOTIATION if allowed else OP_NO_RENEGOTIATION)
        self.use(connection)
        return None

    def _handshake_done(self, spoke: bool) -> None:
        """Notify the application; acknowledge the peer's last message where nothing else does.

        A client's first request follows its last message of a TLS 1.3 handshake.  Until that is
        acknowledged Nagle's algorithm holds the request back, and where no session ticket goes the
        other way, our kernel takes 40 ms to acknowledge what it expects to be answered.
        """
        spoke = spoke or self._send_output()
        self._disarm_handshake()
        if not self.disconnecting and IHandshakeListener.providedBy(self.wrappedProtocol):
            try:
                self.wrappedProtocol.handshakeCompleted()
            except BaseException:
                self._app_raised()
                raise
        acknowledge = None if spoke else getattr(self.transport, "acknowledge", None)
        if acknowledge is not None and not self._ended:
            acknowledge()

    # --- in -------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take ciphertext from the transport, and do all that follows from it."""
        if not self._fast or self._reading:
            self._receive(data)
            return
        machine = self.machine
        size = len(data)
        if (
            size < HEADER_SIZE
            or data[0] != APPLICATION_DATA
            or (data[3] << 8 | data[4]) != size - HEADER_SIZE
        ):
            self._receive_records(data)
            return
        # The usual request: one whole record.
        try:
            plaintext = machine.engine.open(data)
        except Error as error:
            machine.note_odd(error, size)
            self._drive()
            return
        machine.junk = 0
        self._asked_at = self._given
        self._reading = True
        try:
            self.wrappedProtocol.dataReceived(plaintext)
        except BaseException:
            self._app_raised()
            raise
        finally:
            self._reading = False
        # Exactly one record came and it was application data: OpenSSL has nothing to say.
        if machine.unfed:
            self._drive()
        elif machine.outbox.pieces or machine.waits_for_peer:
            self._flush_quickly()

    def _receive_records(self, data: bytes) -> None:
        """Take whole records at once, if a read begins with some: a large value."""
        ends = leading_records(data)
        if not ends:
            self._receive(data)
            return
        machine = self.machine
        plaintext = machine.open_records(data, ends)
        if plaintext:
            self._hand_over(plaintext)
        if machine.has_input:
            self._drive()
        elif machine.has_output:
            self._flush_quickly()

    def _receive(self, data: bytes) -> None:
        """Take ciphertext on the long way."""
        machine = self.machine
        if machine is None or self._app_failed:
            return
        machine.receive(data)
        if not self._reading:
            self._drive()

    def finish_read(self, replies: list[bytes], rest: bytes) -> None:
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
        machine = self.machine
        if machine.has_input:
            self._drive()
        elif machine.has_output:
            self._flush_quickly()

    def take_odd_record(self, error: Error, size: int) -> None:
        """Go on after one record that the shortcut has fed but that gave no application data."""
        self.machine.note_odd(error, size)
        self._drive()

    def _drive(self, *, spoke: bool = False) -> None:
        """Give the application what there is for it, until nothing is left or it pauses.

        Args:
            spoke: Whether something has been sent in answer to this already.
        """
        machine = self.machine
        self._reading = True
        try:
            while self._held and not self._read_paused:
                self._deliver(self._held.popleft())
            while not (self._app_failed or (self._read_paused and self._holds_input())):
                event = machine.next_event()
                if self._aborted:
                    break
                if event is None:
                    if not self._input_ended or self._held or self.machine is None:
                        break
                    machine.end_input()
                    if not machine.has_input:
                        break
                elif isinstance(event, bytes):
                    self._deliver(event)
                elif event is _HANDSHAKE_DONE:
                    self._handshake_done(spoke)
                elif event is _PEER_ENDED:
                    self._peer_ended()
                else:
                    self._tls_failed()
        finally:
            self._reading = False
        if self.machine is None:
            return
        if self._aborted:
            self._abort_transport()
            return
        self._rules_changed()
        if machine.state is not HANDSHAKING or self._gate is not None:
            self._flush()
        if machine.dirty:
            self._send_output()
            if self._unread and not self._ended and self._unread > self._protocol.junk_budget:
                self._abort_for(BudgetExceeded("the peer makes TLS answer and does not read"))

    def _hand_over(self, plaintext: bytes) -> None:
        """Give the application what the short way has decrypted."""
        self._asked_at = self._given
        self._reading = True
        try:
            self.wrappedProtocol.dataReceived(plaintext)
        except BaseException:
            self._app_raised()
            raise
        finally:
            self._reading = False

    def _deliver(self, plaintext: bytes) -> None:
        """Give plaintext to the application, or keep it, or drop it."""
        if self._read_paused and not self._ended:
            if self.disconnecting:
                self._gap = True
            else:
                self._held.append(plaintext)
            return
        if self._gap:
            return
        self._asked_at = self._given
        try:
            self.wrappedProtocol.dataReceived(plaintext)
        except BaseException:
            self._app_raised()
            raise

    def _app_raised(self) -> None:
        """Give the application nothing more; the reactor will drop the connection."""
        self._app_failed = True
        self._fast = False

    def _deliver_last(self) -> None:
        """Deliver what can still be decrypted; the transport is gone."""
        machine = self.machine
        if machine.state is HANDSHAKING:
            return
        self._reading = True
        try:
            while self._held:
                self._deliver(self._held.popleft())
            machine.finish_input()
            while (event := machine.next_event()) is not None:
                if isinstance(event, bytes):
                    self._deliver(event)
                elif event is Event.FAILED:
                    self._reason = self._reason or explain_failure(self.machine, self.stage)
        except Exception:
            peer_log.failure(
                "the application failed while it was given the last data of {peer}",
                peer=self._peer_name(),
            )
        finally:
            self._reading = False

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`; TLS itself reads on where it has to."""
        self._read_paused = True
        self._rules_changed()

    def resumeProducing(self) -> None:
        """Deliver what has waited, then read on."""
        self._read_paused = False
        machine = self.machine
        waits = bool(self._held) or (machine is not None and machine.has_input)
        if waits and not self._reading and not self._app_failed:
            self._drive()
        else:
            self._rules_changed()

    def stopProducing(self) -> None:
        """Close: there is nobody to deliver to."""
        self.loseConnection()

    # --- what follows from the state ------------------------------------------------------

    def _holds_input(self) -> bool:
        """Return whether input waits for the application, which has paused, to resume."""
        machine = self.machine
        return (
            machine is not None
            and machine.state is not HANDSHAKING
            and not (self.disconnecting or self._ended)
            and not (machine.waits_for_peer and sum(map(len, self._held)) <= HELD_SIZE)
        )

    def _rules_changed(self) -> None:
        """Set what follows from the state: the short ways, whether writes count, the pause."""
        machine = self.machine
        if self._armed:
            self._close_shortcut()
        state = CLOSED if machine is None else machine.state
        if state is OPEN:
            self._fast = machine.idle and not (
                self._read_paused or self._held or self.disconnecting or self._app_failed
            )
        else:
            self._fast = False
        self._mute = (
            self._ended
            or self._aborted
            or state is CLOSED
            or state is SHUT
            or (state is PEER_ENDED and not self._answering)
            or ((self.disconnecting or self._half_closed) and self.producer is None)
        )
        paused = self._read_paused and self._holds_input()
        if paused is not self._transport_paused and not (self._ended or self._input_ended):
            self._transport_paused = paused
            if paused:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    # --- out ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue application bytes; dropped when the connection is closing or gone.

        Raises:
            TypeError: `data` is no bytes-like object.
        """
        if data.__class__ is not bytes:
            data = _owned(data)
        if self._mute or not data:
            return
        outbox = self.machine.outbox
        outbox.pieces.append(data)
        outbox.size += len(data)
        if outbox.size > FLUSH_SIZE or not (
            self._reading or (self._turn is not None and not self._armed)
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
        outbox = self.machine.outbox
        for piece in pieces:
            if piece:
                outbox.put(piece)
        if outbox.pieces and (not self._reading or outbox.size > FLUSH_SIZE):
            self._plan_flush()

    def write_alone(self, data: bytes) -> None:
        """Write what nothing more will follow in this turn of the reactor; see `write`.

        While input goes past us nothing waits before it, and it is sent at once: others that are
        written need not wait for the turn to end, and the shortcut stays open.
        """
        if not self._armed or not self._shortcut.send(data):
            self.write(data)

    def _plan_flush(self) -> None:
        """Flush now what is much, at the end of the turn what is little."""
        if self._armed:
            self._close_shortcut()
        if self.machine.outbox.size > FLUSH_SIZE:
            self._flush()
        elif self._turn is None and not self._full:
            factory: Any = self.factory
            turn: Turn[Shell] | None = getattr(factory, "turn", None)
            if turn is None or turn.clock is not factory._clock:
                turn = factory.turn = Turn(factory._clock, Shell.turn_ended)
            self._turn = turn
            turn.add(self)

    def turn_ended(self) -> None:
        """Send what was written in a turn of the reactor, apart from answers to reads."""
        self._turn = None
        machine = self.machine
        if machine is not None and machine.outbox.pieces:
            self._flush_quickly()
        else:
            self._flush()

    def _flush_quickly(self) -> None:
        """Send what fits into a record: `_flush` by its shortest way, if it is open.

        While input takes its short way the connection is neither closing nor lost nor paused.
        """
        machine = self.machine
        outbox = machine.outbox
        pieces = outbox.pieces
        if (
            not (self._fast and machine.engine.seals)
            or outbox.size > RECORD_SIZE
            or not pieces
            or self._full
            or self._flushing
            or self._half_closed
            or machine.waits_for_peer
        ):
            self._flush()
            return
        if len(pieces) == 1:
            piece = pieces.popleft()
            outbox.size = 0
        else:
            piece = outbox.take()
        ciphertext = machine.seal(piece)
        if not ciphertext:
            self._flush()
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
        elif self._gate is not None and not self._armed:
            self._offer_shortcut()

    def _flush(self, *, granted: bool = False) -> None:
        """Encrypt and send what is queued, as far as OpenSSL and the transport take it.

        Args:
            granted: Whether a share of it waits for no others.
        """
        machine = self.machine
        if self._flushing or machine is None:
            # A transport that calls back from its write ends up here: the loop below sees
            # what came in addition.
            return
        waits_for_others = False
        if machine.state is not HANDSHAKING:
            self._flushing = True
            try:
                room = SHARE_SIZE if granted else 0
                while machine.has_output and not self._full:
                    if room <= 0 and machine.outbox.size > AT_ONCE:
                        if not self._goes_on():
                            waits_for_others = True
                            break
                        room = SHARE_SIZE
                    ciphertext = machine.encrypt()
                    room -= len(ciphertext)
                    self._transmit(ciphertext)
                    if not ciphertext or machine.waits_for_peer:
                        break
            finally:
                self._flushing = False
            if self.machine is None:
                return
            if machine.error is not None and machine.has_input and not self._reading:
                self._drive()
                return
            self._watch_for_peer(machine)
        if machine.state is CLOSED:
            return
        gate = self._gate
        if machine.has_output:
            if self._armed:
                self._close_shortcut()
            if gate is not None:
                if waits_for_others:
                    gate.hold_for_others()
                else:
                    gate.hold()
        elif self._ends_after_output():
            if machine.state is not HANDSHAKING:
                self._output_done()
        elif gate is not None and not self._full:
            gate.release()
            if self._fast and not self._armed:
                self._offer_shortcut()

    def _goes_on(self) -> bool:
        """Return whether a share may be sent at once; otherwise `_have_turn` follows."""
        pieces = self._pieces
        if pieces is None:
            factory: Any = self.factory
            pieces = getattr(factory, "pieces", None)
            if pieces is None or pieces.clock is not factory._clock:
                pieces = Pieces(factory._clock, Shell._have_turn, SHARES_PER_TURN)
                factory.pieces = pieces
            self._pieces = pieces
        return pieces.goes_on(self)

    def _have_turn(self) -> None:
        """Send a share: others have had their turn."""
        self._flush(granted=True)

    def _watch_for_peer(self, machine: TLSMachine) -> None:
        """Give a renegotiation that blocks our writes the time of a handshake."""
        if machine.waits_for_peer:
            self._arm_handshake()
            self._rules_changed()
        elif self._handshake_call is not None:
            self._disarm_handshake()
            self._rules_changed()

    def _ends_after_output(self) -> bool:
        """Return whether close_notify follows what is queued; a producer is waited for."""
        if self.machine.state is PEER_ENDED and not self._answering:
            return True
        return self.producer is None and bool(self.disconnecting or self._half_closed)

    def _output_done(self) -> None:
        """Send close_notify: nothing is queued, and nothing will be."""
        machine = self.machine
        if machine.state is PEER_ENDED:
            truncated = machine.truncated
            self._protocol._shutdownTLS()
            if self.machine is not None:
                self.finish(self._end_of_input() if truncated else None)
        elif machine.state is OPEN:
            self._protocol._shutdownTLS()
            self._rules_changed()
            if self.machine is not None and self.machine.state is CLOSED:
                # OpenSSL has seen the peer's close_notify, in the read that is being handled.
                self._close_transport()

    def shut_down(self) -> None:
        """Send close_notify."""
        self.machine.close()
        self._send_output()

    def _transmit(self, ciphertext: bytes) -> None:
        """Give ciphertext to the transport."""
        if not ciphertext:
            return
        self._given += len(ciphertext)
        if self._given > WATCH_AFTER and not self._watching:
            self._watch()
        self.transport.write(ciphertext)

    def _send_output(self) -> bool:
        """Send all of TLS's own output; return whether there was any."""
        machine = self.machine
        if machine is None or self._ended:
            return False
        ciphertext = machine.take_output()
        if self._full and not self._flushing:
            # Answers of the TLS layer itself; nothing else is produced for a full transport.
            self._unread += len(ciphertext)
        self._transmit(ciphertext)
        return bool(ciphertext)

    # --- reads that go past us ------------------------------------------------------------

    def _offer_shortcut(self) -> None:
        """Let the reads to come go past us while nothing else is under way.

        With a gate only: what goes past us is not counted, so the transport has to tell us when it
        is full.  Whatever may make us keep something back closes the shortcut.
        """
        machine = self.machine
        if (
            not self._fast
            or self._gate is None
            or self._full
            or self._half_closed
            or machine.outbox.pieces
        ):
            return
        shortcut = self._shortcut
        if shortcut is None:
            answer, write = getattr(self.wrappedProtocol, "answer", None), self.transport.write
            if answer is None or not IShortcutTransport.providedBy(self.transport):
                return
            shortcut = self._shortcut = machine.engine.shortcut(
                self, answer, machine.outbox.pieces, write
            )
        self._armed = True
        self.transport.shortcut = shortcut

    def _close_shortcut(self) -> None:
        """Have all reads given to us."""
        self._armed = False
        self.transport.shortcut = None

    # --- producers ------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write as fast as the peer reads; pull producers are driven.

        Raises:
            RuntimeError: Another producer is registered.
        """
        machine = self.machine
        if machine is None or machine.state is CLOSED:
            producer.stopProducing()
            return
        if self.producer is not None:
            raise RuntimeError(f"{self!r} has a producer already: {self.producer.producer!r}")
        push = producer if streaming else _PullToPush(producer, self._protocol)
        gate = self._gate or ProducerGate(self)
        gate.attach(push)
        if self._gate is None:
            self.transport.registerProducer(gate, True)
            self._gate = gate
        self.producer = gate
        if not streaming:
            push.startStreaming()
        if self._full or machine.waits_for_peer:
            gate.hold()

    def unregisterProducer(self) -> None:
        """Let the producer go; a connection that waited for it to close does so now."""
        gate, self.producer = self.producer, None
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
            if self._armed:
                self._close_shortcut()
            self.transport.unregisterProducer()
        if self.disconnecting or self._half_closed:
            self._rules_changed()
            self._flush()

    def transport_full(self) -> None:
        """Produce nothing: the transport holds as much as it wants to."""
        self._full = True
        if self._armed:
            self._close_shortcut()

    def transport_ready(self) -> None:
        """Go on: the transport has given away all it held."""
        self._full = False
        self._unread = 0
        if self._closing is not None:
            self._closing.drained = True
        self._flush()

    def _watch(self) -> None:
        """Ask the transport to say when it is full, from now on."""
        self._watching = True
        if self._gate is not None:
            return
        register = getattr(self.transport, "registerProducer", None)
        if register is None:
            return
        gate = self._gate = ProducerGate(self)
        try:
            register(gate, True)
        except RuntimeError:
            # Somebody registered a producer behind our back: it hears of pauses, we do not.
            self._gate = None

    # --- the end: asked for ---------------------------------------------------------------

    def loseConnection(self) -> None:
        """Send what is queued and close.

        What the peer has sent before it hears of that is delivered, except to an application
        that has paused.  With a producer registered, closing begins when it unregisters.
        """
        if self.disconnecting or not self.connected:
            return
        machine = self.machine
        if machine.state is HANDSHAKING and not machine.has_output:
            # close_notify cannot be sent before the handshake, and nobody needs it.
            self.abortConnection()
            return
        self.disconnecting = True
        self._arm_close()
        self._rules_changed()
        if self.producer is None or machine.has_output:
            self._flush()

    def loseWriteConnection(self) -> None:
        """Send what is queued and close_notify; go on receiving until the peer closes.

        TLS 1.2 peers answer by closing at once (RFC 5246, 7.2.1); TLS 1.3 peers need not.
        """
        if self._mute or not self.connected:
            return
        self._half_closed = True
        self._rules_changed()
        self._flush()

    def abortConnection(self) -> None:
        """Drop the connection and all that is queued, at once."""
        if self._aborted or self._ended:
            return
        if self._reason is None:
            self._reason = Failure(ConnectionAborted())
        self._aborted = self.disconnecting = True
        self._rules_changed()
        machine = self.machine
        if machine is not None:
            if machine.engine.busy:
                # Called from a verification callback: OpenSSL has to return first.
                return
            self._protocol._shutdownTLS()
            machine.abort()
        self._abort_transport()

    def failVerification(self, reason: Failure) -> None:
        """Abort the handshake because of the peer's certificate.

        Args:
            reason: What the application's ``connectionLost`` gets.
        """
        if self._reason is None and not self._ended:
            self._reason = reason
        self.abortConnection()

    def _abort_for(self, reason: Exception) -> None:
        """Abort with a reason: the peer has exceeded a limit."""
        if self._reason is None:
            self._reason = Failure(reason)
        self.abortConnection()

    def _abort_transport(self) -> None:
        if self._ended:
            return
        # Not every transport can abort; all of them can lose their connection.
        abort = getattr(self.transport, "abortConnection", None) or self.transport.loseConnection
        abort()

    # --- the end: by the peer -------------------------------------------------------------

    def readConnectionLost(self) -> None:
        """Take the end of the transport's input: what came before it is answered."""
        machine = self.machine
        if self._input_ended or self._ended or machine is None:
            return
        self._input_ended = True
        if machine.state is CLOSED or self._aborted or self._app_failed:
            return
        if machine.state is HANDSHAKING:
            self.transport.loseConnection()
        elif not self._reading:
            self._drive()

    def writeConnectionLost(self) -> None:
        """Nothing to do: it is us who close the transport for writing, and all of it."""

    def _peer_ended(self) -> None:
        """Let what the peer has asked be answered; then say goodbye."""
        machine = self.machine
        if machine.state is CLOSED:
            self.finish(self._end_of_input() if machine.truncated else None)
            return
        if not (self.disconnecting or self._half_closed or self._app_failed):
            self._await_answers()
        if self.machine is not None and machine.state is not CLOSED:
            self._rules_changed()
            self._flush()
            self._arm_close()

    def _await_answers(self) -> None:
        """Find out how the application tells that it has answered."""
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            self._answering = True
            self._rules_changed()
            try:
                self.wrappedProtocol.readConnectionLost()
            except BaseException:
                self._app_raised()
                self.abortConnection()
                raise
        elif self._may_answer():
            self._answering = True
            self._await_silence()

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
        if not self._protocol.answer_pause or self._protocol.close_timeout is None:
            return False
        asked = self._asked_at == self._given and not self.machine.has_output
        return self._pulls() or (asked and not self._is_client)

    def _pulls(self) -> bool:
        """Return whether a pull producer is at work: one that ends."""
        gate = self.producer
        return gate is not None and isinstance(gate.producer, _PullToPush)

    def _await_silence(self) -> None:
        self._written = self._given + self.machine.outbox.size
        if self._answer_call is None:
            self._answer_call = self._clock.callLater(self._protocol.answer_pause, self._silent)

    def _silent(self) -> None:
        self._answer_call = None
        if self._pulls() or self.machine.has_output or self._written != self._given:
            self._await_silence()
            return
        self.unregisterProducer()
        self.loseConnection()

    def _tls_failed(self) -> None:
        """End a connection that TLS cannot go on with; the alert goes out first."""
        if self._aborted:
            self._abort_transport()
            return
        failure = explain_failure(self.machine, self.stage)
        if isinstance(failure.value, BudgetExceeded):
            self._abort_for(failure.value)
        else:
            self.finish(failure)

    def _end_of_input(self) -> Failure | None:
        """Return what a FIN without close_notify is to OpenSSL; None for an orderly end."""
        return None if self.machine.takes_fin_for_goodbye() else _UNANNOUNCED

    def finish(self, reason: Failure | None) -> None:
        """Note that nothing more can come through TLS, and close the transport.

        Args:
            reason: For the application; None for whatever the transport will say.
        """
        if reason is not None and reason.value is not None and represents_eof(reason.value):
            reason = Failure(CONNECTION_LOST)
        if self._reason is None:
            self._reason = reason
        self.machine.abort()
        self._rules_changed()
        # The alert that says what was wrong goes out before the transport closes.
        self._send_output()
        if not self._ended:
            self._close_transport()

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
        if self._protocol.handshake_timeout is not None and self._handshake_call is None:
            self._handshake_call = self._clock.callLater(
                self._protocol.handshake_timeout, self._handshake_overdue
            )

    def _disarm_handshake(self) -> None:
        call = self._handshake_call
        if call is not None:
            self._handshake_call = None
            call.cancel()

    def _handshake_overdue(self) -> None:
        self._handshake_call = None
        what = "TLS handshake" if self.stage == "handshake" else "renegotiation"
        self._abort_for(
            HandshakeTimeout(f"{what} not finished in {self._protocol.handshake_timeout} s")
        )

    def _arm_close(self) -> None:
        if self._ended or self._closing is not None or self._protocol.close_timeout is None:
            return
        peer_ended = self.machine.state is PEER_ENDED
        period = self._protocol.half_close_timeout if peer_ended else self._protocol.close_timeout
        if period is not None:
            self._closing = ProgressDeadline(
                self._clock, period, self.transport, self._given, self._close_overdue
            )

    def _close_overdue(self, deadline: ProgressDeadline) -> None:
        machine = self.machine
        self._closing = None
        app_is_busy = (
            self.producer is not None
            and not self._full
            and machine.state in (OPEN, HANDSHAKING)
            and not machine.waits_for_peer
        )
        if app_is_busy or deadline.made_progress(self._given):
            self._arm_close()
            return
        if machine.state is PEER_ENDED:
            why = "the peer has ended its side, and nothing more was answered or taken"
        else:
            why = "the peer did not close"
        overdue = CloseTimeout(f"{why} within {deadline.period} s")
        self._reason = self._reason or Failure(overdue)
        self._aborted = True
        machine.abort()
        self._rules_changed()
        self._abort_transport()

    # --- the end: of all ------------------------------------------------------------------

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Notify the application that the transport is gone, once."""
        if self._ended:
            return
        machine = self.machine
        state = CLOSED if machine is None else machine.state
        clean = state is not HANDSHAKING
        # After a reset OpenSSL has nothing to say about how it ended, and while input takes its
        # short way it holds none: then there is nothing to ask it for.
        nothing_left = self._fast and isinstance(reason.value, ConnectionLost)
        self._ended = self._mute = True
        if not (state is CLOSED or self._aborted or self._app_failed or nothing_left):
            self._deliver_last()
        self._cancel_calls()
        registered, self.connected = self.connected, False
        protocol = self._protocol
        reason, self._reason = final_reason(self._reason, reason, clean=clean), None
        try:
            self._report(reason.value)
        except Exception:
            # Whatever a transport answers to getPeer, the application hears of its end.
            log.failure("the end of a TLS connection could not be logged")
        gate, self._gate, self.producer = self._gate or self.producer, None, None
        try:
            if gate is not None:
                gate.stopProducing()
                gate.close()
            if registered:
                self.factory.unregisterProtocol(protocol)
        finally:
            try:
                self.wrappedProtocol.connectionLost(reason)
            finally:
                self._release()

    def _cancel_calls(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.discard(self)
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            pieces.discard(self)
        self._disarm_handshake()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._answer_call is not None:
            self._answer_call.cancel()
            self._answer_call = None

    def _release(self) -> None:
        """Break the circle of protocol, application and OpenSSL objects."""
        protocol, self._protocol = self._protocol, None
        self.wrappedProtocol = None
        if protocol is not None:
            protocol.connected = False
        self._fast = False
        if self._armed:
            self._close_shortcut()
        self._shortcut = None
        self.machine = None

    def _report(self, error: BaseException | None) -> None:
        """Write the one line about how this connection ended."""
        reason = explanation(error)
        if self._protocol is not None:
            self._protocol.close_reason = reason
        if self._is_client or not is_worth_a_warning(error, self.machine):
            # Nothing is put into words for a log that nobody keeps.
            log.debug(
                "TLS connection with {peer()} ended: {error}", peer=self._peer_name, error=error
            )
            return
        # In a service the application knows more of the connection than its address.
        known = getattr(self.wrappedProtocol, "log_fields", None)
        peer_log.warn(
            "TLS connection with {peer} ended ({stage}): {reason}"
            if known is None
            else CONNECTION + ": TLS ended ({stage}): {reason}",
            **({"peer": self._peer_name()} if known is None else known()),
            stage=getattr(error, "stage", self.stage),
            reason=reason,
        )

    def _peer_name(self) -> str:
        peer = getattr(self.transport, "getPeer", None)
        return "an unknown peer" if peer is None else describe_peer(peer())
