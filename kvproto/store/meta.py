"""The rules of memcached's meta commands, beside those of `kvproto.store.rules`.

What they know of a document beyond other operations is in its ``marks``: that it is stale, that one
client has been told to fetch it anew (it "won"), that it was read, and when last.  A document that
is stored anew has none.  Reading only changes marks, so a store writes them back without giving
the document another CAS (`Effect.MARK`).

Source: memcached 1.6.45, ``doc/protocol.txt``, ``proto_parser.c``, ``memcached.c``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kvproto.store.document import Document, Mark, Refusal, accessed_at, marks_at
from kvproto.store.expiry import RELATIVE_LIMIT_S, deadline
from kvproto.store.rules import (
    Counts,
    Decision,
    Effect,
    copied,
    count,
    counted_marks,
    fits,
    storing,
    tombstone,
)
from kvproto.wire.meta import MetaCommand

__all__ = ["RULES", "UNUSUAL", "MetaAnswer", "MetaRead", "MetaWrite", "nears_end"]

UNUSUAL = int(Mark.STALE | Mark.WON)
"""Marks of documents that mg tells more about."""


class MetaWrite(Enum):
    """What a meta command did not do; a document is the answer of one that did."""

    NOT_FOUND = "NF"
    EXISTS = "EX"
    NOT_STORED = "NS"


@dataclass(slots=True)
class MetaAnswer:
    """What a memcached server has answered, where the command was passed on to it.

    Attributes:
        line: Its line, without the line end, with the client's opaque.
        value: The value behind it, of ``VA``.
    """

    line: bytes
    value: bytes


@dataclass(slots=True)
class MetaRead:
    """What mg, ma and me found or made.

    Attributes:
        document: As it is now.
        before: When it expired until now, unix seconds, 0.0 for never; of one that was made, 0.0.
        marks: What was known of it before this command.
        accessed: When it was last read before this command, in unix seconds.
        won: Whether this client is the one to fetch it anew.
        made: Whether it was made by this command.
    """

    document: Document
    before: float
    marks: int
    accessed: int
    won: bool = False
    made: bool = False


_GET_HIT: Counts = ("get_hits",)
_GET_MISS: Counts = ("get_misses",)
_TOUCH_HIT: Counts = ("cmd_touch", "touch_hits")
_SET: Counts = ("cmd_set",)


def _expiry_after(command: MetaCommand, expires_at: float, now: float, *, made: bool) -> float:
    """Return when a document expires once the flags T and N have been done, in their order."""
    for letter in command.letters:
        if letter == _T and command.expiry is not None:
            expires_at = deadline(command.expiry, now)
        elif letter == _N and made and command.vivify is not None:
            expires_at = deadline(command.vivify, now)
    return expires_at


_N, _R, _T = b"NRT"


def _recache(command: MetaCommand, expires_at: float, now: float) -> bool:
    """Return whether a document is near enough to its end to be fetched anew."""
    if command.recache is None:
        return False
    letters = command.letters
    if _T in letters and letters.index(_T) < letters.index(_R):
        expires_at = deadline(command.expiry or 0, now)
    return nears_end(expires_at, now, command.recache)


def nears_end(expires_at: float, now: float, recache: int) -> bool:
    """Return whether less is left until a moment than ``R`` says, an expiry as clients give it.

    What is left is counted as ``t`` tells it, in whole seconds, rounded up.
    """
    below = recache if recache <= RELATIVE_LIMIT_S else recache - now
    return expires_at != 0.0 and max(0, math.ceil(expires_at - now)) < below


def read(
    old: Document | None, now: float, command: MetaCommand
) -> Decision[MetaRead | Refusal | None]:
    """Do mg: read, and what its flags ask for besides."""
    if old is None:
        if command.vivify is None:
            return Decision(None, counts=_GET_MISS)
        marks: int = Mark.WON
        if b"u"[0] not in command.letters:
            marks |= Mark.FETCHED
        made = Document(b"", cas=command.new_cas or 0, marks=marks_at(marks, now))
        made.expires_at = _expiry_after(command, 0.0, now, made=True)
        answer = MetaRead(made, 0.0, 0, 0, won=True, made=True)
        return _storing(answer, made, now, _TOUCH_HIT if _T in command.letters else _GET_HIT)
    touches = command.expiry is not None
    if touches and old.locked_until:
        return Decision(Refusal.LOCKED)
    won = not old.marks & Mark.WON and bool(
        old.marks & Mark.STALE or _recache(command, old.expires_at, now)
    )
    marks = old.marks | (Mark.WON if won else 0)
    if b"u"[0] not in command.letters:
        marks = marks_at(marks | Mark.FETCHED, now)
    counts = _TOUCH_HIT if touches else _GET_HIT
    if not touches and marks == old.marks:
        return Decision(_found(old, old), counts=counts)
    new = copied(old, old.locked_until)
    new.marks = marks
    answer = _found(new, old, won=won)
    if not touches:
        return Decision(answer, Effect.MARK, new, counts)
    # It keeps its CAS: to memcached this is no mutation.
    new.seqno = 0
    new.expires_at = _expiry_after(command, old.expires_at, now, made=False)
    return _storing(answer, new, now, counts, in_place=True)


def _found(new: Document, old: Document, *, won: bool = False) -> MetaRead:
    return MetaRead(new, old.expires_at, old.marks, accessed_at(old), won=won)


def _storing(
    answer: Any, document: Document, now: float, counts: Counts, *, in_place: bool = False
) -> Decision[Any]:
    decision: Decision[Any] = storing(document, now, counts, in_place=in_place)
    decision.answer = answer
    return decision


def _check(old: Document, command: MetaCommand, counts: Counts) -> tuple[Any, Counts]:
    """Compare the CAS that a client gave with that of a document."""
    cas = command.cas
    if old.locked_until and cas != old.cas:
        return Refusal.LOCKED, counts
    if cas is None:
        return None, counts
    if cas != old.cas:
        return MetaWrite.EXISTS, (*counts, "cas_badval")
    return None, (*counts, "cas_hits")


def write(old: Document | None, now: float, command: MetaCommand) -> Decision[Any]:
    """Do ms, in any of its modes."""
    mode = command.mode or _SETTING
    new = Document(command.value, command.client_flags, command.new_cas or 0)
    new.marks = marks_at(0, now)
    if mode in _EXTENDING:
        return _extend(old, now, command, new)
    new.expires_at = deadline(command.expiry or 0, now)
    if mode == _ADDING:
        if old is not None:
            return Decision(MetaWrite.NOT_STORED, counts=_SET)
        return storing(new, now, _SET)
    if old is None:
        if command.cas is not None:
            return Decision(MetaWrite.NOT_FOUND, counts=(*_SET, "cas_misses"))
        if mode == _REPLACING:
            return Decision(MetaWrite.NOT_STORED, counts=_SET)
        return storing(new, now, _SET)
    new.xattrs = old.xattrs
    refusal, counts = _check(old, command, _SET)
    late = refusal is MetaWrite.EXISTS and command.cas is not None and 0 < command.cas < old.cas
    if late and b"I"[0] in command.letters:
        # What comes late is kept as stale, for others to see until somebody fetches it anew.
        new.expires_at = old.expires_at
        new.marks |= Mark.STALE | old.marks & Mark.WON
        return storing(new, now, (*_SET, "cas_hits"))
    if refusal is not None:
        return Decision(refusal, counts=counts)
    return storing(new, now, counts)


_SETTING, _ADDING, _APPENDING, _REPLACING, _PREPENDING = b"SEARP"
_EXTENDING = frozenset((_APPENDING, _PREPENDING))


def _extend(old: Document | None, now: float, command: MetaCommand, new: Document) -> Decision[Any]:
    """Do ms in the modes append and prepend."""
    if old is None:
        if command.vivify is None:
            return Decision(MetaWrite.NOT_STORED, counts=_SET)
        new.expires_at = deadline(command.vivify, now)
        return storing(new, now, _SET)
    if command.cas or old.locked_until:
        refusal, counts = _check(old, command, _SET)
        if refusal is not None:
            return Decision(refusal, counts=counts)
    behind = command.mode == _APPENDING
    new.value = old.value + command.value if behind else command.value + old.value
    new.flags, new.expires_at, new.xattrs = old.flags, old.expires_at, old.xattrs
    return storing(new, now, _SET)


def _changed(old: Document, command: MetaCommand) -> Document:
    """Return a copy that will have another CAS: the client's, or one of the store's."""
    new = copied(old, old.locked_until)
    new.cas, new.seqno, new.kind = command.new_cas or 0, 0, 0
    return new


def remove(old: Document | None, now: float, command: MetaCommand) -> Decision[Any]:
    """Do md: delete, or empty (``x``), or mark as stale (``I``)."""
    if old is None:
        return Decision(MetaWrite.NOT_FOUND, counts=("delete_misses",))
    refusal, _ = _check(old, command, ())
    if refusal is not None:
        counts = ("delete_misses",) if refusal is MetaWrite.EXISTS else ()
        return Decision(refusal, counts=counts)
    stale, empty = (letter in command.letters for letter in b"Ix")
    if not stale and not empty:
        grave = tombstone(old, Document(b""), now)
        return Decision(grave, Effect.DELETE, grave, ("delete_hits",))
    new = _changed(old, command)
    if empty:
        new.value, new.flags, new.datatype = b"", 0, 0
        new.marks = marks_at(0, now)
        new.expires_at = deadline(command.expiry or 0, now)
        if not stale and not command.new_cas:
            new.cas = old.cas
    if stale:
        new.marks = (new.marks | Mark.STALE) & ~Mark.WON
        if command.expiry is not None:
            new.expires_at = deadline(command.expiry, now)
    return storing(new, now, () if stale else ("delete_hits",), in_place=not empty)


def calculate(old: Document | None, now: float, command: MetaCommand) -> Decision[Any]:
    """Do ma: add to a counter or subtract from it, or make it."""
    down = command.mode in b"D-" and command.mode != 0
    name = "decr" if down else "incr"
    if old is None:
        if command.vivify is None:
            return Decision(MetaWrite.NOT_FOUND, counts=(f"{name}_misses",))
        new = Document(b"%d" % command.initial, 0, command.new_cas or 0, marks=marks_at(0, now))
        new.expires_at = _expiry_after(command, 0.0, now, made=True)
        return _storing(MetaRead(new, 0.0, 0, 0, made=True), new, now, ())
    if old.locked_until and command.cas != old.cas:
        return Decision(Refusal.LOCKED)
    # An empty value is no number whatever its CAS, as memcached has it.
    if old.value and command.cas and command.cas != old.cas:
        return Decision(MetaWrite.EXISTS)
    value = count(old.value, -command.delta if down else command.delta)
    if value is None:
        return Decision(Refusal.NOT_A_NUMBER)
    new = _changed(old, command)
    new.value = value
    new.marks = counted_marks(old, value)
    new.expires_at = _expiry_after(command, old.expires_at, now, made=False)
    answer = _found(new, old)
    return _storing(answer, new, now, (f"{name}_hits",), in_place=fits(old, value))


def look(old: Document | None, now: float, command: MetaCommand) -> Decision[MetaRead | None]:
    """Do me: tell about a document, and leave no trace."""
    return Decision(None if old is None else _found(old, old))


RULES = {"mg": read, "ms": write, "md": remove, "ma": calculate, "me": look}
"""The rule of each meta command."""
