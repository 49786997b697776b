"""Keeps one connection up: dials, logs in, waits, dials again.

::

    STOPPED ─start─> DIALLING ─ready─> UP
                      ^    │failed      │lost
                      │    v            │
                      └─ WAITING <──────┘
    any ─stop─> STOPPING ─ended─> STOPPED

Dialling is one asynchronous flow (connect, TLS, HELLO, login, bucket) under one deadline.

Twisted's ``ClientService`` is not used here: up to 26.10 at least, a connection that is lost
while its ``prepareConnection`` runs raises ``NoTransition``, and the login is exactly that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.client.bootstrap import Derive, SessionSettings, bootstrap
from kvproto.client.errors import ConnectionFailedError, StoppedError, reason_of
from kvproto.client.exchange import Exchange
from kvproto.client.protocol import KVClientProtocol

log = make_logger()

__all__ = ["Connector", "ConnectorState", "growing_delays"]

STABLE_S = 5.0
"""Seconds that a connection must have been up for the delays to begin anew: a server that ends
each connection right after the login must not be dialled ten times a second."""


class ConnectorState(Enum):
    """States of a connector; see the diagram of this module."""

    STOPPED = "stopped"
    DIALLING = "dialling"
    WAITING = "waiting"
    UP = "up"
    STOPPING = "stopping"


class Owner(Protocol):
    """What a connector tells its owner."""

    def connection_up(self, protocol: KVClientProtocol) -> None:
        """Use a new connection, ready for work."""

    def connection_lost(self, why: str, unsent: list[Exchange[Any]]) -> None:
        """Take back what an ended connection never wrote."""

    def dialling_failed(self, failure: Failure) -> None:
        """Note that an attempt has failed; another one follows."""


def growing_delays(
    first_s: float = 0.1,
    longest_s: float = 10.0,
    factor: float = 2.0,
    jitter: Callable[[], float] = random.random,
) -> Callable[[int], float]:
    """Return a policy: the delay after so many failures in a row.

    Args:
        first_s: Seconds after the first failure.
        longest_s: Seconds at most.
        factor: By which it grows.
        jitter: Returns numbers from 0 to 1; a delay is shortened by up to a half, so that the
            clients of a server that has died do not all come back at once.
    """

    def delay(failures: int) -> float:
        # The exponent is bounded: a float overflows after a thousand failures.
        wait = min(longest_s, first_s * factor ** min(failures - 1, 64))
        return wait * (1 - jitter() / 2)

    return delay


class Connector:
    """Keeps its owner connected while it is started.

    Args:
        owner: Who wants the connection.
        endpoint: Where the server is; TLS is the endpoint's business.
        clock: For delays and deadlines.
        make_protocol: Makes the protocol of each connection.
        settings: What is arranged on each connection.
        derive: Runs PBKDF2.
        dial_timeout_s: Seconds from dialling to being ready for work.
        close_timeout_s: Seconds for outstanding replies and for closing; then the end is abrupt.
        delays: Seconds to wait after so many failures in a row.

    Attributes:
        state: Where it stands.
    """

    def __init__(
        self,
        owner: Owner,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        make_protocol: Callable[[], KVClientProtocol],
        settings: SessionSettings,
        derive: Derive,
        *,
        dial_timeout_s: float,
        close_timeout_s: float,
        delays: Callable[[int], float],
    ) -> None:
        self.state = ConnectorState.STOPPED
        self._owner = owner
        self._endpoint = endpoint
        self._clock = clock
        self._make_protocol = make_protocol
        self._settings = settings
        self._derive = derive
        self._dial_timeout_s = dial_timeout_s
        self._close_timeout_s = close_timeout_s
        self._delays = delays
        self._wanted = False
        self._failures = 0
        self._up_since = 0.0
        self._timer: IDelayedCall | None = None
        self._dialling: Deferred[None] | None = None
        self._protocol: KVClientProtocol | None = None
        self._stopped: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin to dial, unless that has begun; while stopping, once that is done."""
        self._wanted = True
        if self.state is ConnectorState.STOPPED:
            self._failures = 0
            self._dial()

    def stop(self) -> Deferred[None]:
        """End the connection in an orderly way, in bounded time, and stop dialling.

        Returns:
            A Deferred that fires once nothing is left: no connection, no attempt, no timer.
        """
        self._wanted = False
        if self.state is ConnectorState.STOPPED:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        before, self.state = self.state, ConnectorState.STOPPING
        self._leave(before)
        return stopped

    def _leave(self, before: ConnectorState) -> None:
        if before is ConnectorState.WAITING:
            self._cancel_timer()
            self._ended()
        elif before is ConnectorState.DIALLING:
            # None while the attempt's own first steps ask us to stop; `_ready` or `_failed` hears.
            if self._dialling is not None:
                self._dialling.cancel()
        elif before is ConnectorState.UP:
            assert self._protocol is not None
            self._timer = self._clock.callLater(self._close_timeout_s, self._close)
            self._protocol.start_drain("the client is stopping")

    # --- dialling -------------------------------------------------------------------------

    def _dial(self) -> None:
        self.state = ConnectorState.DIALLING
        dialling = self._dialling = Deferred.fromCoroutine(self._make_ready())
        if not dialling.called:
            self._timer = self._clock.callLater(self._dial_timeout_s, self._give_up)
        dialling.addCallbacks(self._ready, self._failed)
        dialling.addErrback(_log_bug)

    async def _make_ready(self) -> None:
        factory = Factory.forProtocol(self._make_protocol)
        protocol: Any = await self._endpoint.connect(factory)
        try:
            await bootstrap(protocol, self._settings, self._derive, self._dial_timeout_s)
            _check_open(protocol)
        except Exception:
            protocol.abort("the login failed or took too long")
            await protocol.when_closed()
            raise
        protocol.on_lost = self._lost
        self._protocol = protocol

    def _give_up(self) -> None:
        self._timer = None
        if self._dialling is not None:
            self._dialling.cancel()

    def _ready(self, _: None) -> None:
        self._cancel_timer()
        self._dialling = None
        self._up_since = self._clock.seconds()
        assert self._protocol is not None
        if self.state is ConnectorState.STOPPING:
            self._leave(ConnectorState.UP)
            return
        self.state = ConnectorState.UP
        self._owner.connection_up(self._protocol)

    def _failed(self, failure: Failure) -> None:
        self._cancel_timer()
        self._dialling = None
        if self.state is ConnectorState.STOPPING:
            self._ended()
            return
        if failure.check(CancelledError):
            failure = Failure(
                ConnectionFailedError(
                    f"no connection ready for work within {self._dial_timeout_s} s", False
                )
            )
        log.warn("no connection: {why}", why=reason_of(failure))
        self._wait()
        self._owner.dialling_failed(failure)

    def _wait(self) -> None:
        self._failures += 1
        self.state = ConnectorState.WAITING
        self._timer = self._clock.callLater(self._delays(self._failures), self._dial_again)

    def _dial_again(self) -> None:
        self._timer = None
        self._dial()

    # --- ending ---------------------------------------------------------------------------

    def _lost(self, why: str, unsent: list[Exchange[Any]]) -> None:
        self._protocol = None
        self._cancel_timer()
        if self.state is ConnectorState.STOPPING:
            for exchange in unsent:
                exchange.fail(StoppedError("the client is stopping", False))
            self._ended()
            return
        log.info("{why}", why=why)
        if self._clock.seconds() - self._up_since >= STABLE_S:
            self._failures = 0
        self._wait()
        self._owner.connection_lost(why, unsent)

    def _close(self) -> None:
        """Replies did not come in time: end the connection at once."""
        self._timer = None
        if self._protocol is not None:
            self._protocol.abort("the client is stopping")

    def _ended(self) -> None:
        self.state = ConnectorState.STOPPED
        stopped, self._stopped = self._stopped, []
        for deferred in stopped:
            deferred.callback(None)
        if self._wanted and self.state is ConnectorState.STOPPED:
            self._dial()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _check_open(protocol: KVClientProtocol) -> None:
    if not protocol.is_open:
        raise ConnectionFailedError("the connection was lost at once", False)


def _log_bug(failure: Failure) -> None:
    log.failure("a bug in the connector", failure=failure)
