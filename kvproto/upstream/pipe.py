"""The short way through a fleet: plain binary requests and replies, passed on as frames.

A client's read usually holds whole, ordinary requests.  Nobody needs to know what they mean but
the server that has the key, so they are not decoded: `Pipe.forward` finds where each frame ends and
which server it is for, writes our opaque over the client's, and sends what goes to one connection
as one `Run`.  When the replies are there, `take_replies` writes the client's opaques back, and the
pipe hands them on in the order of the requests.

Order.  A slot is kept for each request, in order; a reply goes into its slot, and slots leave from
the front.  All of a client's requests to one server use one connection, so requests for one key
are performed in their order without waiting for each other.  Whatever is out of the ordinary is
left to the session, which must not begin before the pipe is empty.

What is ordinary is decided so narrowly that a server always answers it, exactly once: one that does
not like a frame may end a connection that others share.  Quiet requests are sent as loud ones and
their silence is made here; a NOOP is answered here when its turn has come.

What each request needs has a compiled twin in `kvproto.upstream._pipe`: `Run` and `Pipe` are
that one where it was built, and `PythonRun` and `PythonPipe` where it was not.

Source: memcached ``doc/protocol-binary.xml``, ``proto_bin.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IDelayedCall

from kvproto.base.compiled import compiled
from kvproto.base.log import make_logger
from kvproto.upstream.connection import Call
from kvproto.upstream.link import Link
from kvproto.upstream.memcached import FrameCall
from kvproto.upstream.resp import EngineFailure, Fate
from kvproto.wire.constants import HEADER_SIZE, MAX_KEY, Opcode, Status
from kvproto.wire.encoding import HEADER, error_reply, simple_reply

if TYPE_CHECKING:
    from kvproto.upstream.fleet import Fleet

__all__ = [
    "MOST_SLOTS",
    "Outlet",
    "Pipe",
    "PythonPipe",
    "PythonRun",
    "Run",
]

log = make_logger()

MOST_SLOTS = 1024
"""Requests of one client that may be under way."""

LARGE_FRAME = 64 * 1024
"""Bytes of a body from which a request is left to the session, and a key counts as large."""

_LOUD, _MISS_IS_SILENT, _SUCCESS_IS_SILENT = 0, 1, 2

_GET = (Opcode.GET, 0, False, False)
_GETK = (Opcode.GETK, 0, False, False)
_SHAPES: dict[int, tuple[int, int, bool, bool]] = {
    Opcode.GET: _GET,
    Opcode.GETK: _GETK,
    Opcode.SET: (Opcode.SET, 8, True, True),
    Opcode.ADD: (Opcode.ADD, 8, True, True),
    Opcode.REPLACE: (Opcode.REPLACE, 8, True, True),
    Opcode.APPEND: (Opcode.APPEND, 0, True, True),
    Opcode.PREPEND: (Opcode.PREPEND, 0, True, True),
    Opcode.DELETE: (Opcode.DELETE, 0, False, True),
    Opcode.INCREMENT: (Opcode.INCREMENT, 20, False, True),
    Opcode.DECREMENT: (Opcode.DECREMENT, 20, False, True),
    Opcode.TOUCH: (Opcode.TOUCH, 4, False, True),
    Opcode.GAT: (Opcode.GAT, 4, False, True),
}
_QUIET: dict[int, int] = {
    Opcode.GETQ: Opcode.GET,
    Opcode.GETKQ: Opcode.GETK,
    Opcode.SETQ: Opcode.SET,
    Opcode.ADDQ: Opcode.ADD,
    Opcode.REPLACEQ: Opcode.REPLACE,
    Opcode.APPENDQ: Opcode.APPEND,
    Opcode.PREPENDQ: Opcode.PREPEND,
    Opcode.DELETEQ: Opcode.DELETE,
}


def _plans() -> list[tuple[int, int, bool, bool, int] | None]:
    plans: list[tuple[int, int, bool, bool, int] | None] = [None] * 256
    for opcode, (loud, extras, value, write) in _SHAPES.items():
        plans[opcode] = (int(loud), extras, value, write, _LOUD)
    for opcode, loud in _QUIET.items():
        _, extras, value, write = _SHAPES[loud]
        silent = _SUCCESS_IS_SILENT if write else _MISS_IS_SILENT
        plans[opcode] = (int(loud), extras, value, write, silent)
    return plans


PLANS = _plans()
"""For each opcode: the loud opcode, the size of its extras, whether it may have a value, whether it
may change something, and which answer is silent.  None: not ordinary."""

_NOOP = int(Opcode.NOOP)
_unpack = HEADER.unpack_from
_LAST = 0xFFFF_FFFF


class Outlet(Protocol):
    """The client's connection."""

    def forwarded(self, replies: list[bytes], last: bool) -> None:
        """Write replies.

        Args:
            replies: In order; none where everything that was to be said is silence.
            last: Whether nothing is under way any more, so that what has waited for that goes on.
        """

    def forwarding_failed(self, reason: str) -> None:
        """Close: a request of unknown fate must not be answered."""


