"""The code that every read and every forwarded reply runs, compiled where there is a C compiler.

`Answering` is the part of a client's connection (`kvproto.server.protocol.KVServerProtocol`) that
takes them, and `forward` hands a session's requests on to other servers.  The Python code here and
the compiled code in ``_answering.pyx`` do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from kvproto.base.compiled import compiled
from kvproto.server.counters import MEASURED_READS, Counters
from kvproto.server.replies import JOIN_LIMIT

if TYPE_CHECKING:
    from kvproto.server.session import Session

__all__ = ["Answering", "PythonAnswering", "forward", "python_forward"]


class PythonAnswering:
    """A part of a connection; its owner sets the attributes."""

    session: Session | None
    last_read: float
    _answered: bool
    _closed: bool
    _counters: Counters
    _held: int
    _paused: bool
    _server: Any
    _unread_replies: int
    _write_alone: Callable[[bytes], object]
    _written: int

    if TYPE_CHECKING:

        def proceed(self) -> None:
            """Its owner's."""

        def _not_served(self, session: Session) -> None: ...
        def _unread(self) -> None: ...
        def _write(self, out: list[bytes]) -> None: ...

    def answer(self, data: bytes, replies: list[bytes]) -> int:
        """Take a read, and give the replies back; see `kvproto.interfaces.IAnswers`.

        Whatever is left to do to the transport is done when the read comes to `dataReceived`.
        """
        session = self.session
        if session is None:
            return 0
        counters, size = self._counters, len(data)
        counters.unmeasured = unmeasured = counters.unmeasured - 1
        started = 0.0 if unmeasured else perf_counter()
        try:
            settled = session.receive(data, replies)
        except Exception:
            self._not_served(session)
            settled = False
        if started:
            counters.unmeasured = MEASURED_READS
            self._server.requests.took_read(data, perf_counter() - started)
        # Forwarded requests have no replies yet.
        written = (
            0 if not replies else len(replies[0]) if len(replies) == 1 else sum(map(len, replies))
        )
        if written > JOIN_LIMIT:  # less is not worth the time of those who send little
            self._written = written
        counters.bytes_read += size
        counters.bytes_written += written
        self.last_read = counters.recently
        if settled and not self._held:
            return size
        self._answered = True
        return 0

    def forwarded(self, replies: list[bytes], last: bool) -> None:
        """Write replies to forwarded requests, or those of a group.

        Args:
            replies: Perhaps none.
            last: Whether no request is under way any more: then what has waited is served.
        """
        if self._closed:
            return
        if replies:
            size = len(replies[0]) if len(replies) == 1 else sum(map(len, replies))
            if last and size <= JOIN_LIMIT:
                self._written = size
                self._counters.bytes_written += size
                self._write_alone(replies[0] if len(replies) == 1 else b"".join(replies))
            else:
                self._write(replies)
            if self._paused:
                self._unread()
        session = self.session
        if last and session is not None and not session.plain and session.waits:
            self.proceed()


def python_forward(
    session: Session, dialect: Any, data: bytes, out: list[bytes], limit: int
) -> int:
    """Forward requests where others would be scanned; see `kvproto.server.session.Scan`."""
    if dialect._unobserved and not dialect.forwarding:
        dialect.observe()
    pipe = dialect._pipe
    if pipe is None:
        return len(data)
    at: int = pipe.forward(data, out, dialect.max_body)
    if at >= 0:
        return len(data) - at
    dialect.give_back()  # not ordinary after all
    return len(data)


_compiled = compiled("kvproto.server._answering")

if TYPE_CHECKING or _compiled is None:
    Answering = PythonAnswering
    forward = python_forward
else:
    Answering = _compiled.Answering
    forward = _compiled.forward
