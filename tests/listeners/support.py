"""What the tests of the listeners share: a transport, an owner and a controller to look into."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IStreamServerEndpoint,
    ISystemHandle,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.interfaces import IController, IDrainable, ISecuredTransport
from kvproto.listeners.handoff import Handoff, HandoffFactory
from kvproto.listeners.ledger import Ledger, Limits
from kvproto.listeners.states import Event, State, Timeouts
from kvproto.testing.scripted import PEER, ScriptedTransport


class Handle:
    """An OpenSSL connection, as far as its progress goes."""

    def __init__(self, transport: FakeTransport) -> None:
        self._transport = transport

    def get_state_string(self) -> bytes:
        hello = self._transport.hello_seen
        return b"TLSv1.3 early data" if hello else b"before SSL initialization"


@implementer(ISecuredTransport, ISystemHandle)
class FakeTransport(ScriptedTransport):
    """A secured transport that the test closes when it likes.

    ``sync`` aborts tell the protocol in the same call, as some transports do.
    """

    def __init__(self, peer: Any = PEER, *, generation: int = 1, sync: bool = False) -> None:
        super().__init__(peer=peer)
        self.generation = generation
        self.chain: tuple[bytes, ...] = ()
        self.sync = sync
        self.hello_seen = False
        self.calls: list[str] = []

    def peer_chain(self) -> tuple[bytes, ...]:
        return self.chain

    def tls_version(self) -> str:
        return "TLSv1.3"

    def getHandle(self) -> Handle:
        return Handle(self)

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.calls.append("lose")

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True
        self.calls.append("abort")
        if self.sync:
            self.lose(ConnectionAborted())


class LivelyTransport(FakeTransport):
    """A transport on a clock: aborts end it in the next turn, a polite peer answers goodbyes."""

    def __init__(self, clock: Clock, peer: Any = PEER, *, polite: bool = True) -> None:
        super().__init__(peer)
        self._clock = clock
        self.polite = polite

    def _later(self, delay: float, reason: Exception) -> None:
        if not self.closed:
            self._clock.callLater(delay, self.lose, reason)

    def loseConnection(self) -> None:
        super().loseConnection()
        if self.polite:
            self._later(0.01, ConnectionDone())

    def abortConnection(self) -> None:
        super().abortConnection()
        self._later(0, ConnectionAborted())


class FakePort:
    """A listening port that can pause, with the kernel's queue in front of it."""

    def __init__(self, factory: Any, *, pausable: bool = True) -> None:
        self.factory = factory
        self.queue: list[Any] = []
        self.accepting = True
        self.closed = False
        if pausable:
            self.pause_accepting = self._pause
            self.resume_accepting = self._resume
        factory.doStart()

    def _pause(self) -> None:
        self.accepting = False

    def _resume(self) -> None:
        self.accepting = True
        queue, self.queue = self.queue, []
        for transport in queue:
            self.connect(transport)

    def connect(self, transport: Any) -> Any:
        """Let a client connect: accepted at once, or waiting in the queue."""
        assert not self.closed, "refused"
        if not self.accepting:
            self.queue.append(transport)
            return None
        protocol = self.factory.buildProtocol(transport.getPeer())
        transport.connect(protocol)
        return protocol

    def getHost(self) -> Any:
        return IPv4Address("TCP", "192.0.2.9", 11207)

    def stopListening(self) -> Deferred[None]:
        self.closed = True
        self.factory.doStop()
        return succeed(None)


@implementer(IStreamServerEndpoint)
class FakeEndpoint:
    """An endpoint whose next answers are the test's: exceptions first, then ports."""

    def __init__(self, *failures: Exception, pausable: bool = True) -> None:
        self.failures = list(failures)
        self.pausable = pausable
        self.ports: list[FakePort] = []

    @property
    def port(self) -> FakePort:
        return self.ports[-1]

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        if self.failures:
            return fail(self.failures.pop(0))
        self.ports.append(FakePort(protocolFactory, pausable=self.pausable))
        return succeed(self.port)


