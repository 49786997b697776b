"""The binary protocol: bytes in, frames out, and back.

Decoding is one loop over what was read.  A whole frame is sliced once from the read; of an
incomplete one only the head (at most `HEAD_BOUND` bytes) is ever copied again, and a long value is
collected in pieces and joined once.  A body beyond the limit is counted and thrown away as it
streams in: what a decoder holds is bounded by its limits, whatever arrives, however it is cut.

Whose fault an error is: decoders judge only the peer, in one place (`_Decoder._fail`,
`RemoteProtocolError`); encoders, which are in `kvproto.wire.encoding` and offered here too, judge
only the caller (`LocalProtocolError`).

Sources: memcached ``protocol_binary.h``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Generic, TypeVar

from kvproto.wire.constants import HEADER_SIZE, MAX_COLLECTION_PREFIX, MAX_KEY, Magic, Status
from kvproto.wire.encoding import (
    HEADER,
    counter_reply,
    encode_frame,
    encode_request,
    encode_response,
    error_reply,
    get_head,
    get_reply,
    getk_head,
    mutation_reply,
    pack_hit,
    response_head,
    simple_reply,
)
from kvproto.wire.frames import FrameError, KeyRequest, Oversized, Request, Response
from kvproto.wire.pieces import Pieces

__all__ = [
    "DEFAULT_MAX_BODY",
    "HEAD_BOUND",
    "RequestDecoder",
    "ResponseDecoder",
    "counter_reply",
    "encode_frame",
    "encode_request",
    "encode_response",
    "error_reply",
    "get_head",
    "get_reply",
    "getk_head",
    "mutation_reply",
    "pack_hit",
    "response_head",
    "simple_reply",
]

DEFAULT_MAX_BODY = 20 * 1024 * 1024 + 1024
"""Couchbase's largest value, 20 MiB, and room for extras and key, in bytes."""

HEAD_BOUND = HEADER_SIZE + 255 + 255 + MAX_KEY + MAX_COLLECTION_PREFIX
"""Most bytes kept of a frame whose value has not begun: header, framing, extras, longest key."""

_unpack_header = HEADER.unpack_from
_unpack_usual = Struct(">BBHHHIIQ").unpack_from
"""The same header, lengths of extras and datatype as one number: most requests have neither."""

_new = object.__new__

_Reads = dict[int, tuple[type[Request] | type[Response], bool]]
_FrameT = TypeVar("_FrameT")


