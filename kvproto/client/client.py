"""`KVClient`: a server that is always there, as far as its users can tell.

Requests wait while there is no connection, in bounded number and until their deadline; a request
that was never written survives the loss of a connection.  One that was written is never repeated
by itself: only its user knows whether that would do harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IReactorThreads,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from kvproto.client.bootstrap import Derive, SessionSettings, derive_here
from kvproto.client.collection import Collection
from kvproto.client.connector import Connector, ConnectorState, growing_delays
from kvproto.client.errors import ConnectionFailedError, LoginError, StoppedError, reason_of
from kvproto.client.exchange import Exchange
from kvproto.client.operations import ServerOperations
from kvproto.client.protocol import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_SILENCE_S,
    KVClientProtocol,
)
from kvproto.client.waiting import (
    DEFAULT_MAX_WAITING,
    DEFAULT_MAX_WAITING_BYTES,
    Sweep,
    WaitingRoom,
)
from kvproto.errors import ConfigError, LocalProtocolError
from kvproto.wire.binary import DEFAULT_MAX_BODY
from kvproto.wire.collections import DEFAULT
from kvproto.wire.scram import salted_password

__all__ = ["KVClient", "Limits"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a client, in time and in memory.

    Attributes:
        timeout_s: Seconds that a request may take, waiting for a connection included, unless it
            says otherwise.
        dial_timeout_s: Seconds from dialling to being ready for work: TCP, TLS, HELLO, login.
        close_timeout_s: Seconds that closing waits for outstanding replies.
        silence_s: Seconds after the deadline of a request that was not answered.  A server that
            has sent nothing in them counts as gone and is dialled again; one that answers others
            is dialled again as soon as these have been answered.
        max_in_flight: Requests that may await replies; more wait to be written.
        max_waiting: Requests that may wait to be written; more fail at once.
        max_waiting_bytes: Bytes of values that may wait to be written.
        max_reply: Longest reply that is read, in bytes.
    """

    timeout_s: float = 2.5
    dial_timeout_s: float = 10.0
    close_timeout_s: float = 3.0
    silence_s: float = DEFAULT_SILENCE_S
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    max_waiting: int = DEFAULT_MAX_WAITING
    max_waiting_bytes: int = DEFAULT_MAX_WAITING_BYTES
    max_reply: int = DEFAULT_MAX_BODY

    def __post_init__(self) -> None:
        for name in self.__slots__:
            number = getattr(self, name)
            # "nan" compares false with everything, so this way round it is refused as well.
            if not 0 < number < float("inf"):
                raise ConfigError(name, f"{number!r} is no number above 0")


