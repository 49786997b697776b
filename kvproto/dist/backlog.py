"""A bound on the unsent bytes of a peer that reads too slowly.

Twisted's transports keep whatever is written.  A distribution link cannot drop
messages either, so there is one honest answer to a peer that does not read: end
the link.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

__all__ = ["Backlog"]

WATCH_FROM: Final = 256 * 1024
"""Bytes written without a look at the transport; four of its default buffers."""


@implementer(IPushProducer)
class Backlog:
    """Watches one transport's buffer.

    A producer that stays registered would keep a TLS transport from closing
    when its listener says so.  Therefore this one is registered only for a
    moment, after each `WATCH_FROM` bytes, and longer only while the transport
    is really full.

    Args:
        transport: What is written to.
        clock: For that moment.
        limit: Bytes that may wait.
        overflow: Called when more wait.
    """

    def __init__(
        self, transport: Any, clock: IReactorTime, limit: int, overflow: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._limit = limit
        self._overflow = overflow
        self._look: IDelayedCall | None = None
        self._stopped = False
        self.waiting = 0
        self.full_since: float | None = None

    def about_to_write(self, size: int) -> None:
        """Count bytes before they are written."""
        self.waiting += size
        if self._stopped or self.waiting <= WATCH_FROM:
            return
        if self.full_since is not None:
            if self.waiting > self._limit:
                self._overflow()
        elif self._look is None:
            self._transport.registerProducer(self, True)
            self._look = self._clock.callLater(0, self._done_looking)

    def _done_looking(self) -> None:
        self._look = None
        if self.full_since is None:
            self._release()

    def _release(self) -> None:
        self.waiting = 0
        self.full_since = None
        self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        """Note that the transport is full."""
        if self.full_since is None:
            self.full_since = self._clock.seconds()

    def resumeProducing(self) -> None:
        """Note that the transport has room again."""
        if self._look is None and not self._stopped:
            self._release()
        else:
            self.full_since = None

    def stopProducing(self) -> None:
        """Stop: the transport is closed."""
        self.stop()

    def stop(self) -> None:
        """Watch no longer; a close need not wait for us."""
        if self._stopped:
            return
        self._stopped = True
        registered = self._look is not None or self.full_since is not None
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if registered:
            self._transport.unregisterProducer()