class _Decoder(Generic[_FrameT]):
    """What both directions share.

    Args:
        max_body: Longest body that is kept, in bytes; a longer one is discarded as it streams in
            and reported as `Oversized`.
        max_key: Longest key in bytes, without a collection prefix, for which
            `MAX_COLLECTION_PREFIX` bytes come on top.  A frame with a longer one is discarded and
            reported as `Oversized` too.

    Attributes:
        max_body: As given; a new value holds for the frames whose headers are still to come.
        error: Why the stream cannot be read any further, None while it can.
        held: Whether the next bytes continue something: part of a frame, or a broken stream.
    """

    __slots__ = (
        "_frame",
        "_max_key",
        "_missing",
        "_pieces",
        "_tail",
        "error",
        "held",
        "max_body",
    )

    _plain: int
    """The magic of the common case, decoded without a look into `_reads`."""
    _make: type[Request] | type[Response]
    """What a frame with the magic `_plain` becomes."""
    _reads: _Reads
    """Each magic that may arrive here: what it becomes, and whether its layout is flexible."""

    def __init__(self, max_body: int = DEFAULT_MAX_BODY, max_key: int = MAX_KEY) -> None:
        self.max_body = max_body
        self._max_key = max_key + MAX_COLLECTION_PREFIX
        # True when anything below is set: the usual read, whole frames only, looks at this alone.
        self.held = False
        self._tail = b""
        self._frame: Request | Response | Oversized | None = None
        self._pieces: Pieces | None = None
        self._missing = 0
        self.error: FrameError | None = None

    @property
    def buffered(self) -> int:
        """Bytes that are held for frames that are not complete yet."""
        return len(self._tail) + (0 if self._pieces is None else self._pieces.size)

    @property
    def partial(self) -> bool:
        """Whether the stream, not broken, has stopped in the middle of a frame."""
        return self.held and self.error is None

    def discard(self) -> None:
        """Forget what is held of a frame that will never be complete; nothing may follow."""
        self._tail = b""
        self._frame = self._pieces = None
        self.held = False

    def feed(  # noqa: PLR0915 - written out, as fast as Python can
        self, data: bytes | bytearray | memoryview
    ) -> list[_FrameT]:
        """Decode what was read.

        Nothing is raised for what this call finds: the frames before a broken one are returned, and
        `error` says what ended the stream.  Look at `error` once the frames have been served.

        Args:
            data: Any part of the stream, following what was fed before; not kept unless it is
                ``bytes``.

        Returns:
            The frames that are complete now, in order.

        Raises:
            FrameError: The stream was broken by an earlier call.
        """
        if type(data) is not bytes:
            data = bytes(data)
        frames: list[Any] = []
        at = 0
        if self.held:
            if self.error is not None:
                raise self.error
            self.held = False
            if self._frame is not None:
                at = self._continue(data, frames)
            else:
                data = self._tail + data
                self._tail = b""
        end = len(data)
        unpack, append, new, make = _unpack_usual, frames.append, _new, self._make
        plain, is_request = self._plain, make is Request
        max_body, max_key = self.max_body, self._max_key
        short = min(max_body, max_key - MAX_COLLECTION_PREFIX) if is_request else 0
        last = end - HEADER_SIZE
        while at <= last:
            magic, opcode, key_size, layout, status, body_size, opaque, cas = unpack(data, at)
            key_at = at + HEADER_SIZE
            stop = key_at + body_size
            if layout:
                extras_at = key_at
                key_at += layout >> 8
                extras, datatype = data[extras_at:key_at], layout & 0xFF
            else:
                if (
                    key_size == body_size
                    and not cas
                    and 0 < key_size <= short
                    and magic == plain
                    and stop <= end
                ):
                    request = KeyRequest()
                    request.opcode = opcode
                    request.vbucket = status
                    request.opaque = opaque
                    request.key = data[key_at:stop]
                    append(request)
                    at = stop
                    continue
                extras, datatype = b"", 0
            # One test for all that is unusual: other layout, beyond a limit, broken, incomplete.
            if (
                magic != plain
                or stop > end
                or body_size > max_body
                or key_size > max_key
                or (value_at := key_at + key_size) > stop
            ):
                at = self._unusual(data, at, frames)
                if at < 0:
                    return frames
                continue
            # What ``make(...)`` does, in half of its time.
            frame: Any = new(make)
            if is_request:
                frame.vbucket = status
            else:
                frame.status = status
            frame.magic = magic
            frame.opcode = opcode
            frame.datatype = datatype
            frame.opaque = opaque
            frame.cas = cas
            frame.extras = extras
            frame.key = data[key_at:value_at]
            frame.value = data[value_at:stop] if value_at < stop else b""
            frame.framing = b""
            append(frame)
            at = stop
        if at < end:
            # The first byte is judged at once: whoever speaks another protocol must not be left
            # waiting for the rest of a header that will never come.
            if data[at] in self._reads:
                self._keep(data[at:])
            else:
                self._fail(f"unknown magic 0x{data[at]:02x}")
        return frames

    def _unusual(self, data: bytes, at: int, frames: list[Any]) -> int:
        """Decode one frame the slow way.

        Returns:
            Where the next frame begins; -1 when the rest of `data` has been dealt with.
        """
        header: tuple[int, ...] = _unpack_header(data, at)
        magic, opcode, key_size, extras_size, datatype, status, body_size, opaque, cas = header
        if magic not in self._reads:
            return self._fail(f"unknown magic 0x{magic:02x}")
        make, flexible = self._reads[magic]
        framing_size = 0
        if flexible:
            framing_size, key_size = key_size >> 8, key_size & 0xFF
        extras_at = at + HEADER_SIZE + framing_size
        key_at = extras_at + extras_size
        value_at = key_at + key_size
        stop = at + HEADER_SIZE + body_size
        if value_at > stop:
            return self._fail(
                "framing, extras and key are longer than the body", Status.INVALID, opcode, opaque
            )
        end = len(data)
        long_key = key_size > self._max_key
        if end < value_at and not long_key:
            return self._keep(data[at:])
        frame: Request | Response | Oversized
        if long_key or body_size > self.max_body:
            frame = Oversized(
                magic,
                opcode,
                status,
                datatype,
                opaque,
                cas,
                body_size,
                None if long_key else data[key_at:value_at],
                int(Status.INVALID if long_key else Status.TOO_BIG),
            )
        else:
            frame = make(
                magic,
                opcode,
                status,
                datatype,
                opaque,
                cas,
                data[extras_at:key_at],
                data[key_at:value_at],
                data[value_at:stop],
                data[extras_at - framing_size : extras_at],
            )
        if stop <= end:
            frames.append(frame)
            return stop
        self.held = True
        self._frame = frame
        self._missing = stop - end
        if not isinstance(frame, Oversized):
            self._pieces = Pieces(frame.value)
            frame.value = b""
        return -1

    def _continue(self, data: bytes, frames: list[Any]) -> int:
        """Take what belongs to the value that is coming in; return where the next frame begins."""
        size = len(data)
        pieces = self._pieces
        if size < self._missing:
            self.held = True
            self._missing -= size
            if pieces is not None:
                pieces.add(data)
            return size
        stop = self._missing
        frame, self._frame, self._missing = self._frame, None, 0
        if pieces is not None and isinstance(frame, Request | Response):
            pieces.add(data[:stop])
            frame.value = pieces.join()
            self._pieces = None
        frames.append(frame)
        return stop

    def _keep(self, tail: bytes) -> int:
        """Keep the head of a frame that is not complete."""
        self.held = True
        self._tail = tail
        return -1

    def _fail(
        self, reason: str, status: int | None = None, opcode: int = 0, opaque: int = 0
    ) -> int:
        """Note that the peer broke the stream: the one place where a decoder blames anybody."""
        self.held = True
        self.error = FrameError(reason, status, opcode, opaque)
        return -1


class RequestDecoder(_Decoder[Request | Oversized]):
    """What a server reads: requests with the magics 0x80 and 0x08."""

    __slots__ = ()

    _plain = int(Magic.REQUEST)
    _make = Request
    _reads: _Reads = {
        int(Magic.REQUEST): (Request, False),
        int(Magic.FLEX_REQUEST): (Request, True),
    }


class ResponseDecoder(_Decoder[Response | Request | Oversized]):
    """What a client reads: responses (0x81, 0x18) and requests of the server (0x82)."""

    __slots__ = ()

    _plain = int(Magic.RESPONSE)
    _make = Response
    _reads: _Reads = {
        int(Magic.RESPONSE): (Response, False),
        int(Magic.FLEX_RESPONSE): (Response, True),
        int(Magic.SERVER_REQUEST): (Request, False),
    }
