"""One connection to an engine: commands out in batches, replies in, each to its own command.

`EngineConnection` is a Twisted protocol that knows nothing of logins or reconnecting
(`kvproto.upstream.link`), and nothing of what commands mean.

Theory.  RESP answers commands in order, so the one thing that decides to whom a reply belongs is
a queue, `_pending`.  What has been sent stays in it until its reply is there or the connection
has ended: a command that is not waited for any more is still answered, and its place must not be
given to another.  For the same reason there is no way to take a command back, and a command that
takes too long costs the connection: everything behind it would be answered late anyway.

Commands are written once for each turn of the reactor, all of them with one write.  While the
transport is full they stay here, and are then known not to have been performed if the connection
ends.  How old the oldest unanswered command is, is known from marks, one for each write; so no
command has a timer of its own.

States: OPEN → ENDED.  (The transport being full is a flag beside that: in either state it only
decides whether a turn's commands are written now or at ``resumeProducing``.)

| event               | OPEN                                            | ENDED                    |
|---------------------|-------------------------------------------------|--------------------------|
| send                | queued; refused when too much is unanswered     | refused, not performed   |
| end of turn         | everything queued is written, unless paused     | nothing                  |
| data                | replies go to their commands                    | nothing                  |
| data without sense  | → ENDED, "protocol"                             | nothing                  |
| reply to nothing    | → ENDED, "protocol"                             | nothing                  |
| oldest is too old   | → ENDED, "timeout", if it still is so a turn    | cannot be                |
|                     | later: the answer may have come meanwhile       |                          |
| close when idle     | → ENDED when nothing is unanswered              | nothing                  |
| abort               | → ENDED, with the reason given                  | nothing                  |
| connection lost     | → ENDED, "disconnected"                         | nothing                  |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.protocol import connectionDone as CONNECTION_DONE
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.upstream.direct import sender_of
from kvproto.upstream.fast_path import Call, Queue
from kvproto.upstream.resp import EngineFailure, Fate

__all__ = ["Call", "EngineConnection"]

log = make_logger()

MAX_PENDING = 100_000
"""Commands that may be unanswered on one connection: far more than any engine answers in time."""

_MORE = object()


@implementer(IPushProducer)
class EngineConnection(Queue, Protocol):
    """A pipelined connection.

    Args:
        clock: For the end of a turn and for timeouts; its seconds need not be unix time.
        timeout: Seconds that a command may wait for its reply.
        ended: Called once, after all commands have been told, with this connection, a word of
            `kvproto.upstream.resp.REASONS` and a text for people.
        observe: Called with seconds and a number of replies that took that long.
        companions: Emptied with each write; whoever sends commands may note here what travels
            with them.
    """

    MAX_UNSENT = 64 << 20
    """Bytes that may wait for the transport, above which commands are refused; one more may be
    added to less, however large it is."""

    transport: Any
    _send_bytes: Callable[[bytes], object]

    def __init__(
        self,
        clock: IReactorTime,
        timeout: float,
        ended: Callable[[EngineConnection, str, str], object],
        observe: Callable[[float, int], object] = lambda seconds, count: None,
        companions: set[object] | None = None,
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self._on_end = ended
        self._observe = observe
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._pending: deque[Call] = deque()
        self._out: list[bytes] = []
        self._unsent = 0
        self._written = 0  # commands, ever
        self._answered = 0  # those of them whose replies are there
        self._marks: deque[tuple[float, int]] = deque()  # when, and _written after it
        self._turn_end: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._overdue: tuple[float, int] | None = None  # a mark
        self._paused = False
        self._closing = False
        self._open = True
        self._room = MAX_PENDING  # commands that may be unanswered now
        self._companions = set() if companions is None else companions

    @property
    def pending(self) -> int:
        """How many commands are unanswered."""
        return len(self._pending)

    @property
    def _ended(self) -> bool:
        return not self._open

    # what its owner says

    def _refuse(self, call: Call) -> None:
        if self._open:
            failure = _not_performed("overload", "too much waits for the engine")
        else:
            failure = _not_performed("disconnected", "the connection has ended")
        call.answered(failure, call)

    def close_when_idle(self) -> None:
        """Answer what has been asked, then close; send nothing after this."""
        self._closing = True
        if self._open and not self._pending:
            self._end("disconnected", "not needed any more")

    def abort(self, reason: str, text: str) -> None:
        """Close at once; what is unanswered is told so."""
        if self._open:
            self._end(reason, text)

    # what the transport says

    def connectionMade(self) -> None:
        """Take the transport."""
        for option in ("setTcpNoDelay", "setTcpKeepAlive"):
            if hasattr(self.transport, option):
                getattr(self.transport, option)(True)
        self._send_bytes = sender_of(self.transport)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Give each reply to its command."""
        if not self._open:
            return
        reader = self._reader
        reader.feed(data)
        try:
            self._take(reader.gets, _MORE)
        except hiredis.ProtocolError as error:
            self._end("protocol", f"it does not speak RESP: {error}")
        if self._ended:
            return
        self._note_answers()
        if self._closing and not self._pending:
            self._end("disconnected", "not needed any more")

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Tell every command that it will not be answered."""
        if self._open:
            self._end("disconnected", reason.getErrorMessage())

    def pauseProducing(self) -> None:
        """Write nothing: the transport is full."""
        self._paused = True
        self._unsent = sum(map(len, self._out))

    def resumeProducing(self) -> None:
        """Write what has come together."""
        self._paused = False
        self._unsent = 0
        if self._open:
            self._room = MAX_PENDING
        self._write()

    def stopProducing(self) -> None:
        """Write nothing any more; the transport is about to say that the connection is lost."""
        self._paused = True

    # inside

    def _end_turn(self) -> None:
        if self._paused:
            return  # the turn ends when the transport has room
        self._write()

    def _write(self) -> None:
        out = self._out
        turn_end, self._turn_end = self._turn_end, None
        if turn_end is not None and turn_end.active():
            turn_end.cancel()
        if self._paused or not out or not self._open:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        self._written += len(out)
        out.clear()
        self._companions.clear()
        self._marks.append((self._clock.seconds(), self._written))
        if self._timer is None:
            self._timer = self._clock.callLater(self._timeout, self._look_at_oldest)
        self._transmit(data)

    def _transmit(self, data: bytes) -> None:
        """Write whole commands, in whatever words the engine understands."""
        self._send_bytes(data)

    def _note_answers(self) -> None:
        """Note how long what is answered took; forget the marks of writes that are."""
        answered = self._written + len(self._out) - len(self._pending)
        if answered == self._answered:
            return
        marks, now = self._marks, self._clock.seconds()
        while self._answered < answered:
            when, last = marks[0]
            if last <= answered:
                marks.popleft()
            until = min(last, answered)
            self._observe(now - when, until - self._answered)
            self._answered = until

    def _look_at_oldest(self) -> None:
        self._timer = None
        if not self._marks:
            return
        oldest = self._marks[0]
        age = self._clock.seconds() - oldest[0]
        if age < self._timeout:
            self._timer = self._clock.callLater(self._timeout - age, self._look_at_oldest)
        elif oldest is not self._overdue:
            # Perhaps it is this process that is late: what has arrived by now is read first.
            self._overdue = oldest
            self._timer = self._clock.callLater(0, self._look_at_oldest)
        else:
            self._end("timeout", f"no answer within {self._timeout:g} s")

    def _end(self, reason: str, text: str) -> None:
        """Close, and tell everybody."""
        self._open = False
        self._room = 0
        for call in (self._turn_end, self._timer):
            if call is not None and call.active():
                call.cancel()
        self._turn_end = self._timer = None
        unsent = len(self._out)
        pending, self._pending = self._pending, deque()
        self._out = []
        self._marks.clear()
        self.transport.abortConnection()
        sent = len(pending) - unsent
        for number, waiting in enumerate(pending):
            if number >= sent:
                fate = Fate.NOT_PERFORMED
            else:
                fate = Fate.UNKNOWN if waiting.write else Fate.UNANSWERED
            try:
                waiting.answered(EngineFailure(fate, reason, text), waiting)
            except Exception:
                log.failure("the loss of a connection could not be told")
        self._on_end(self, reason, text)


def _not_performed(reason: str, text: str) -> EngineFailure:
    return EngineFailure(Fate.NOT_PERFORMED, reason, text)
