"""One connection to a memcached server, in its binary protocol or in meta commands.

`MemcachedConnection` is an `EngineConnection` that reads frames instead of RESP: batches, order,
deadlines and ends are the same, and the theory is there.  memcached answers in order as well, so
the queue decides whose reply it is; besides that each request carries an opaque of ours, and a
reply with another one ends the connection rather than reach somebody else.

Only opcodes that memcached knows may be sent: one that it does not know is answered late or never.

Which protocol it is, the server decides.  A greeting is a NOOP; a server that speaks text alone
sees a line of one byte that it does not know, says ``ERROR``, and is then asked whether it knows
meta commands (``mn``; ``version`` is answered by all, and so ends the question).  If it does,
frames and replies are translated from then on (`kvproto.wire.meta_frames`), and nobody but this
connection needs to know.  Nothing but a greeting may be sent before its answer.

Source: memcached ``doc/protocol-binary.xml``, ``proto_bin.c``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import connectionDone as CONNECTION_DONE
from twisted.python.failure import Failure

from kvproto.base.compiled import compiled
from kvproto.base.log import make_logger
from kvproto.errors import RemoteProtocolError
from kvproto.upstream.connection import Call, EngineConnection
from kvproto.wire.constants import HEADER_SIZE, Magic, Opcode
from kvproto.wire.encoding import HEADER, simple_reply
from kvproto.wire.meta_frames import MAX_VALUE, MetaTranslation

__all__ = ["FrameCall", "MemcachedConnection", "MetaConnection", "greeting"]

log = make_logger()

MAX_BODY = MAX_VALUE
"""Bytes of a reply."""

READ_SIZE = 120 * 1024
"""Most bytes of one read: several large values, few of them cut; still short of what the C library
would ask the kernel for anew each time (128 KiB)."""

_LARGE = 16 * 1024
"""Bytes from which a reply is handed over as a view of what was read, so that its value is copied
once."""

_RESPONSE = int(Magic.RESPONSE)
_STAT = int(Opcode.STAT)
_unpack = HEADER.unpack_from


class FrameCall(Call):
    """A request.

    Args:
        data: Its frame.
        answered: Called once with the reply's frame (``bytes``, or a ``memoryview`` when it is
            long), or with an `EngineFailure`, and this call.
        opaque: In the frame.
        write: Whether it may change something.
        context: Whatever ``answered`` needs to know.

    Attributes:
        items: For STAT: frames of items, which come before the reply.
    """

    __slots__ = ("items", "opaque")

    def __init__(
        self,
        data: bytes,
        answered: Callable[[Any, Call], object],
        opaque: int,
        write: bool = False,
        context: Any = None,
    ) -> None:
        super().__init__(data, answered, write, context)
        self.opaque = opaque
        self.items: list[bytes] | None = None

    several = False
    """Whether it may be more than one request: then `take` takes replies until it is
    ``complete``."""

    complete: bool = True
    """Whether all replies have been taken."""

    def take(self, touched: dict[_Flushed, None], data: bytes, at: int, end: int) -> int:
        """Take replies to several requests out of a read.

        Args:
            touched: Gets what is to be flushed when the read is through.
            data: The read.
            at: Where a reply begins.
            end: Where the read ends.

        Returns:
            Where the first frame begins that was not taken; -1 when a reply is not the one that
            must come.
        """
        raise NotImplementedError


def take_in_python(
    pending: deque[Any],
    unsent: int,
    touched: dict[_Flushed, None],
    data: bytes,
    at: int,
    end: int,
) -> int:
    """Give replies to calls of several requests as long as the queue begins with such calls.

    Args:
        pending: Calls that wait for replies.
        unsent: How many of the last of them have not been sent.
        touched: See `FrameCall.take`.
        data: The read.
        at: Where the first reply begins.
        end: Where the read ends.

    Returns:
        As `FrameCall.take`.
    """
    while len(pending) > unsent and end - at >= HEADER_SIZE and pending[0].several:
        call = pending[0]
        at = call.take(touched, data, at, end)
        if at < 0 or not call.complete:
            break
        pending.popleft()
    return at


_compiled = compiled("kvproto.upstream._pipe")

take_runs: Callable[[deque[Any], int, dict[_Flushed, None], bytes, int, int], int] = (
    take_in_python if _compiled is None else _compiled.take_runs
)


class _Flushed(Protocol):
    """What is flushed once for each read."""

    def flush(self) -> None:
        """Hand on what has come together."""


def greeting() -> list[FrameCall]:
    """Make the request that a connection begins with: a server that is stopped does not answer."""
    data = HEADER.pack(Magic.REQUEST, Opcode.NOOP, 0, 0, 0, 0, 0, 0, 0)
    return [FrameCall(data, _ignore, 0)]


def _shown(line: bytes) -> str:
    """Return the beginning of a line as a log may show it."""
    return repr(line[:40].decode("ascii", "backslashreplace"))


def _ignore(reply: Any, call: Call) -> None:
    """Take the answer to a greeting; a link puts its own function in place of this."""


_ASK_FOR_META = b"\r\nmn\r\nversion\r\n"
"""Ends the line that a text server takes the rest of our greeting for, and asks."""

_LONGEST_ANSWER = 4096
"""Bytes of a text server's answer to a greeting."""