class KVClient(Service, ServerOperations):
    """A client of one server, as a Twisted service.

    Start it (``startService``, or let a parent service do so) and ask; the operations are those of
    `kvproto.client.operations.Operations`, in the default collection.

    Args:
        endpoint: Where the server is; for TLS an endpoint that puts TLS on, for example
            ``clientFromString(reactor, "kvtls:kv.example:11207:caCertificate=ca.pem")``.
        clock: The reactor, or a test's clock.
        session: Login, bucket and features.
        limits: Bounds.
        delays: Seconds to wait before dialling again, after so many failures in a row.
        derive: Runs PBKDF2 for SCRAM; by default in a thread of the reactor's pool.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        session: SessionSettings | None = None,
        limits: Limits | None = None,
        *,
        delays: Callable[[int], float] | None = None,
        derive: Derive | None = None,
    ) -> None:
        self._clock = clock
        self._limits = limits = Limits() if limits is None else limits
        self._waiting = WaitingRoom(limits.max_waiting, limits.max_waiting_bytes)
        self._waiting.why = "there is no connection yet"
        self._sweep = Sweep(clock, self._waiting.expire)
        self._protocol: KVClientProtocol | None = None
        self._collections: dict[bytes, int] = {}
        self._connector = Connector(
            self,
            endpoint,
            clock,
            self._make_protocol,
            SessionSettings() if session is None else session,
            _default_derive(clock) if derive is None else derive,
            dial_timeout_s=limits.dial_timeout_s,
            close_timeout_s=limits.close_timeout_s,
            delays=growing_delays() if delays is None else delays,
        )

    def _make_protocol(self) -> KVClientProtocol:
        limits = self._limits
        return KVClientProtocol(
            self._clock,
            timeout_s=limits.timeout_s,
            max_in_flight=limits.max_in_flight,
            max_body=limits.max_reply,
            silence_s=limits.silence_s,
            unsent=WaitingRoom(limits.max_waiting, limits.max_waiting_bytes),
        )

    # --- the life of it -------------------------------------------------------------------

    @property
    def state(self) -> ConnectorState:
        """State of the connection, or of the attempts to have one."""
        return self._connector.state

    @property
    def protocol(self) -> KVClientProtocol | None:
        """The connection of now, for what has no method here; None when there is none."""
        return self._protocol

    def startService(self) -> None:
        """Begin to connect; requests are taken from now on."""
        super().startService()
        self._connector.start()

    def stopService(self) -> Deferred[None]:
        """Refuse new requests, wait a little for outstanding replies, and close.

        What has not been written fails at once.

        Returns:
            A Deferred that fires once nothing is left; after ``close_timeout_s`` at most.
        """
        super().stopService()
        self._protocol = None
        self._sweep.stop()
        self._waiting.fail_all(_stopped)
        return self._connector.stop()

    def close(self) -> Deferred[None]:
        """Stop a client that has no parent service."""
        return self.stopService()

    def connection_up(self, protocol: KVClientProtocol) -> None:
        """Send what waits on a new connection (called by the connector)."""
        self._protocol = protocol
        self._collections.clear()
        self._sweep.stop()
        protocol.submit_all(self._waiting.take_all())

    def connection_lost(self, why: str, unsent: list[Exchange[Any]]) -> None:
        """Keep what an ended connection has not sent (called by the connector)."""
        self._protocol = None
        self._collections.clear()
        self._waiting.why = why
        for exchange in unsent:
            self._enqueue(exchange, why)

    def dialling_failed(self, failure: Failure) -> None:
        """Note why an attempt has failed (called by the connector).

        When the server is not there, requests wait on.  When it refuses us, or when our own words
        cannot be sent, waiting would not help them.
        """
        error = failure.value
        self._waiting.why = reason_of(failure)
        if isinstance(error, LoginError | LocalProtocolError):
            self._waiting.fail_all(lambda: type(error)(*error.args))

    # --- asking ---------------------------------------------------------------------------

    def _ask(self, exchange: Exchange[T], timeout_s: float | None) -> Deferred[T]:
        deferred = exchange.deferred
        assert deferred is not None
        exchange.deadline = self._clock.seconds() + (
            self._limits.timeout_s if timeout_s is None else timeout_s
        )
        protocol = self._protocol
        # One that is ending has not told us yet, but takes no more.
        if protocol is not None and protocol.is_open:
            protocol.submit(exchange)
        elif self.running:
            self._enqueue(exchange, "there is no connection")
        else:
            exchange.fail(_stopped())
        return deferred

    def _enqueue(self, exchange: Exchange[Any], why: str) -> None:
        # The next connection may know the collection by another id, or another one by this id.
        if exchange.collection:
            exchange.fail(ConnectionFailedError(why, False))
            return
        self._waiting.add(exchange)
        if exchange.deferred is not None:
            self._sweep.watch(exchange.deadline)

    def collection(self, scope: str = DEFAULT, name: str = DEFAULT) -> Collection:
        """Return a view of another collection, with the operations on its documents.

        Needs feature 0x12; the ids are asked for when they are needed, once a connection.
        """
        return Collection(
            self._ask, self._collections, self._clock, self._limits.timeout_s, scope, name
        )


def _stopped() -> StoppedError:
    return StoppedError("the client is not running", False)


def _default_derive(clock: Any) -> Derive:
    """Return what runs PBKDF2 in a thread, where the clock is a reactor that has threads."""
    if not IReactorThreads.providedBy(clock):
        return derive_here

    def derive(digest: str, password: bytes, salt: bytes, iterations: int) -> Deferred[bytes]:
        # Not before it is needed: to ask a reactor for its pool makes one.
        pool = clock.getThreadPool()
        return deferToThreadPool(clock, pool, salted_password, digest, password, salt, iterations)

    return derive
