"""memcached's meta commands, as the text session serves them.

What a command does to a document is a rule of the store's (`kvproto.store.meta`); here it is asked,
and what came of it is told: a code of two letters, what the client's flags want to have back, in
their order, and what it must know besides (``W``: it shall fetch the value anew; ``X``: the value
is stale; ``Z``: another client fetches it already).

Source: memcached 1.6.45, ``doc/protocol.txt``, ``proto_parser.c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kvproto.server.client import TextClient
from kvproto.server.replies import COPY_LIMIT, Reply, then
from kvproto.store import (
    LOCKED_CAS,
    Document,
    Mark,
    MetaAnswer,
    MetaRead,
    MetaWrite,
    accessed_at,
    last_access,
    marks_at,
)
from kvproto.store.expiry import deadline
from kvproto.store.slab_classes import item_size, slab_class
from kvproto.wire.meta import MetaCommand, meta_key

__all__ = ["META_HANDLERS"]

_RULED = frozenset(b"uT")
"""Flags of mg that do more than to read."""

_COMMON = frozenset(b"Ok")
"""What every answer gives back."""


def _mg(session: TextClient, command: MetaCommand) -> Reply:
    session.server.counters.meta_cmds += 1
    store: Any = session.store
    key, read = command.key, session.plain_read
    # Where the store answers at once, and nobody watches.
    if session.meta_seen and read is not None and _RULED.isdisjoint(command.letters):
        now = store.now()
        seen = marks_at(Mark.FETCHED, now)
        found = read(key, now, seen, command.recache or 0, command.vivify is not None)
        if found is not None:
            document, marks = found
            if document is None:
                return _miss(command)
            accessed = last_access(marks, document.cas)
            return _read(MetaRead(document, document.expires_at, marks, accessed), session, command)
    session.meta_seen = True
    return then(store.meta(key, command), _read, session, command)


def _miss(command: MetaCommand) -> bytes:
    if command.quiet:
        return b""
    return b"EN%b\r\n" % _given_without_document(command)


def _read(outcome: Any, session: TextClient, command: MetaCommand) -> Reply:
    """Encode what mg found, or made."""
    if outcome.__class__ is MetaAnswer:
        return _passed_on(outcome, command)
    if outcome is None:
        return _miss(command)
    if not isinstance(outcome, MetaRead):
        return session.refuse_meta(outcome)
    document = outcome.document
    given = _given(session, command, _OF_READS, document, outcome)
    if outcome.marks & Mark.WON:
        given += b" Z"
    if document.marks & Mark.STALE:
        given += b" X"
    if outcome.won:
        given += b" W"
    return _value(document, command, given)


def _value(document: Document, command: MetaCommand, given: bytes) -> Reply:
    """Encode a hit, with the value if it is wanted and the client has it not."""
    if b"v" not in command.letters or command.cas == document.cas:
        return b"HD%b\r\n" % given
    value = document.value
    if len(value) <= COPY_LIMIT:
        return b"VA %d%b\r\n%b\r\n" % (len(value), given, value)
    return [b"VA %d%b\r\n" % (len(value), given), value, b"\r\n"]


# What flags give back


def _given_without_document(command: MetaCommand) -> bytes:
    """Encode what can be given back where there is nothing: opaque and key."""
    given = b""
    for flag in command.flags:
        if flag[0] == _O:
            given += b" " + flag
        elif flag[0] == _K:
            given += b" " + meta_key(command.key, binary=b"b" in command.letters)
    return given


def _given(
    session: TextClient,
    command: MetaCommand,
    wanted: frozenset[int],
    document: Document,
    read: MetaRead | None = None,
) -> bytes:
    """Encode what a command gives back, in the order of its flags.

    Args:
        session: Whose command it is.
        command: The command.
        wanted: Which flags are given back by commands of its kind.
        document: The document as it is now.
        read: What was known of it before; None where nothing of that is asked for.
    """
    given = b""
    expires_at = document.expires_at if read is None else read.before
    for flag in command.flags:
        letter = flag[0]
        # A flag sees what those before it have done to the expiry.
        if letter == _T and command.expiry is not None:
            expires_at = deadline(command.expiry, session.server.now())
        elif letter == _N and read is not None and read.made:
            expires_at = deadline(command.vivify or 0, session.server.now())
        elif letter not in wanted:
            continue
        elif letter == _O:
            given += b" " + flag
        elif letter == _K:
            given += b" " + meta_key(command.key, binary=b"b" in command.letters)
        else:
            number = _NUMBERS[letter](session, document, read, expires_at)
            given += b" %c%d" % (letter, number)
    return given


_O, _K, _T, _N = b"OkTN"
_OF_READS = frozenset(b"stcflh") | _COMMON
_OF_COUNTERS = frozenset(b"tc") | _COMMON
_OF_WRITES = frozenset(b"cs") | _COMMON


def _cas_of(session: Any, document: Document, read: Any, expires_at: float) -> int:
    return LOCKED_CAS if document.locked_until else document.cas


def _ttl_of(session: TextClient, document: Any, read: Any, expires_at: float) -> int:
    return _ttl(expires_at, session.server.now())


def _idle(session: TextClient, document: Document, read: MetaRead, expires_at: float) -> int:
    return _since(0 if read.made else read.accessed, session.server.now())


def _since(accessed: int, now: float) -> int:
    """Return the seconds since a document was used; 0 where nobody knows."""
    return max(0, int(now) - accessed) if accessed else 0


_NUMBERS: dict[int, Callable[[Any, Any, Any, float], int]] = {
    ord("c"): _cas_of,
    ord("f"): lambda session, document, read, expires_at: document.flags,
    ord("h"): lambda session, document, read, expires_at: int(read.marks & Mark.FETCHED != 0),
    ord("l"): _idle,
    ord("s"): lambda session, document, read, expires_at: len(document.value),
    ord("t"): _ttl_of,
}


def _ttl(expires_at: float, now: float) -> int:
    """Return how many seconds a document has left, -1 for ever."""
    return max(0, math.ceil(expires_at - now)) if expires_at else -1


def _passed_on(answer: MetaAnswer, command: MetaCommand) -> Reply:
    """Encode what a memcached server has answered, as far as the client wants to hear of it."""
    code = answer.line[:2]
    usual = code == b"EN" if command.verb == "mg" else code in {b"HD", b"VA"}
    if command.quiet and usual:
        return b""
    if code != b"VA":
        return answer.line + b"\r\n"
    return [answer.line + b"\r\n", answer.value, b"\r\n"]


def _ask(session: TextClient, command: MetaCommand) -> Any:
    session.server.counters.meta_cmds += 1
    session.meta_seen = True
    return session.store.meta(command.key, command)


# Writing


def _ms(session: TextClient, command: MetaCommand) -> Reply:
    return then(_ask(session, command), _written, session, command)


def _written(outcome: Any, session: TextClient, command: MetaCommand) -> Reply:
    """Encode what became of ms."""
    if outcome.__class__ is MetaAnswer:
        return _passed_on(outcome, command)
    if isinstance(outcome, MetaWrite):
        # memcached gives back what would have been stored.
        unstored = Document(command.value)
        return b"%b%b\r\n" % (
            outcome.value.encode(),
            _given(session, command, _OF_WRITES, unstored),
        )
    if not isinstance(outcome, Document):
        return session.refuse_meta(outcome, command.key)
    if command.quiet:
        return b""
    return b"HD%b\r\n" % _given(session, command, _OF_WRITES, outcome)


def _md(session: TextClient, command: MetaCommand) -> Reply:
    return then(_ask(session, command), _removed, session, command)


def _removed(outcome: Any, session: TextClient, command: MetaCommand) -> Reply:
    """Encode what became of md."""
    if outcome.__class__ is MetaAnswer:
        return _passed_on(outcome, command)
    if isinstance(outcome, MetaWrite):
        return b"%b%b\r\n" % (outcome.value.encode(), _given_without_document(command))
    if not isinstance(outcome, Document):
        return session.refuse_meta(outcome)
    return b"" if command.quiet else b"HD%b\r\n" % _given_without_document(command)


def _ma(session: TextClient, command: MetaCommand) -> Reply:
    return then(_ask(session, command), _counted, session, command)


def _counted(outcome: Any, session: TextClient, command: MetaCommand) -> Reply:
    """Encode what became of ma."""
    if outcome.__class__ is MetaAnswer:
        return _passed_on(outcome, command)
    if isinstance(outcome, MetaWrite):
        return b"%b%b\r\n" % (outcome.value.encode(), _given_without_document(command))
    if not isinstance(outcome, MetaRead):
        return session.refuse_meta(outcome)
    if command.quiet:
        return b""
    given = _given(session, command, _OF_COUNTERS, outcome.document, outcome)
    if b"v" not in command.letters:
        return b"HD%b\r\n" % given
    value = outcome.document.value
    return b"VA %d%b\r\n%b\r\n" % (len(value), given, value)


# Looking


def _me(session: TextClient, command: MetaCommand) -> Reply:
    return then(_ask(session, command), _told, session, command)


def _told(outcome: Any, session: TextClient, command: MetaCommand) -> Reply:
    """Encode what is known of a document."""
    if outcome.__class__ is MetaAnswer:
        return _passed_on(outcome, command)
    if outcome is None:
        return b"EN\r\n"
    if not isinstance(outcome, MetaRead):
        return session.refuse_meta(outcome)
    document, now = outcome.document, session.server.now()
    size = item_size(command.key, document)
    # The key alone, without the letter that gives it back elsewhere.
    key = meta_key(command.key, binary=b"b" in command.letters)[1:].removesuffix(b" b")
    return b"ME %b exp=%d la=%d cas=%d fetch=%b cls=%d size=%d\r\n" % (
        key,
        _ttl(document.expires_at, now),
        _since(accessed_at(document), now),
        _cas_of(session, document, None, 0.0),
        b"yes" if document.marks & Mark.FETCHED else b"no",
        slab_class(size),
        size,
    )


META_HANDLERS: dict[str, Callable[[TextClient, Any], Reply]] = {
    "mg": _mg,
    "ms": _ms,
    "md": _md,
    "ma": _ma,
    "me": _me,
}