class MemcachedConnection(EngineConnection):
    """A pipelined connection to a memcached server; see `EngineConnection`.

    Attributes:
        text: Whether the server speaks text alone, and is asked in meta commands.
        touched: What is to be flushed when a read is through.
    """

    _held: list[bytes]
    touched: dict[_Flushed, None]
    _translation: MetaTranslation | None = None
    _as_frames: Callable[[bytes], bytes] | None

    def connectionMade(self) -> None:
        """Take the transport."""
        self._held = []
        self.touched = {}
        self._heard = b""
        self._as_frames = self._recognise
        self._held_size = 0
        self._needed = HEADER_SIZE
        super().connectionMade()
        self.transport.bufferSize = READ_SIZE

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Tell every request that it will not be answered."""
        unheard = self._as_frames == self._recognise and not self._heard
        if unheard and reason.check(ConnectionDone):
            self.abort("disconnected", "it closed the connection in place of an answer")
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Give each reply to its request."""
        if not self._open:
            return
        if self._as_frames is not None:
            try:
                data = self._as_frames(data)
            except RemoteProtocolError as error:
                self._end("protocol", error.reason)
                return
            if not data:
                return
        held, at, end = self._held, 0, len(data)
        if held:
            missing = self._needed - self._held_size
            if end < missing:
                held.append(data)
                self._held_size += end
                return
            if self._needed > HEADER_SIZE:
                # What follows the reply that was cut stays where it is.
                at = missing
                whole = b"".join((*held, memoryview(data)[:at]))
                held.clear()
                self._take_replies(whole, 0, len(whole))
            else:
                data = b"".join((*held, data))
                held.clear()
                end = len(data)
        at = self._take_replies(data, at, end)
        touched, self.touched = self.touched, {}
        for one in touched:
            try:
                one.flush()
            except Exception:
                log.failure("replies could not be handed on")
        if self._ended:
            return
        if at < end:
            self._needed = HEADER_SIZE
            if end - at >= HEADER_SIZE:
                self._needed += _unpack(data, at)[6]
            if self._needed > MAX_BODY:
                self._end("protocol", "it does not speak memcached's binary protocol")
                return
            held.append(data[at:])
            self._held_size = end - at
        self._note_answers()
        if self._closing and not self._pending:
            self._end("disconnected", "not needed any more")

    @property
    def text(self) -> bool:
        """Whether the server speaks text alone."""
        return self._translation is not None

    def _transmit(self, data: bytes) -> None:
        translation = self._translation
        self._send_bytes(data if translation is None else translation.requests(data))

    def _recognise(self, data: bytes) -> bytes:
        """Find out which protocol the server speaks; return the reply to our greeting once it is.

        Raises:
            RemoteProtocolError: None that is of use.
        """
        if not self._heard and data[0] == _RESPONSE:
            self._as_frames = None
            return data
        before, self._heard = self._heard, self._heard + data
        first, *lines = self._heard.split(b"\r\n")
        wrong = not self._heard.startswith((b"E", b"C")) or len(self._heard) > _LONGEST_ANSWER
        if wrong or (lines and not first.startswith((b"ERROR", b"CLIENT_ERROR"))):
            raise RemoteProtocolError(f"it does not speak memcached's protocol: {_shown(first)}")
        if lines and b"\r\n" not in before:
            self.transport.write(_ASK_FOR_META)
        if lines[-1:] != [b""] or not (version := lines[-2:-1] or [b""])[0].startswith(b"VERSION "):
            return b""
        if b"MN" not in lines:
            raise RemoteProtocolError(
                "it speaks neither the binary protocol nor meta commands: start it with -B auto, "
                f"or have a newer one than {_shown(version[0])}"
            )
        self._translation = MetaTranslation()
        self._as_frames = self._translation.replies
        self._heard = b""
        return simple_reply(Opcode.NOOP, 0, 0)

    def _take_replies(self, data: bytes, at: int, end: int) -> int:
        """Give replies to requests as long as there are whole ones; return where that ends."""
        pending, out = self._pending, self._out
        while end - at >= HEADER_SIZE and self._open:
            if len(pending) == len(out):
                self._end("protocol", "a reply to no request")
                break
            call: Any = pending[0]
            if call.several:
                at = take_runs(pending, len(out), self.touched, data, at, end)
                if at < 0:
                    self._end("protocol", "a reply to another request")
                elif pending and pending[0] is call:
                    break
                continue
            magic, opcode, key_size, _, _, _, body_size, opaque, _ = _unpack(data, at)
            if magic != _RESPONSE or body_size > MAX_BODY:
                self._end("protocol", "it does not speak memcached's binary protocol")
                break
            if call.opaque != opaque:
                self._end("protocol", "a reply to another request")
                break
            stop = at + HEADER_SIZE + body_size
            if stop > end:
                break
            frame: Any = data[at:stop] if stop - at < _LARGE else memoryview(data)[at:stop]
            at = stop
            if opcode == _STAT and key_size and call.items is not None:
                call.items.append(bytes(frame))
                continue
            pending.popleft()
            try:
                call.answered(frame, call)
            except Exception:
                log.failure("a reply could not be used")
        return at


class MetaConnection(MemcachedConnection):
    """A connection in meta commands, whatever else the server speaks."""

    def connectionMade(self) -> None:
        """Take the transport, and translate from the greeting on."""
        super().connectionMade()
        self._translation = MetaTranslation()
        self._as_frames = self._translation.replies
