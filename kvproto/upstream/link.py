"""One connection to a server that is made again whenever it is lost: `Link`.

Owns connecting, the greeting (login, database, scripts) and what happens to commands meanwhile.

States and events:

| event         | STOPPED      | CONNECTING   | GREETING     | READY        | WAITING      |
|---------------|--------------|--------------|--------------|--------------|--------------|
| start         | → CONNECTING | nothing      | nothing      | nothing      | nothing      |
| send          | refused      | kept         | kept         | sent         | refused      |
| connected     |              | → GREETING   |              |              |              |
| failed        |              | → WAITING    |              |              |              |
| greeted       |              |              | → READY (1)  |              |              |
| refused       |              |              | → WAITING    |              |              |
| deadline      |              | → WAITING    | → WAITING    |              |              |
| lost          |              |              | → WAITING    | → CONNECTING |              |
| time to retry |              |              |              |              | → CONNECTING |
| renew         | nothing      | → CONNECTING | → CONNECTING | → CONNECTING (2) | → CONNECTING |
| stop          | nothing      | → STOPPED    | → STOPPED    | → STOPPED    | → STOPPED    |

(1) What was kept is sent.  (2) What is under way is answered by the old connection, which closes
then.  What has no entry cannot happen.

Whenever WAITING or STOPPED is entered, what was kept is refused: it has not been sent.  A server
that is known to be away costs its clients nothing but the answer "not now"; one that is not known
to be away, because an idle connection was lost, costs them the time to connect.

Connecting and greeting together have one deadline.  A server that is stopped (SIGSTOP) still lets
the kernel accept connections, so only the answer to a greeting shows that it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from kvproto.base.backoff import Backoff
from kvproto.base.log import make_logger
from kvproto.upstream.connection import Call, EngineConnection
from kvproto.upstream.resp import EngineFailure, Fate, judge_plainly

__all__ = ["Link", "LinkState"]

log = make_logger()

MAX_KEPT = 10_000
"""Commands that may wait for a connection."""

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0
"""Seconds between two attempts; the contract promises at most 5."""


class LinkState(Enum):
    """Where a link is; see the module's table."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    GREETING = "greeting"
    READY = "ready"
    WAITING = "waiting for the next attempt"


