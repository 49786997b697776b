"""Exceptions that requests fail with.

::

    KVProtoError
    ├── ReplyError                  the server answered, and the answer is no
    │   ├── NotFoundError           0x01
    │   ├── ExistsError             0x02
    │   │   └── CasMismatchError    0x02 to a request with a CAS
    │   ├── TooBigError             0x03
    │   ├── InvalidRequestError     0x04, 0x22
    │   ├── NotStoredError          0x05
    │   ├── NotANumberError         0x06
    │   ├── WrongNodeError          0x07
    │   ├── LockedError             0x09
    │   ├── NotLockedError          0x0e
    │   ├── AccessError             0x08, 0x20, 0x24
    │   │   └── StaleLoginError     0x1f; the connection is renewed
    │   ├── UnsupportedError        0x80, 0x81, 0x83
    │   ├── TemporaryError          0x25, 0x30 to 0x33, 0x82, 0x85, 0x86
    │   ├── ServerFaultError        0x84
    │   ├── UnknownCollectionError  0x88, 0x8c
    │   ├── DurabilityError         0xa0, 0xa1, 0xa2, 0xa4
    │   └── AmbiguousWriteError     0xa3
    └── UpstreamError
        ├── UnansweredError         no answer came; ``written`` says whether it was asked
        │   ├── RequestTimeoutError
        │   ├── ConnectionFailedError
        │   ├── QueueFullError
        │   └── StoppedError
        ├── NotNegotiatedError      this server, or this connection, cannot do that
        ├── OversizedReplyError     the answer was longer than this client reads
        └── LoginError              the server does not let us in
            └── BucketError         not into this bucket

A request that was not written has had no effect.  One that was written and not answered may have
been carried out, or may still be: whoever repeats it must allow for that.
"""

from __future__ import annotations

import json

from twisted.python.failure import Failure

from kvproto.errors import KVProtoError, UpstreamError
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response

__all__ = [
    "REPLY_ERRORS",
    "AccessError",
    "AmbiguousWriteError",
    "BucketError",
    "CasMismatchError",
    "ConnectionFailedError",
    "DurabilityError",
    "ExistsError",
    "InvalidRequestError",
    "LockedError",
    "LoginError",
    "NotANumberError",
    "NotFoundError",
    "NotLockedError",
    "NotNegotiatedError",
    "NotStoredError",
    "OversizedReplyError",
    "QueueFullError",
    "ReplyError",
    "RequestTimeoutError",
    "ServerFaultError",
    "StaleLoginError",
    "StoppedError",
    "TemporaryError",
    "TooBigError",
    "UnansweredError",
    "UnknownCollectionError",
    "UnsupportedError",
    "WrongNodeError",
    "reason_of",
    "reply_error",
]

_LONGEST_CONTEXT = 200
"""Characters of the server's own words that are kept."""


class ReplyError(KVProtoError):
    """The server answered, and the answer is no.

    Args:
        status: The answer's status.
        opcode: Of the answer.
        context: The server's own words, ``""`` when it had none.
    """

    def __init__(self, status: int, opcode: int, context: str = "") -> None:
        super().__init__(status, opcode, context)
        self.status = status
        self.opcode = opcode
        self.context = context

    def __str__(self) -> str:
        words = f": {self.context}" if self.context else ""
        return f"{_name(Opcode, self.opcode)} was answered {_name(Status, self.status)}{words}"


class NotFoundError(ReplyError):
    """There is no such document."""


class ExistsError(ReplyError):
    """There is such a document already."""


class CasMismatchError(ExistsError):
    """The document has changed since its CAS was read."""


class TooBigError(ReplyError):
    """The value is longer than the server stores."""


class InvalidRequestError(ReplyError):
    """The server does not understand the request's arguments."""


class NotStoredError(ReplyError):
    """There is nothing to append or prepend to."""


class NotANumberError(ReplyError):
    """The document is no decimal number that fits 64 bits."""


class WrongNodeError(ReplyError):
    """The key belongs to another node of the cluster."""


class LockedError(ReplyError):
    """Another one holds the document's lock."""


class NotLockedError(ReplyError):
    """The document is not locked."""


class AccessError(ReplyError):
    """Not logged in, no bucket selected, or not allowed."""


class StaleLoginError(AccessError):
    """The login has to be repeated; the client does so by connecting anew."""


class UnsupportedError(ReplyError):
    """The server does not do that."""


class TemporaryError(ReplyError):
    """The server cannot do it now; nothing has been changed, asking later may help."""


class ServerFaultError(ReplyError):
    """The server failed at it."""


class UnknownCollectionError(ReplyError):
    """There is no such scope or collection."""


class DurabilityError(ReplyError):
    """The durability asked for cannot be had; nothing has been changed."""


