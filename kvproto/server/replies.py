"""What a session says to one request, in the forms that the connection understands.

Nearly always ``bytes``, which may be empty: nothing to say.  The other forms are rare, so one check
of the type tells them from the usual one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred

__all__ = [
    "COPY_LIMIT",
    "JOIN_LIMIT",
    "ErrorLine",
    "Hangup",
    "LateError",
    "Reply",
    "size_of",
    "then",
]

_T = TypeVar("_T")

COPY_LIMIT = 16 * 1024
"""Values up to this size, in bytes, are copied behind their header; a longer one is passed on as a
part of its own."""

JOIN_LIMIT = 32 * 1024
"""Replies of one write up to this size, in bytes, are joined: cheaper than many parts."""


@dataclass(slots=True)
class Hangup:
    """Say this, then close: there will be no more answers.

    Attributes:
        reply: The last words, ``b""`` for none.
        reason: Why, where the log should know; ``""`` when the peer asked for it.
        successor: Makes, of the connection, the session that goes on in place of closing.
    """

    reply: bytes = b""
    reason: str = ""
    successor: Callable[[Any], Any] | None = None


class ErrorLine(bytes):
    """An error in place of one value of a text retrieval.

    A client takes it for the whole answer, so nothing more of that answer may follow.
    """

    __slots__ = ()


class LateError(bytes):
    """An error about one key of a text retrieval that the other keys need not suffer for.

    It is sent in place of END, behind the values of those that have one.
    """

    __slots__ = ()


Reply: TypeAlias = bytes | list[bytes] | Hangup | Deferred[Any]
"""``list``: parts that are sent in this order.  A Deferred fires with one of the other forms."""


def size_of(reply: Reply) -> int:
    """Return how many bytes a reply has that is no Deferred."""
    if isinstance(reply, bytes):
        return len(reply)
    if isinstance(reply, list):
        return sum(map(len, reply))
    return size_of(reply.reply) if isinstance(reply, Hangup) else 0


def then(outcome: Any, encode: Callable[..., _T], *args: Any) -> _T | Deferred[_T]:
    """Return ``encode(outcome, *args)``, or a Deferred of it if the outcome is one."""
    if isinstance(outcome, Deferred):
        return outcome.addCallback(encode, *args)
    return encode(outcome, *args)
