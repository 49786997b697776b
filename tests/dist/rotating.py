"""A whole node that is rotated, and peers that take their time, all in memory."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from kvproto.dist import LinkRotation, Node, NodeController, NodeEvent, NodeLink
from kvproto.dist.framing import FrameDecoder, frame
from kvproto.dist.handshake import Handshake, NodeIdentity, State, Status
from kvproto.errors import RemoteProtocolError
from kvproto.listeners.states import State as EntryState
from tests.listeners.support import LivelyTransport

__all__ = ["Asked", "Dialled", "PeerWire", "RecordingNode", "RecordingRotation", "SlowController"]


class PeerWire(LivelyTransport):
    """Our end of a connection; at the other one is a node that says one thing at a time.

    Args:
        clock: Of both.
        world: Has the ``generation`` of now.
        identity: The peer's.
        calls: Whom the peer calls, None when it is called.
        polite: Whether it answers a goodbye; one that does not is frozen.
        mute: Whether even an abort is never reported to us.
        answer: What it says to a name that calls it.
    """

    def __init__(
        self,
        clock: Clock,
        world: Any,
        identity: NodeIdentity,
        calls: str | None,
        *,
        polite: bool = True,
        mute: bool = False,
        answer: Status = Status.OK,
    ) -> None:
        super().__init__(clock, IPv4Address("TCP", "192.0.2.1", 4711), polite=polite)
        self._world = world
        self.generation = world.generation
        self.calls_us = calls is not None
        self.mute = mute
        self._answer = answer
        self.shaking = Handshake(identity, calls)
        self._heard = FrameDecoder(1 << 20)
        self._says: deque[bytes] = deque()

    def connect(self, protocol: Any) -> None:
        if self.calls_us:
            # In the queue of a paused port nobody has credentials yet.
            self.generation = self._world.generation
        super().connect(protocol)

    def write(self, data: bytes) -> None:
        if not (self.closed or self.disconnecting):
            self._heard.feed(data)

    def registerProducer(self, _producer: Any, _streaming: bool) -> None:
        pass

    def abortConnection(self) -> None:
        if self.mute:
            self.aborted = True
            self.calls.append("abort")
        else:
            super().abortConnection()

    # what the peer does

    def secure(self) -> bool:
        """End the TLS handshake well; whether it was waiting for that."""
        ready = self.calls_us and self.protocol is not None and not self.closed
        if not ready or self.protocol.state is not EntryState.HANDSHAKING:
            return False
        self.protocol.handshakeCompleted()
        self.shaking.begin()
        self._collect()
        return True

    def step(self) -> bool:
        """Say, or hear, one message; whether there was any."""
        if self.protocol is None or self.closed:
            return False
        if self._says:
            if not self.reading:
                return False
            self.protocol.dataReceived(self._says.popleft())
            return True
        payload = self._heard.next_frame()
        if payload is None:
            return False
        if self.shaking.state not in {State.UP, State.REFUSED, State.FAILED}:
            self._hear(payload)
        return True

    def shake(self) -> bool:
        """Go through the handshake as far as it goes; whether anything moved."""
        moved = False
        while self.step():
            moved = True
        return moved

    def _hear(self, payload: bytes) -> None:
        shaking = self.shaking
        try:
            shaking.receive(payload)
        except RemoteProtocolError:
            self.lose()
            return
        if shaking.state is State.DECIDING:
            shaking.decide(self._answer)
        elif shaking.state is State.ASKED_ALIVE:
            shaking.answer_alive(True)
        self._collect()

    def _collect(self) -> None:
        self._says.extend(frame(payload) for payload in self.shaking.data_to_send())


class RecordingNode(Node):
    """A node that remembers its links, and how often each came and went."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.links: list[NodeLink] = []
        self.counted: Counter[tuple[str, int]] = Counter()
        self.events: list[NodeEvent] = []
        self.watch(self.events.append)

    def link_made(self, link: NodeLink) -> None:
        self.links.append(link)
        super().link_made(link)

    def link_up(self, link: NodeLink) -> None:
        self.counted["up", id(link)] += 1
        super().link_up(link)

    def link_down(self, link: NodeLink) -> None:
        self.counted["down", id(link)] += 1
        super().link_down(link)

    def link_gone(self, link: NodeLink) -> None:
        self.counted["gone", id(link)] += 1
        super().link_gone(link)


