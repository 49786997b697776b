"""What can be put around a handler: counting, silence, collections, a duration.

Each takes a handler and returns one, so that a session without the feature pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from kvproto.errors import RemoteProtocolError
from kvproto.server.client import BinaryClient
from kvproto.server.documents import Handler
from kvproto.server.replies import Reply, then
from kvproto.wire.constants import Magic, Status
from kvproto.wire.frames import Request
from kvproto.wire.framing import encode_server_duration

__all__ = [
    "counted",
    "duration",
    "in_collections",
    "quiet",
    "quiet_on_miss",
    "stamped",
    "with_duration",
]


def counted(handler: Handler) -> Handler:
    """Make the form of a handler whose requests are counted."""

    def counting(session: BinaryClient, request: Request) -> Reply:
        reply: Reply = session.counts.binary(handler, session, request)
        return reply

    return counting


def _silencing(silent: bytes) -> Callable[[Handler], Handler]:
    def hush(reply: Reply) -> Reply:
        return b"" if isinstance(reply, bytes) and reply[6:8] == silent else reply

    def silence(handler: Handler) -> Handler:
        def quiet_handler(session: BinaryClient, request: Request) -> Reply:
            return then(handler(session, request), hush)

        return quiet_handler

    return silence


quiet = _silencing(Status.SUCCESS.to_bytes(2))
"""Make the quiet form of a handler: silent on success, which the reply's status tells."""

quiet_on_miss = _silencing(Status.NOT_FOUND.to_bytes(2))
"""Make the quiet form of a reading handler: silent where there is nothing."""


def in_collections(handler: Handler) -> Handler:
    """Make the form of a handler for keys that begin with the id of their collection."""

    def collection_handler(session: BinaryClient, request: Request) -> Reply:
        bucket = session.bucket
        assert bucket is not None
        try:
            # From here on the key is the store's: the handlers only pass it on.
            request.key = bucket.key(request.key)  # type: ignore[assignment]
        except RemoteProtocolError as e:
            return session.protocol_error_to(request, e)
        return handler(session, request)

    return collection_handler


_LONGEST_TABLED_US = 1024
_DURATIONS = [encode_server_duration(micros) for micros in range(_LONGEST_TABLED_US)]
"""Coding a duration costs more than most requests take; these are all that are frequent."""


def with_duration(handler: Handler) -> Handler:
    """Make the form of a handler whose replies say how long it took."""

    def timed_handler(session: BinaryClient, request: Request) -> Reply:
        timer = session.server.timer
        started = timer()
        reply = handler(session, request)
        if reply.__class__ is bytes:
            return _stamp(reply, timer() - started) if reply else reply
        if isinstance(reply, Deferred):
            return reply.addCallback(lambda fired: stamped(fired, timer() - started))
        return stamped(reply, timer() - started)

    return timed_handler


def stamped(reply: Reply, seconds: float) -> Reply:
    """Put a duration into an encoded reply, into the first response if there are several."""
    if isinstance(reply, bytes):
        return _stamp(reply, seconds)
    if isinstance(reply, list):
        return [_stamp(reply[0], seconds), *reply[1:]]
    return reply


def duration(seconds: float) -> bytes:
    """Return the framing extras that tell a duration: 3 bytes."""
    micros = int(seconds * 1e6)
    return _DURATIONS[micros] if micros < _LONGEST_TABLED_US else encode_server_duration(micros)


def _stamp(reply: bytes, seconds: float) -> bytes:
    if not reply or reply[2]:  # a key of more than 255 bytes leaves no room for framing
        return reply
    framing = duration(seconds)
    body = int.from_bytes(reply[8:12]) + len(framing)
    return b"".join(
        (
            _FLEXIBLE,
            reply[1:2],
            bytes((len(framing),)),
            reply[3:8],
            body.to_bytes(4),
            reply[12:24],
            framing,
            reply[24:],
        )
    )


_FLEXIBLE = bytes((Magic.FLEX_RESPONSE,))