class _Unknown:
    """Stands in a slot for the answer to a write of which nothing is known."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class PythonRun(FrameCall):
    """Requests of one client that go over one connection, in one piece.

    Attributes:
        pipe: Whose they are.
        link: Where they are sent.
        entries: For each its slot, counted from the pipe's first one ever, and the client's opaque
            and opcode.
        got: How many have been answered.
        complete: Whether all have.
        parts: Frames that are not joined yet.
        tries: How often it has been sent.
    """

    several = True

    __slots__ = ("complete", "entries", "got", "link", "parts", "pipe", "tries")

    def __init__(self, pipe: Any, link: Link, opaque: int) -> None:
        # Not what a single request has besides: there are as many runs as reads.
        self.pipe = pipe
        self.link = link
        self.opaque = opaque
        self.data = b""
        self.write = False
        self.entries: list[tuple[int, int, int]] = []
        self.parts: list[bytes] = []
        self.got = 0
        self.complete = False
        self.tries = 0

    def send(self) -> None:
        """Send it, or send it again."""
        self.tries += 1
        link = self.link
        (link.ready or link).send(self)

    def answered(self, reply: Any, call: Call) -> None:
        """Take the end of the connection; complete replies never come here."""
        self.pipe.run_failed(self, reply)

    def take(self, touched: dict[Any, None], data: bytes, at: int, end: int) -> int:
        """Take replies; see `FrameCall.take`."""
        pipe = self.pipe
        touched[pipe] = None
        entries = self.entries
        count = len(entries)
        while end - at >= HEADER_SIZE and self.got < count:
            magic, _, _, _, _, status, body_size, opaque, _ = _unpack(data, at)
            got = self.got
            if magic != 0x81 or opaque != self.opaque + got & _LAST:
                return -1
            stop = at + HEADER_SIZE + body_size
            if stop > end:
                break
            place, client_opaque, opcode = entries[got]
            plan = PLANS[opcode]
            assert plan is not None
            silent = plan[4]
            missed, done = status == Status.NOT_FOUND, not status
            if (silent == _MISS_IS_SILENT and missed) or (silent == _SUCCESS_IS_SILENT and done):
                answer = b""
            else:
                answer = b"".join(
                    (
                        b"\x81",
                        opcode.to_bytes(),
                        data[at + 2 : at + 12],
                        client_opaque.to_bytes(4),
                        data[at + 16 : stop],
                    )
                )
                if len(answer) > LARGE_FRAME:
                    pipe.fleet.note_large(pipe.key_of(self, got))
            self.got = got + 1
            pipe.put(place, answer)
            at = stop
        self.complete = self.got == count
        return at


class _RarelyNeeded:
    """What few requests need of a pipe; the rest is `PythonPipe`'s, or its compiled twin's."""

    fleet: Fleet
    outlet: Outlet
    waiting: dict[Any, IDelayedCall]
    slots: list[Any]
    base: int
    tail: bytes
    closed: bool

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self.slots)

    def continues(self, data: bytes, at: int) -> bool:
        """Return whether what is left is the beginning of an ordinary request."""
        left = len(data) - at
        if len(self.slots) >= MOST_SLOTS or data[at] != 0x80:
            return False
        if left < HEADER_SIZE:
            return left < 2 or PLANS[data[at + 1]] is not None
        _, opcode, _, _, _, _, body_size, _, _ = _unpack(data, at)
        return PLANS[opcode] is not None and left < HEADER_SIZE + body_size <= LARGE_FRAME

    def put(self, place: int, answer: Any) -> None:
        """Put an answer into its slot."""
        if not self.closed:
            self.slots[place - self.base] = answer

    def stop_at_unknown(self) -> None:
        """Close if the next answer is that nothing is known of a write."""
        if self.slots and isinstance(self.slots[0], _Unknown):
            reason = self.slots[0].reason
            self.close()
            self.outlet.forwarding_failed(reason)

    def run_failed(self, run: Any, failure: EngineFailure) -> None:
        """Answer the requests of a run whose connection was lost, or send it again."""
        run.link.server.count(failure)
        if self.closed:
            return
        wait = None if run.got else self.fleet.again_after(run.tries, failure)
        if wait is not None:
            self.waiting[run] = self.fleet.call_later(wait, self._send_again, run)
            return
        self._answer_failed(run, failure)
        self.flush()

    def _answer_failed(self, run: Any, failure: EngineFailure) -> None:
        """Answer what has not been answered of a run."""
        unknown = failure.fate is Fate.UNKNOWN or failure.fate is Fate.UNANSWERED
        text = f"{run.link.server.name}: {failure.text}"
        for place, opaque, opcode in run.entries[run.got :]:
            plan = PLANS[opcode]
            answer: Any
            if unknown and plan is not None and plan[3]:
                answer = _Unknown(text)
            else:
                answer = error_reply(opcode, Status.TEMPORARY_FAILURE, opaque)
            self.put(place, answer)

    def _send_again(self, run: Any) -> None:
        del self.waiting[run]
        run.send()

    def key_of(self, run: Any, index: int) -> bytes:
        """Return the key of one request of a run; its frames are looked through for it."""
        data, at = run.data, 0
        for _ in range(index):
            at += HEADER_SIZE + _unpack(data, at)[6]
        _, _, key_size, extras_size = _unpack(data, at)[:4]
        begin: int = at + HEADER_SIZE + extras_size
        key: bytes = data[begin : begin + key_size]
        return key

    def close(self) -> None:
        """Forget everything: the client is gone; its replies will be thrown away."""
        self.closed = True
        self.slots = []
        self.tail = b""
        waiting, self.waiting = self.waiting, {}
        for again in waiting.values():
            again.cancel()

    def flush(self) -> None:
        """Hand on what may leave."""
        raise NotImplementedError


class PythonPipe(_RarelyNeeded):
    """One client's short way.

    Args:
        fleet: The servers.
        lane: Which connection to each of them.
        outlet: The client's connection.

    Attributes:
        slots: Answers to requests under way, in order; None where there is none yet.
        base: The number of the first slot, counted from the first one ever.
        tail: The beginning of an ordinary request that is not all there.
        waiting: Runs that will be sent again.
    """

    def __init__(self, fleet: Fleet, lane: int, outlet: Outlet) -> None:
        self.fleet = fleet
        self.lane = lane
        self.outlet = outlet
        self.waiting = {}
        self.slots = []
        self.base = 0
        self.tail = b""
        self.closed = False

    def forward(self, data: bytes, out: list[bytes], max_body: int) -> int:
        """Send the ordinary requests that a read begins with.

        Args:
            data: The read.
            out: Takes replies that are there already.
            max_body: Bytes; a longer body is not ordinary.

        Returns:
            How many bytes have been dealt with; -1 when what had been kept of the read before has
            turned out not to be ordinary (`tail` is that still).
        """
        kept = len(self.tail)
        if kept:
            data = self.tail + data
        runs: list[PythonRun] = []
        at = self.scan(data, runs, LARGE_FRAME if max_body > LARGE_FRAME else max_body)
        for run in runs:
            run.send()
        if at < len(data) and self.continues(data, at):
            self.tail = data[at:]
            at = len(data)
        elif at < kept:
            return -1
        else:
            self.tail = b""
        if self.slots and self.slots[0] is not None:
            out += self.take_out()
        return at - kept

    def scan(self, data: bytes, runs: list[PythonRun], max_body: int) -> int:
        """Put the ordinary requests at the beginning of a read into runs.

        Args:
            data: The read.
            runs: Gets the runs, one for each server.
            max_body: Bytes of the longest ordinary body.

        Returns:
            Where the first request begins that is not ordinary, or not all there.
        """
        fleet, slots = self.fleet, self.slots
        base = self.base
        at, end = 0, len(data)
        index_of = fleet.index_of
        found: dict[int, PythonRun] = {}
        while end - at >= HEADER_SIZE and len(slots) < MOST_SLOTS:
            magic, opcode, key_size, extras_size, datatype, vbucket, body_size, opaque, _ = _unpack(
                data, at
            )
            key_at = at + HEADER_SIZE + extras_size
            value_at = key_at + key_size
            stop = at + HEADER_SIZE + body_size
            if magic != 0x80 or datatype or vbucket or stop > end:
                break
            plan = PLANS[opcode]
            if plan is None:
                if opcode != _NOOP or body_size or key_size or extras_size:
                    break
                slots.append(simple_reply(_NOOP, 0, opaque))
                at = stop
                continue
            loud, extras, value, write, _ = plan
            if (
                extras_size != extras
                or not 0 < key_size <= MAX_KEY
                or body_size > max_body
                or (value_at > stop if value else value_at != stop)
            ):
                break
            index = index_of(data[key_at:value_at])
            run = found.get(index)
            if run is None:
                link = fleet.plain_link(index, self.lane)
                if link is None:
                    break
                run = found[index] = PythonRun(self, link, fleet.next_opaque)
                runs.append(run)
                fleet.next_opaque = (fleet.next_opaque + MOST_SLOTS) & _LAST
            entries = run.entries
            run.parts.append(
                b"".join(
                    (
                        b"\x80",
                        loud.to_bytes(),
                        data[at + 2 : at + 12],
                        (run.opaque + len(entries) & _LAST).to_bytes(4),
                        data[at + 16 : stop],
                    )
                )
            )
            if write:
                run.write = True
            entries.append((base + len(slots), opaque, opcode))
            slots.append(None)
            at = stop
        for run in runs:
            run.data = b"".join(run.parts)
            run.parts = []
        return at

    def flush(self) -> None:
        """Hand on what may leave."""
        if self.closed or not self.slots or self.slots[0] is None:
            return
        out = self.take_out()
        if out or not self.slots:
            self.outlet.forwarded(out, not self.slots)
        self.stop_at_unknown()

    def take_out(self) -> list[bytes]:
        """Take out the answers before which everything has been answered."""
        slots = self.slots
        count = 0
        for answer in slots:
            if answer.__class__ is not bytes:
                break
            count += 1
        out = [answer for answer in slots[:count] if answer]
        del slots[:count]
        self.base += count
        return out


def compiled_pipe(module: Any) -> Any:
    """Return the pipe whose hot half is compiled."""
    module.use_plans(PLANS)

    class CompiledPipe(module.Pipe, _RarelyNeeded):
        """See `PythonPipe`."""

    return CompiledPipe


_compiled = compiled("kvproto.upstream._pipe")

if TYPE_CHECKING or _compiled is None:
    Pipe = PythonPipe
    Run = PythonRun
else:
    Pipe = compiled_pipe(_compiled)
    Run = _compiled.Run