class Asked:
    """A question that somebody was asked and has not answered at once.

    Attributes:
        connection: What it is about.
        answer: Where the answer goes.
        cancelled: Whether the one who was asked has been told that it is too late.
    """

    def __init__(self, connection: Any, *, cancellable: bool) -> None:
        self.connection = connection
        self.cancellable = cancellable
        self.cancelled = False
        self.answer: Deferred[Any] = Deferred(self._cancel) if cancellable else Deferred()

    def _cancel(self, _answer: Deferred[Any]) -> None:
        self.cancelled = True


class SlowController(NodeController):
    """A node's controller that may take its time.

    Attributes:
        how: ``"now"``, ``"later"``, or ``"deaf"``: later, and not to be cancelled.
        asked: Claims that were not answered at once.
        late: Connections whose answer came too late, as we were told.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.how = "now"
        self.asked: list[Asked] = []
        self.late: list[Any] = []

    def claim(self, connection: Any) -> Any:
        if self.how == "now":
            return super().claim(connection)
        self.asked.append(Asked(connection, cancellable=self.how == "later"))
        return self.asked[-1].answer

    def answer(self, asked: Asked) -> NodeLink:
        """Answer a claim, late perhaps."""
        link = super().claim(asked.connection)
        asked.answer.callback(link)
        return link

    def too_late(self, connection: Any) -> None:
        self.late.append(connection)


@implementer(IStreamClientEndpoint)
class Dialled:
    """Connects to one peer when the test says so, with the credentials of the attempt."""

    def __init__(self, clock: Clock, world: Any, identity: NodeIdentity) -> None:
        self._clock = clock
        self._world = world
        self._identity = identity
        self.waiting: list[tuple[Any, Deferred[Any], int]] = []

    def __call__(self, *_where: Any) -> Dialled:
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = Deferred(self._cancel)
        self.waiting.append((factory, connecting, self._world.generation))
        return connecting

    def _cancel(self, connecting: Deferred[Any]) -> None:
        self.waiting = [one for one in self.waiting if one[1] is not connecting]

    def accept(self, *, polite: bool, answer: Status) -> PeerWire:
        """Make the oldest connect succeed."""
        factory, connecting, generation = self.waiting.pop(0)
        wire = PeerWire(
            self._clock, self._world, self._identity, None, polite=polite, answer=answer
        )
        wire.generation = generation
        protocol = factory.buildProtocol(None)
        wire.connect(protocol)
        connecting.callback(protocol)
        return wire

    def refuse(self) -> None:
        """Make the oldest connect fail."""
        self.waiting.pop(0)[1].errback(ConnectionRefusedError())


class RecordingRotation(LinkRotation):
    """A rotation that remembers when each restart began and ended.

    Attributes:
        under_way: Beginnings of those that run now, in seconds of the clock.
        took: Seconds that each took.
        most: The most that ever ran at once.
    """

    def __init__(self, *args: Any, clock: Clock) -> None:
        super().__init__(*args)
        self._recorded_on = clock
        self.under_way: list[float] = []
        self.took: list[float] = []
        self.most = 0

    async def _relink(self) -> tuple[str, ...]:
        began = self._recorded_on.seconds()
        self.under_way.append(began)
        self.most = max(self.most, len(self.under_way))
        try:
            return await super()._relink()
        finally:
            self.under_way.remove(began)
            self.took.append(self._recorded_on.seconds() - began)