class Link:
    """A connection that is made again.

    Args:
        clock: For deadlines and attempts.
        endpoint: Makes the endpoint of an attempt; may raise what an attempt can fail with.
        greeting: Makes the commands that begin a connection, encoded or as calls; each must be
            answered without an error.  May raise `OSError` when a file that it needs cannot be
            read.
        connect_timeout: Seconds for connecting and greeting.
        timeout: Seconds that a command may wait for its reply.
        changed: Called with this link when it has become ready, or has ceased to be, or an attempt
            has failed.
        observe: As for `EngineConnection`.
        backoff: How long to wait between attempts.
        connection: Makes the protocol of a connection.
        judge: Called with a command of the greeting and the reply to it; returns why they show
            that the server cannot be used, or None.

    Attributes:
        state: Where it is.
        companions: As for `EngineConnection`.
        server: Whose connection it is.
        ready: The connection while the state is READY, None else: for who is in a hurry.
        reason: Why it is not ready: a word of `kvproto.upstream.resp.REASONS`.
        text: The same for people.
    """

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: Callable[[], IStreamClientEndpoint],
        greeting: Callable[[], Sequence[bytes | Call]],
        connect_timeout: float,
        timeout: float,
        changed: Callable[[Link], object],
        observe: Callable[[float, int], object] = lambda seconds, count: None,
        backoff: Backoff | None = None,
        connection: Callable[..., EngineConnection] = EngineConnection,
        judge: Callable[[bytes, Any], EngineFailure | None] = judge_plainly,
    ) -> None:
        self._clock = clock
        self._judge = judge
        self._make_connection = connection
        self._endpoint = endpoint
        self._greeting = greeting
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._changed = changed
        self._observe = observe
        self._backoff = backoff or Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        self._connection: EngineConnection | None = None
        self._attempt: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._kept: list[Call] = []
        self._greetings = 0
        self._retiring: set[EngineConnection] = set()
        self.companions: set[object] = set()
        self.server: Any = None
        self.ready: EngineConnection | None = None
        self.state = LinkState.STOPPED
        self.ready = None
        self.reason, self.text = "unreachable", "not connected yet"

    @property
    def pending(self) -> int:
        """How many commands are unanswered or kept."""
        return len(self._kept) + (self._connection.pending if self._connection else 0)

    def send(self, call: Call) -> None:
        """Send a command, now or when the connection is there; or refuse it."""
        if self.state is LinkState.READY:
            self._connection.send(call)  # type: ignore[union-attr]
        elif self.state in {LinkState.CONNECTING, LinkState.GREETING}:
            if len(self._kept) < MAX_KEPT:
                self._kept.append(call)
            else:
                text = "too much waits for the connection"
                call.answered(EngineFailure(Fate.NOT_PERFORMED, "overload", text), call)
        else:
            call.answered(EngineFailure(Fate.NOT_PERFORMED, self.reason, self.text), call)

    def start(self) -> None:
        """Connect, and stay connected."""
        if self.state is LinkState.STOPPED:
            self._connect()

    def stop(self) -> None:
        """Close, and stay closed; what is under way is told that it gets no answer."""
        if self.state is LinkState.STOPPED:
            return
        self.state = LinkState.STOPPED
        self.ready = None
        self.reason, self.text = "unreachable", "stopped"
        self._let_go()
        for connection in list(self._retiring):
            connection.abort("disconnected", "stopped")
        self._refuse_kept()

    def renew(self) -> None:
        """Make a new connection with what is in the files now; the old one answers what it has."""
        if self.state is LinkState.STOPPED:
            return
        old, was_ready = self._connection, self.state is LinkState.READY
        if was_ready and old is not None:
            self._connection = None
            self._retiring.add(old)
            old.close_when_idle()
        self._let_go()
        self._connect()

    # attempts

    def _connect(self) -> None:
        self.state = LinkState.CONNECTING
        self.ready = None
        self._timer = self._clock.callLater(self._connect_timeout, self._too_slow)
        factory = Factory.forProtocol(self._build)
        factory.noisy = False
        try:
            attempt = self._endpoint().connect(factory)
        except Exception:
            attempt = Deferred()
            attempt.errback(Failure())
        self._attempt = attempt
        attempt.addCallbacks(self._connected, self._failed, errbackArgs=(attempt,))
        attempt.addErrback(lambda failure: log.failure("connecting failed", failure=failure))

    def _build(self) -> EngineConnection:
        return self._make_connection(
            self._clock, self._timeout, self._ended, self._observe, self.companions
        )

    def _connected(self, connection: EngineConnection) -> None:
        self._attempt = None
        if self.state is not LinkState.CONNECTING:
            connection.abort("disconnected", "too late")
            return
        self._connection = connection
        self.state = LinkState.GREETING
        try:
            commands = self._greeting()
        except OSError as error:
            self._give_up("login", str(error))
            return
        self._greetings = len(commands)
        for command in commands:
            call = command if isinstance(command, Call) else Call(command, self._greeted)
            call.answered, call.context = self._greeted, connection
            connection.send(call)

    def _failed(self, failure: Failure, attempt: Deferred[Any]) -> None:
        if self._attempt is not attempt:
            failure.trap(CancelledError, Exception)
            return
        self._attempt = None
        if self.state is LinkState.CONNECTING:
            self._give_up("unreachable", failure.getErrorMessage() or str(failure.type))

    def _greeted(self, reply: Any, call: Call) -> None:
        """Take one answer of a greeting."""
        if call.context is not self._connection or self.state is not LinkState.GREETING:
            return
        failure = reply if isinstance(reply, EngineFailure) else self._judge(call.data, reply)
        if failure is not None:
            self._give_up(failure.reason, failure.text)
        else:
            self._greetings -= 1
            if not self._greetings:
                self._become_ready()

    def _become_ready(self) -> None:
        self._stop_timer()
        self._backoff.reset()
        self.state = LinkState.READY
        self.ready = self._connection
        self.reason = self.text = ""
        kept, self._kept = self._kept, []
        for call in kept:
            self.send(call)
        self._changed(self)

    def _too_slow(self) -> None:
        self._timer = None
        self._give_up("timeout", f"no connection within {self._connect_timeout:g} s")

    def _give_up(self, reason: str, text: str) -> None:
        """End this attempt, and wait for the next."""
        self.state = LinkState.WAITING
        self.ready = None
        self.reason, self.text = reason, text
        self._let_go()
        self._timer = self._clock.callLater(self._backoff.next_wait(), self._retry)
        self._refuse_kept()
        self._changed(self)

    def _retry(self) -> None:
        self._timer = None
        self._connect()

    def _ended(self, connection: EngineConnection, reason: str, text: str) -> None:
        """Note that a connection has ended, whoever ended it."""
        self._retiring.discard(connection)
        if connection is not self._connection:
            return
        self._connection = None
        self.companions.clear()
        if self.state is LinkState.GREETING:
            self._give_up(reason, text)
        elif self.state is LinkState.READY:
            self.reason, self.text = reason, text
            self._connect()
            self._changed(self)

    # letting go

    def _let_go(self) -> None:
        """End what is under way: timer, attempt, connection."""
        self._stop_timer()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        self.companions.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("disconnected", "closed by us")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_kept(self) -> None:
        kept, self._kept = self._kept, []
        for call in kept:
            call.answered(EngineFailure(Fate.NOT_PERFORMED, self.reason, self.text), call)
