"""Faults on demand, for tests of how a program handles them (``--faults``).

A `FaultPlan` is what shall go wrong next.  Dialects that have one (`faulty`) look at it before they
serve a request; they have no scan, so that every request passes them.  A service without
``--faults`` has none of this on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.components import proxyForInterface

from kvproto.errors import RemoteProtocolError
from kvproto.server.binary import BinarySession
from kvproto.server.replies import Hangup, Reply, then
from kvproto.server.requests import OPERATIONS, binary_operation, text_operation
from kvproto.server.text import TextSession
from kvproto.wire.collections import split_key
from kvproto.wire.encoding import error_reply
from kvproto.wire.frames import Request
from kvproto.wire.text import server_error

__all__ = ["Fault", "FaultKind", "FaultPlan", "faulty"]

MOST_FAULTS = 1000
"""Faults that may wait; a test that needs more has forgotten to clear them."""


class FaultKind(Enum):
    """What can go wrong."""

    STATUS = "status"
    """The request is not carried out, and answered with a status."""
    DELAY = "delay"
    """It is carried out late."""
    DISCONNECT = "disconnect"
    """It is not carried out; the connection is closed without an answer."""
    TRUNCATE = "truncate"
    """It is carried out; the connection is closed in the middle of its answer."""
    SILENCE = "silence"
    """It is not carried out, and never answered; what follows it on its connection waits."""


@dataclass(slots=True)
class Fault:
    """Something that goes wrong, so many times.

    Attributes:
        kind: What.
        operation: Which requests, by the names of the metrics (``get``, ``mutate_in``); ``""``:
            those that have a key.
        key: Only those for this key, without its collection; None: any.
        status: For `FaultKind.STATUS`.
        seconds: For `FaultKind.DELAY`.
        times: How often it still happens.
    """

    kind: FaultKind
    operation: str = ""
    key: bytes | None = None
    status: int = 0
    seconds: float = 0.0
    times: int = 1

    def concerns(self, operation: str, key: bytes) -> bool:
        """Whether it is about a request; ``key`` is empty for one without."""
        if self.operation:
            return operation == self.operation and self.key in {None, key}
        return bool(key) and self.key in {None, key}


class MovedClock(proxyForInterface(IReactorTime)):  # type: ignore[misc]
    """A reactor's time, whose seconds are somebody else's.

    Args:
        clock: Has the timers.
        now: Returns Unix time in seconds.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        super().__init__(clock)
        self._now = now

    def seconds(self) -> float:
        """Return the moved time."""
        return self._now()


class FaultPlan:
    """What shall go wrong, and when it is.

    Args:
        clock: For delays.
        now: Unix time in seconds, as nobody has moved it.

    Attributes:
        moved: Called after the time has been moved, for those who wait for a time of day.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        self.clock = clock
        self._now = now
        self._ahead = 0.0
        self._faults: list[Fault] = []
        self.moved: Callable[[], None] = lambda: None

    def now(self) -> float:
        """Return Unix time in seconds, as far as it was moved."""
        return self._now() + self._ahead

    def moved_clock(self) -> MovedClock:
        """Return a clock for stores, whose seconds go as far as `advance` says."""
        return MovedClock(self.clock, self.now)

    def advance(self, seconds: float) -> None:
        """Let so much time have passed for whatever ends at a time of day; there is no way back."""
        self._ahead += seconds
        self.moved()

    def wall(self) -> float:
        """Return what the clock on the wall shows, as far as it was moved, in Unix seconds."""
        return time.time() + self._ahead

    def add(self, fault: Fault) -> None:
        """Let something go wrong; of several faults that concern a request the first one does.

        Raises:
            ValueError: There is no such operation, or too many faults wait; the text says which.
        """
        if fault.operation and fault.operation not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise ValueError(f"no operation {fault.operation!r}: there is {known}")
        if len(self._faults) >= MOST_FAULTS:
            raise ValueError(f"{MOST_FAULTS} faults wait already: clear them first")
        self._faults.append(fault)

    def clear(self) -> None:
        """Let nothing go wrong any more; the time stays where it is."""
        self._faults.clear()

    def take(self, operation: str, key: bytes) -> Fault | None:
        """Return what goes wrong with a request, None when nothing does."""
        for at, fault in enumerate(self._faults):
            if fault.concerns(operation, key):
                fault.times -= 1
                if fault.times <= 0:
                    del self._faults[at]
                return fault
        return None

    def befall(
        self, fault: Fault, serve: Callable[[], Reply], refuse: Callable[[int], Reply]
    ) -> Reply:
        """Let a fault happen to a request.

        Args:
            fault: What.
            serve: Carries the request out.
            refuse: Encodes a status as its answer.
        """
        if fault.kind is FaultKind.STATUS:
            return refuse(fault.status)
        if fault.kind is FaultKind.DISCONNECT:
            return Hangup(reason="a fault that was asked for: disconnect")
        if fault.kind is FaultKind.TRUNCATE:
            return then(serve(), _truncated)
        later: Deferred[Any] = Deferred(_cancelled)
        if fault.kind is FaultKind.DELAY:
            call = self.clock.callLater(fault.seconds, later.callback, None)
            later.addBoth(_stop_waiting, call)
            later.addCallback(lambda _: serve())
        return later


def _cancelled(waiting: Deferred[Any]) -> None:
    waiting.errback(CancelledError())


def _stop_waiting(outcome: Any, call: Any) -> Any:
    if call.active():
        call.cancel()
    return outcome


def _truncated(reply: Any) -> Hangup:
    """Return the first half of a reply, and the end of the connection."""
    if isinstance(reply, Hangup):
        return reply
    whole = reply if isinstance(reply, bytes) else b"".join(reply)
    return Hangup(whole[: len(whole) // 2], "a fault that was asked for: truncate")


def faulty(plan: FaultPlan) -> tuple[type[BinarySession], type[TextSession]]:
    """Return the dialects of a service whose requests may meet faults, binary and text."""

    class FaultyBinary(BinarySession):
        """Looks at the plan first."""

        __slots__ = ()
        usual_scan = None

        def execute(self, request: Any) -> Reply:
            fault = plan.take(binary_operation(request.opcode), self._bare_key(request))
            if fault is None:
                return super().execute(request)
            return plan.befall(
                fault,
                lambda: BinarySession.execute(self, request),
                lambda status: error_reply(request.opcode, status, request.opaque),
            )

        begin = execute

        def _bare_key(self, request: Any) -> bytes:
            key: bytes = request.key
            if not key or not self.collections or not isinstance(request, Request):
                return key
            try:
                return split_key(key)[1]
            except RemoteProtocolError:
                return key

    class FaultyText(TextSession):
        """Looks at the plan first."""

        __slots__ = ()
        scan = None

        def begin(self, item: Any) -> Reply:
            fault = plan.take(text_operation(item), getattr(item, "key", b""))
            if fault is None:
                return super().begin(item)
            return plan.befall(
                fault,
                lambda: TextSession.begin(self, item),
                lambda status: server_error(b"fault 0x%02x" % status),
            )

    return FaultyBinary, FaultyText
