"""The other end of a connection, in memory: a transport, a scripted server, an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.wire.binary import RequestDecoder, encode_response
from kvproto.wire.constants import Feature, Opcode
from kvproto.wire.frames import Request
from kvproto.wire.hello import decode_features, encode_features, negotiate

__all__ = ["Answers", "Endpoint", "Peer", "connected"]

Answers = dict[int, Callable[[Request], "bytes | dict[str, Any] | None"]]
"""What a scripted server does with each opcode: bytes to send as they are, arguments of
`encode_response`, or None to say nothing."""


class Peer:
    """A transport that is its own server.

    Args:
        clock: Ends of the connection arrive through it, as through a reactor.
        answers: What is answered at once; other requests are kept in `asked`.

    Attributes:
        asked: Requests that have not been answered.
        writes: Each write of the client.
        deaf: Whether an orderly end is never noticed, as with a peer that does not read.
    """

    def __init__(self, clock: Clock, answers: Answers | None = None) -> None:
        self.clock = clock
        self.answers: Answers = {} if answers is None else answers
        self.asked: list[Request] = []
        self.writes: list[bytes] = []
        self.deaf = False
        self.aborted = False
        self.closing = False
        self.gone = False
        self.producer: Any = None
        self.protocol: Any = None
        self._last = -1
        self._decoder = RequestDecoder()

    def connect(self, protocol: Any) -> Any:
        """Connect a protocol."""
        self.protocol = protocol
        protocol.makeConnection(self)
        return protocol

    # --- as a transport -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.gone or self.closing:
            return
        self.writes.append(data)
        for request in self._decoder.feed(data):
            assert isinstance(request, Request)
            # Never in the same call: a real server's answer takes its time.
            answer = self.answers.get(request.opcode)
            if answer is None and request.opcode == Opcode.NOOP and self._last == Opcode.HELLO:
                # It only pushes out HELLO's answer; any server answers it.
                answer = _success
            self._last = request.opcode
            if answer is None:
                self.asked.append(request)
            else:
                self.clock.callLater(0, self._answer, answer, request)
        assert self._decoder.error is None

    def _answer(self, answer: Callable[[Request], Any], request: Request) -> None:
        said = answer(request)
        if isinstance(said, dict):
            self.reply(request, **said)
        elif said is not None:
            self.send(said)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseConnection(self) -> None:
        assert self.producer is None, "a transport with a producer does not close"
        self.closing = True
        if not self.deaf:
            self.clock.callLater(0, self.lose, ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = self.closing = True
        self.clock.callLater(0, self.lose, ConnectionAborted())

    # --- as a server ----------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Let bytes arrive."""
        if not self.gone:
            self.protocol.dataReceived(data)

    def reply(self, request: Request, status: int = 0, **fields: Any) -> None:
        """Answer a request."""
        if request in self.asked:
            self.asked.remove(request)
        self.send(encode(request, status, **fields))

    def lose(self, error: Exception | None = None) -> None:
        """End the connection."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(error or ConnectionDone()))

    def fill(self) -> None:
        """Become full: tell the client to write no more."""
        self.producer.pauseProducing()

    def empty(self) -> None:
        """Take writes again."""
        self.producer.resumeProducing()


def encode(request: Request, status: int = 0, **fields: Any) -> bytes:
    """Return the reply to a request."""
    return encode_response(request.opcode, status, opaque=request.opaque, **fields)


def _success(request: Request) -> dict[str, Any]:
    return {}


def connected(protocol: Any, clock: Clock, answers: Answers | None = None) -> Peer:
    """Connect a protocol to a new peer."""
    peer = Peer(clock, answers)
    peer.connect(protocol)
    return peer


def agrees(*features: int) -> Answers:
    """Return answers of a server that says HELLO and has these features."""

    def hello(request: Request) -> dict[str, Any]:
        return {"value": encode_features(negotiate(decode_features(request.value), set(features)))}

    return {Opcode.HELLO: hello}


ALL_FEATURES = frozenset(Feature)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An endpoint whose attempts the test decides.

    Attributes:
        attempts: Factories and Deferreds of attempts that are not decided.
        cancelled: How many attempts were cancelled.
        peers: All peers that were connected.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.attempts: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0
        self.peers: list[Peer] = []

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        attempt: Deferred[Any] = Deferred(self._cancel)
        self.attempts.append((protocolFactory, attempt))
        return attempt

    def _cancel(self, attempt: Deferred[Any]) -> None:
        self.cancelled += 1
        self.attempts = [one for one in self.attempts if one[1] is not attempt]

    def accept(self, answers: Answers | None = None) -> Peer:
        """Let the oldest attempt succeed."""
        factory, attempt = self.attempts.pop(0)
        peer = Peer(self.clock, answers)
        self.peers.append(peer)
        attempt.callback(peer.connect(factory.buildProtocol(None)))
        return peer

    def refuse(self, error: Exception) -> None:
        """Let the oldest attempt fail."""
        _, attempt = self.attempts.pop(0)
        attempt.errback(Failure(error))


def settle(clock: Clock, turns: int = 12) -> None:
    """Let what is due now happen, and what that makes due."""
    for _ in range(turns):
        clock.advance(0)


def delays_of(clock: Clock) -> Iterator[float]:
    """Return when each delayed call is due, from now."""
    return (call.getTime() - clock.seconds() for call in clock.getDelayedCalls())
