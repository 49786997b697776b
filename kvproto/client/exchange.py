"""One request with its Deferred, from being asked to being answered.

Owns the promise that the Deferred fires exactly once: whatever comes first, an answer, an error,
a deadline or a cancellation, takes the Deferred out, and what comes later finds none.  An exchange
without its Deferred is *abandoned*: if it has been written, its place is kept until its answer
has been read and thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred

from kvproto.client.errors import OversizedReplyError, reply_error
from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.binary import DEFAULT_MAX_BODY, encode_request
from kvproto.wire.collections import encode_collection_id
from kvproto.wire.constants import MAX_KEY, Opcode, Status
from kvproto.wire.frames import Oversized, Response

__all__ = ["ANY_STATUS", "BatchGet", "Exchange", "Stats", "check_key", "check_value"]

T = TypeVar("T")

ANY_STATUS: Container[int] = range(0x10000)
"""For exchanges that want to see every reply as it is."""

_GETQ = int(Opcode.GETQ)
_NOOP = int(Opcode.NOOP)
_STAT = int(Opcode.STAT)
_NOT_FOUND = int(Status.NOT_FOUND)

_DEFAULT_PREFIX = b"\0"

_ITEM_BYTES = 64
"""Bytes that one statistic takes besides its text, roughly."""


class Holder(Protocol):
    """A place where an exchange waits to be written."""

    def drop(self, exchange: Exchange[Any]) -> None:
        """Forget an exchange that need not be written any more."""


def check_key(key: bytes) -> bytes:
    """Return a key that can be sent.

    Raises:
        TypeError: It is not ``bytes``.
        LocalProtocolError: It is empty, or longer than 250 bytes.
    """
    if not isinstance(key, bytes):
        raise TypeError(f"a key is bytes, not {type(key).__name__}")
    if not 0 < len(key) <= MAX_KEY:
        raise LocalProtocolError(f"a key has 1 to {MAX_KEY} bytes, not {len(key)}")
    return key


def check_value(value: bytes) -> bytes:
    """Return a value that can be sent: ``bytes``, which cannot change while it waits.

    Raises:
        TypeError: It is not ``bytes``.
    """
    if not isinstance(value, bytes):
        raise TypeError(f"a value is bytes, not {type(value).__name__}")
    return value


class Exchange(Generic[T]):
    """A request with one reply.

    Args:
        opcode: What is asked.
        parse: Makes the result of a reply.
        key: Without a collection's prefix.
        value: The request's value.
        extras: The request's extras.
        cas: The request's CAS.
        datatype: The request's datatype.
        framing: Encoded framing extras.
        collection: Id of the key's collection; None for a key that is no document's.
        needs: Features that must have been negotiated.
        tolerates: Statuses that `parse` understands, besides success.

    Attributes:
        deferred: Fires with the result; None once it has fired.
        deadline: When it is to fail, in the clock's seconds.
        holder: Where it waits to be written; None when it does not.
        opaque: The first of its opaques, once it is written.
        span: How many opaques it takes.
    """

    __slots__ = (
        "cas",
        "collection",
        "datatype",
        "deadline",
        "deferred",
        "error",
        "extras",
        "framing",
        "holder",
        "key",
        "needs",
        "opaque",
        "opcode",
        "parse",
        "result",
        "span",
        "tolerates",
        "value",
    )

    def __init__(
        self,
        opcode: int,
        parse: Callable[[Response], T],
        *,
        key: bytes = b"",
        value: bytes = b"",
        extras: bytes = b"",
        cas: int = 0,
        datatype: int = 0,
        framing: bytes = b"",
        collection: int | None = None,
        needs: Sequence[int] = (),
        tolerates: Container[int] = (),
    ) -> None:
        self.opcode = int(opcode)
        self.parse = parse
        self.key = key
        self.value = value
        self.extras = extras
        self.cas = cas
        self.datatype = datatype
        self.framing = framing
        self.collection = collection
        self.needs = needs
        self.tolerates = tolerates
        self.span = 1
        self.opaque = 0
        self.deadline = 0.0
        self.holder: Holder | None = None
        self.result: T | None = None
        self.error: Exception | None = None
        self.deferred: Deferred[T] | None = Deferred(self._cancelled)

    @property
    def size(self) -> int:
        """Bytes that it keeps while it waits, roughly."""
        return len(self.value)

    def _cancelled(self, deferred: Deferred[T]) -> None:
        """Let go; the Deferred itself fails with CancelledError."""
        self.deferred = None
        if self.holder is not None:
            self.holder.drop(self)

    def _prefix(self, prefixed: bool) -> bytes:
        collection = self.collection
        if not prefixed or collection is None:
            return b""
        return encode_collection_id(collection) if collection else _DEFAULT_PREFIX

    def encode(self, opaque: int, prefixed: bool) -> bytes:
        """Return the request's bytes, and let go of what only they needed.

        Args:
            opaque: The first of `span` free opaques.
            prefixed: Whether keys begin with their collection's id on this connection.

        Raises:
            LocalProtocolError: It does not fit the header.
        """
        self.opaque = opaque
        data = encode_request(
            self.opcode,
            key=self._prefix(prefixed) + self.key,
            value=self.value,
            extras=self.extras,
            opaque=opaque,
            cas=self.cas,
            datatype=self.datatype,
            framing=self.framing,
        )
        self.value = b""
        return data

    def take(self, reply: Response) -> bool:
        """Read one reply; nothing is fired yet.

        Returns:
            Whether it was the last.

        Raises:
            RemoteProtocolError: It is not a reply to this request, or is malformed.
        """
        if reply.opcode != self.opcode:
            raise RemoteProtocolError(
                f"opcode 0x{self.opcode:02x} was answered with 0x{reply.opcode:02x}"
            )
        if self.deferred is not None:
            if not reply.status or reply.status in self.tolerates:
                self.result = self.parse(reply)
            else:
                self.error = reply_error(reply, self.cas)
        return True

    def take_oversized(self, reply: Oversized) -> bool:
        """Note that a reply was too long to be read; return whether it was the last."""
        self.error = self.error or OversizedReplyError(f"an answer of {reply.body_size} bytes")
        return True

    def finish(self) -> None:
        """Fire with what has been taken."""
        deferred, self.deferred = self.deferred, None
        if deferred is not None:
            if self.error is None:
                deferred.callback(self.result)  # type: ignore[arg-type]
            else:
                deferred.errback(self.error)

    def fail(self, error: Exception) -> None:
        """Fire with an error, unless it has fired."""
        deferred, self.deferred = self.deferred, None
        if deferred is not None:
            deferred.errback(error)


class Stats(Exchange[dict[str, str]]):
    """STAT: a reply for each item, then one without a key.

    Nothing says how many there will be, so their sum is bounded as a single reply is.

    Args:
        group: Which statistics, ``b""`` for the general ones.
        limit: Bytes of names and values.
    """

    __slots__ = ("_left",)

    def __init__(self, group: bytes, limit: int = DEFAULT_MAX_BODY) -> None:
        super().__init__(_STAT, _nothing, key=group)
        self.result: dict[str, str] = {}
        self._left = limit

    def take(self, reply: Response) -> bool:
        """Add one item, or end."""
        if reply.opcode != _STAT:
            raise RemoteProtocolError(f"STAT was answered with 0x{reply.opcode:02x}")
        if reply.status:
            self.error = reply_error(reply)
            return True
        if not reply.key:
            return True
        # An item without a name or value takes memory as well.
        self._left -= len(reply.key) + len(reply.value) + _ITEM_BYTES
        if self._left < 0:
            self.result = {}
            self.fail(OversizedReplyError("statistics without an end"))
        elif self.deferred is not None:
            name = reply.key.decode("utf-8", "replace")
            self.result[name] = reply.value.decode("utf-8", "replace")
        return False

    def take_oversized(self, reply: Oversized) -> bool:
        """Note the error and wait for the last item."""
        super().take_oversized(reply)
        return False


class BatchGet(Exchange[dict[bytes, T]]):
    """Many GETs that answer hits only, and a NOOP whose answer says that all are through.

    GETQ will do, where GETKQ would repeat each key: the opaque tells which one is answered.  It
    relies on the server's answering in order, so `kvproto.client` never asks for feature 0x0e.

    Args:
        keys: Each once; at least one.
        parse_hit: Makes the result of a hit.
        collection: Id of the keys' collection.
    """

    __slots__ = ("_keys", "_parse_hit")

    def __init__(
        self, keys: Sequence[bytes], parse_hit: Callable[[Response], T], collection: int | None
    ) -> None:
        super().__init__(_GETQ, _nothing, collection=collection)
        self._keys = keys
        self._parse_hit = parse_hit
        self.span = len(keys) + 1
        self.result: dict[bytes, T] = {}

    def encode(self, opaque: int, prefixed: bool) -> bytes:
        """Return the bytes of all requests."""
        self.opaque = opaque
        prefix = self._prefix(prefixed)
        parts = [
            encode_request(_GETQ, key=prefix + key, opaque=opaque + index)
            for index, key in enumerate(self._keys)
        ]
        parts.append(encode_request(_NOOP, opaque=opaque + len(self._keys)))
        return b"".join(parts)

    def take(self, reply: Response) -> bool:
        """Take a hit, an error, or the end."""
        index = reply.opaque - self.opaque
        last = index == len(self._keys)
        if reply.opcode != (_NOOP if last else _GETQ):
            raise RemoteProtocolError(f"a batch was answered with 0x{reply.opcode:02x}")
        if self.deferred is None or reply.status == _NOT_FOUND:
            return last
        if reply.status:
            self.error = self.error or reply_error(reply)
        elif not last:
            self.result[self._keys[index]] = self._parse_hit(reply)
        return last

    def take_oversized(self, reply: Oversized) -> bool:
        """Note the error and wait for the end."""
        super().take_oversized(reply)
        return False


def _nothing(reply: Response) -> Any:
    return None