class AmbiguousWriteError(ReplyError):
    """The server cannot say whether the write became durable."""


REPLY_ERRORS: dict[int, type[ReplyError]] = {
    int(status): error
    for error, statuses in (
        (NotFoundError, (Status.NOT_FOUND,)),
        (ExistsError, (Status.EXISTS,)),
        (TooBigError, (Status.TOO_BIG,)),
        (InvalidRequestError, (Status.INVALID, Status.RANGE)),
        (NotStoredError, (Status.NOT_STORED,)),
        (NotANumberError, (Status.NOT_A_NUMBER,)),
        (WrongNodeError, (Status.NOT_MY_VBUCKET,)),
        (LockedError, (Status.LOCKED,)),
        (NotLockedError, (Status.NOT_LOCKED,)),
        (AccessError, (Status.NO_BUCKET, Status.AUTH_ERROR, Status.NO_ACCESS)),
        (StaleLoginError, (Status.AUTH_STALE,)),
        (
            UnsupportedError,
            (Status.UNKNOWN_FRAME_INFO, Status.UNKNOWN_COMMAND, Status.NOT_SUPPORTED),
        ),
        (
            TemporaryError,
            (
                Status.NOT_INITIALIZED,
                Status.RATE_LIMITED_INGRESS,
                Status.RATE_LIMITED_EGRESS,
                Status.RATE_LIMITED_CONNECTIONS,
                Status.RATE_LIMITED_COMMANDS,
                Status.NO_MEMORY,
                Status.BUSY,
                Status.TEMPORARY_FAILURE,
            ),
        ),
        (ServerFaultError, (Status.INTERNAL,)),
        (UnknownCollectionError, (Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE)),
        (
            DurabilityError,
            (
                Status.DURABILITY_INVALID_LEVEL,
                Status.DURABILITY_IMPOSSIBLE,
                Status.SYNC_WRITE_IN_PROGRESS,
                Status.SYNC_WRITE_RECOMMIT_IN_PROGRESS,
            ),
        ),
        (AmbiguousWriteError, (Status.SYNC_WRITE_AMBIGUOUS,)),
    )
    for status in statuses
}
"""Status to exception; a status that is not here is a plain `ReplyError`."""


def reply_error(reply: Response, cas: int = 0) -> ReplyError:
    """Return what a reply with a status other than success is raised as.

    Args:
        reply: The reply.
        cas: That the request carried, 0 for none: with one, "exists" means "has changed".
    """
    error = REPLY_ERRORS.get(reply.status, ReplyError)
    if cas and error is ExistsError:
        error = CasMismatchError
    return error(reply.status, reply.opcode, _context(reply))


def _context(reply: Response) -> str:
    """Return the server's words: Couchbase sends JSON, memcached a text."""
    text = reply.value[: 4 * _LONGEST_CONTEXT].decode("utf-8", "replace")
    if text.startswith("{"):
        try:
            text = str(json.loads(reply.value)["error"]["context"])
        except (ValueError, LookupError, TypeError, RecursionError):
            text = ""
    text = text[:_LONGEST_CONTEXT]
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _name(names: type[Opcode] | type[Status], number: int) -> str:
    try:
        return names(number).name
    except ValueError:
        return f"0x{number:02x}"


class UnansweredError(UpstreamError):
    """No answer came.

    Args:
        reason: One lower-case phrase.
        written: Whether the request had been given to the connection: if so, the server may have
            carried it out; if not, it has had no effect.
    """

    def __init__(self, reason: str, written: bool) -> None:
        super().__init__(reason, written)
        self.reason = reason
        self.written = written

    def __str__(self) -> str:
        sure = "it may have been carried out" if self.written else "it was not sent"
        return f"{self.reason}; {sure}"


def reason_of(failure: Failure) -> str:
    """Return why something failed, for the text of another error.

    Whether *that* request was sent says nothing of this one, and would contradict it.
    """
    error = failure.value
    return error.reason if isinstance(error, UnansweredError) else failure.getErrorMessage()


class RequestTimeoutError(UnansweredError):
    """No answer came in time."""


class ConnectionFailedError(UnansweredError):
    """The connection ended, or there was none."""


class QueueFullError(UnansweredError):
    """Too many requests are waiting to be written."""


class StoppedError(UnansweredError):
    """This client is not running, or was stopped."""


class NotNegotiatedError(UpstreamError):
    """The server did not agree to what this request needs; it was not sent."""


class OversizedReplyError(UpstreamError):
    """The answer was longer than this client reads; what was asked has been done."""


class LoginError(UpstreamError):
    """The server does not let us in."""


class BucketError(LoginError):
    """The server does not let us into the bucket."""