class Owner(Protocol):
    """Remembers what it is told."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost.append(reason)


@implementer(IHalfCloseableProtocol)
class ToldOwner(Owner):
    """An owner that is told that its peer has ended its side."""

    told = 0

    def readConnectionLost(self) -> None:
        self.told += 1

    def writeConnectionLost(self) -> None:
        raise AssertionError("nobody closes one side")


class AnsweringOwner(Owner):
    """An owner that answers in place."""

    def answer(self, data: bytes, replies: list[bytes]) -> int:
        if data:
            replies.append(data)
        return len(data)


@implementer(IDrainable)
class DrainableOwner(Owner):
    """An owner that finishes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.draining: list[Deferred[None]] = []

    def drain(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.draining.append(done)
        return done


@implementer(IController)
class FakeController:
    """A controller whose answers are the test's.

    ``answer`` is what `claim` returns: a protocol, a Deferred, or an exception to raise;
    None makes a new `Owner` each time, ``"later"`` a Deferred with a canceller.
    """

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.claimed: list[Any] = []
        self.owners: list[Any] = []
        self.given: list[Deferred[Any]] = []
        self.pending: list[Deferred[Any]] = []
        self.cancelled: list[Deferred[Any]] = []
        self.late: list[Any] = []
        self.refused: list[tuple[Any, str]] = []
        self.refusal: Any = None

    def claim(self, connection: Any) -> Any:
        self.claimed.append(connection)
        if isinstance(self.answer, Exception):
            raise self.answer
        given = self.answer
        if given is None:
            given = Owner()
        elif given == "later":
            given = Deferred(self.cancelled.append)
            self.pending.append(given)
        if isinstance(given, Deferred):
            self.given.append(given)
        else:
            self.owners.append(given)
        return given

    def too_late(self, connection: Any) -> None:
        self.late.append(connection)

    def refuse(self, connection: Any, reason: str) -> Any:
        self.refused.append((connection, reason))
        if isinstance(self.refusal, Exception):
            raise self.refusal
        return self.refusal or Owner()


class Bench:
    """A ledger, a controller and a factory of handoffs, on one clock."""

    def __init__(
        self,
        answer: Any = None,
        *,
        limits: Limits | None = None,
        handshake: bool = True,
        name: str = "data",
        limit: int = 0,
    ) -> None:
        self.clock = Clock()
        self.timeouts = Timeouts()
        self.ledger = Ledger(self.clock, limits, self.timeouts, now=self.now)
        self.controller = FakeController(answer)
        self.factory = HandoffFactory(
            name, self.controller, self.ledger, handshake=handshake, limit=limit
        )

    def now(self) -> float:
        return self.clock.seconds()

    def connect(self, peer: Any = PEER, **options: Any) -> tuple[Handoff, FakeTransport]:
        """Accept one connection; its handshake has not ended."""
        handoff = self.factory.buildProtocol(peer)
        transport = FakeTransport(peer, **options)
        transport.connect(handoff)
        return handoff, transport

    def bring_to(self, state: State, **options: Any) -> tuple[Handoff, FakeTransport]:
        """Accept one connection and bring it into a state by ordinary events."""
        handoff, transport = self.connect(**options)
        if state is State.HANDSHAKING:
            return handoff, transport
        if state is State.CLOSED:
            transport.lose()
            return handoff, transport
        answer, self.controller.answer = self.controller.answer, "later"
        handoff.handshakeCompleted()
        self.controller.answer = answer
        if state is State.OFFERED:
            return handoff, transport
        if state is State.CANCELLED:
            handoff.fire(Event.DISPLACED, "for a test")
            return handoff, transport
        owner = Owner()
        self.controller.owners.append(owner)
        self.controller.pending.pop().callback(owner)
        if state is State.CLOSING:
            handoff.fire(Event.DRAIN, "for a test")
        return handoff, transport
