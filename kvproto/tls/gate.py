"""Where back-pressure of the transport and of the application's producer meet."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["ProducerGate"]


class GateOwner(Protocol):
    """The TLS protocol, for its gate."""

    def transport_full(self) -> None:
        """Stop writing: the transport has enough."""

    def transport_ready(self) -> None:
        """Go on writing: the transport has room."""


@implementer(IPushProducer)
class ProducerGate:
    """What a transport knows as its producer: the TLS layer itself.

    The application's producer, when there is one, is paused while the transport is
    full, *or* OpenSSL cannot take plaintext, *or* it is others' turn to send, and resumed when none
    of these holds.

    Args:
        owner: The TLS protocol whose output it guards.
    """

    def __init__(self, owner: GateOwner) -> None:
        self._owner: GateOwner | None = owner
        # These two names are those of Twisted's own membrane, which its tests read.
        self._producer: Any = None
        self._producerPaused = False
        self._for_others = False  # paused by its own method for that

    @property
    def producer(self) -> Any:
        """The application's push producer, None when it has none."""
        return self._producer

    def attach(self, producer: Any) -> None:
        """Take the application's push producer into care."""
        self._producer = producer
        self._producerPaused = self._for_others = False

    def detach(self) -> None:
        """Forget the application's producer."""
        self._producer = None
        self._producerPaused = self._for_others = False

    def close(self) -> None:
        """Let go of everything: the connection has ended."""
        self._owner = None
        self.detach()

    def hold(self) -> None:
        """Pause the application's producer, once."""
        if self._producer is not None and (self._for_others or not self._producerPaused):
            self._producerPaused, self._for_others = True, False
            self._producer.pauseProducing()

    def hold_for_others(self) -> None:
        """Pause the application's producer because it is others' turn, not for its peer's fault."""
        pause = getattr(self._producer, "wait_for_others", None)
        if pause is None:
            self.hold()
        elif not self._producerPaused:
            self._producerPaused = self._for_others = True
            pause()

    def release(self) -> None:
        """Resume the application's producer if it was paused."""
        if self._producerPaused:
            self._producerPaused = self._for_others = False
            self._producer.resumeProducing()

    def pauseProducing(self) -> None:
        """The transport is full."""
        if self._owner is not None:
            self._owner.transport_full()
        self.hold()

    def resumeProducing(self) -> None:
        """The transport has room again."""
        if self._owner is not None:
            self._owner.transport_ready()

    def stopProducing(self) -> None:
        """The transport will take nothing more, ever."""
        producer = self._producer
        self.detach()
        if producer is not None:
            producer.stopProducing()
