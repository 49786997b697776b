"""How much of what a transport was given the peer's side has taken.

The kernel may hold megabytes after a transport has given everything to it.  A close
deadline that does not know this cuts peers that read slowly; so it asks here.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["CLOSE_PROGRESS", "ProgressDeadline", "unsent_bytes"]

CLOSE_PROGRESS: Final = 16 * 1024
"""Bytes that a slow peer must take in each period for its connection to live on.

About 5 KiB/s with the default ``close_timeout``: slower than any link we expect, and a bound on how
long a peer that trickles on purpose can hold a large reply."""


class ProgressDeadline:
    """One period in which a peer has to take something of what it was sent.

    Args:
        clock: For the period.
        period: Seconds.
        transport: The connection's.
        given: Bytes given to the transport so far.
        overdue: Called with the deadline at the end of the period.

    Attributes:
        period: As given.
        drained: Whether the transport became empty in the period; set by who knows.
    """

    __slots__ = ("_call", "_overdue", "_taken", "_transport", "drained", "period")

    def __init__(
        self,
        clock: IReactorTime,
        period: float,
        transport: Any,
        given: int,
        overdue: Callable[[ProgressDeadline], None],
    ) -> None:
        self.period = period
        self.drained = False
        self._transport = transport
        self._taken = given - (unsent_bytes(transport) or 0)
        self._overdue: Callable[[ProgressDeadline], None] | None = overdue
        self._call: IDelayedCall | None = clock.callLater(period, self._end)

    def _end(self) -> None:
        # No circle is left: of this, the delayed call, and whoever is called.
        overdue, self._overdue, self._call = self._overdue, None, None
        if overdue is not None:
            overdue(self)

    def made_progress(self, given: int) -> bool:
        """Return whether the peer has taken enough since the period began.

        Args:
            given: Bytes given to the transport so far.
        """
        unsent = unsent_bytes(self._transport)
        taken = self._taken if unsent is None else given - unsent
        return self.drained or taken - self._taken >= CLOSE_PROGRESS

    def cancel(self) -> None:
        """Forget it."""
        self._overdue = None
        if self._call is not None:
            self._call.cancel()
            self._call = None


def unsent_bytes(transport: Any) -> int | None:
    """Return how many bytes given to a transport have not been taken by the peer's kernel.

    Args:
        transport: A Twisted transport over a socket; anything else is answered by None.

    Returns:
        Bytes in the transport's own buffers and in the kernel's send queue, or None
        where that cannot be known (in-memory transports, TLS in TLS, not Linux).
    """
    try:
        waiting = len(transport.dataBuffer) - transport.offset
        # Private in Twisted, and only sharpens the number: absent counts as nothing.
        waiting += getattr(transport, "_tempDataLen", 0)
        queued = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (AttributeError, TypeError, ValueError, OSError):
        return None
    return int(waiting + struct.unpack("=i", queued)[0])
