"""Connections that are idle, or old, end: ``--idle-timeout`` and ``--max-lifetime``.

Looked at now and then in one pass, so that no request starts a timer.  What "idle" means is the
handoff's to note (`Handoff.watch_idle`): a read after which nothing is left unfinished counts, half
a request does not.  An old connection is drained, and which moment of the last tenth of its life is
its end is left to chance, so that those who came together do not leave together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from kvproto.base.log import make_logger
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.states import Event, State

__all__ = ["AgeLimits"]

log = make_logger()

LONGEST_PAUSE = 5.0
"""Seconds between looks at most."""

SPREAD = 0.1
"""Part of a life in which its end may fall."""


class AgeLimits(Service):
    """Ends connections of some listeners for their age.

    Args:
        ledger: All connections.
        listeners: Names of those whose connections are meant.
        idle: Seconds without a request after which one ends, 0 for never.
        lifetime: Seconds after accept() after which one is drained, 0 for never.
        clock: For the looks.
        jitter: Returns numbers from 0 to 1.
    """

    name = "ages"

    def __init__(
        self,
        ledger: Ledger,
        listeners: Collection[str],
        idle: float,
        lifetime: float,
        clock: IReactorTime,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._listeners = frozenset(listeners)
        self._idle = idle
        self._lifetime = lifetime
        self._clock = clock
        self._jitter = jitter
        self._ends: dict[int, float] = {}
        self._looks: LoopingCall = LoopingCall(self._look)
        self._looks.clock = clock

    def change(self, idle: float, lifetime: float) -> None:
        """Have other limits from now on; the arguments are those of the class.

        Connections that were accepted while there was no limit for idle ones have none: nobody
        has watched them.
        """
        if lifetime != self._lifetime:
            self._ends = {}
        self._idle, self._lifetime = idle, lifetime
        if self.running:
            self._stop_looking()
            self._look_again_and_again()

    def startService(self) -> None:
        """Begin to look, if there is anything to look for."""
        super().startService()
        self._look_again_and_again()

    def _look_again_and_again(self) -> None:
        shortest = min((limit for limit in (self._idle, self._lifetime) if limit), default=0.0)
        if shortest:
            pause = min(LONGEST_PAUSE, shortest / 10)
            self._looks.start(pause, now=False).addErrback(
                lambda failure: log.failure("connections grow old unseen", failure=failure)
            )

    def stopService(self) -> Deferred[None] | None:
        """Stop looking."""
        super().stopService()
        self._stop_looking()
        return None

    def _stop_looking(self) -> None:
        if self._looks.running:
            self._looks.stop()

    def _look(self) -> None:
        now = self._clock.seconds()
        ends: dict[int, float] = {}
        for entry in self._ledger.entries():
            if entry.listener not in self._listeners or entry.state is not State.OWNED:
                continue
            if self._idle and now - max(entry.active, entry.since) >= self._idle:
                entry.accepted.fire(Event.IDLE, f"idle for {self._idle:g} s")
                continue
            if self._lifetime:
                end = self._ends.get(entry.id)
                if end is None:
                    end = entry.born + self._lifetime * (1 - SPREAD * self._jitter())
                ends[entry.id] = end
                if now >= end:
                    entry.accepted.fire(Event.TOO_OLD, f"older than {self._lifetime:g} s")
        self._ends = ends
