"""Whether bytes are JSON, and how deeply it is nested: in one pass, in pieces.

A pushdown automaton whose tokens are long: a regular expression takes as many entries of an array
or object as it can, whatever is nested at most `_NESTED` deep in them included; Python sees only
the containers that it leaves.  Strictly RFC 8259: UTF-8, no control characters in strings, no NaN.

Theory.  Every repetition is possessive, so nothing is ever tried twice at one place.  What a run
cannot take (the last entry of a container, one that is nested deeper or reaches beyond the piece)
Python opens by one level and goes on inside, so a byte is looked at no more than `_NESTED` + 2
times.
"""

from __future__ import annotations

import codecs
import re
from enum import IntEnum

from kvproto.store.pieces import PIECE, STEP, Work

__all__ = ["MAX_LEVELS", "Kind", "kind_of"]

MAX_LEVELS = 32
"""Levels of nesting that sub-document operations accept; a scalar is one level.

Source: kv_engine ``docs/SubDocument.md``."""

_MAX_OPEN = 1000
"""Levels beyond which nobody counts any more: too deep, whatever follows."""

_NESTED = 2

_SPACE = rb"[ \t\n\r]*+"
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_TEXT = rb'[^"\\\x00-\x1f]*+(?:' + _ESCAPE + rb'[^"\\\x00-\x1f]*+)*+'
_STRING = rb'"' + _TEXT + rb'"'
_PLAIN = rb"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+|true|false|null)"
_FLAT = rb"(?:" + _STRING + rb"|" + _PLAIN + rb"|\[" + _SPACE + rb"\]|\{" + _SPACE + rb"\})"
_NAME = _STRING + _SPACE + rb":" + _SPACE


def _nesting(value: bytes) -> bytes:
    """Return a pattern for what is nested one level deeper than another pattern's values."""
    array = rb"\[" + _SPACE + rb"(?:" + value + _separated(rb"\]") + rb")*+\]"
    members = rb"\{" + _SPACE + rb"(?:" + _NAME + value + _separated(rb"\}") + rb")*+\}"
    return rb"(?:" + _STRING + rb"|" + _PLAIN + rb"|" + array + rb"|" + members + rb")"


def _separated(close: bytes) -> bytes:
    """Return a pattern for what follows a value: a comma and another value, or the end."""
    return _SPACE + rb"(?:," + _SPACE + rb"(?!" + close + rb")|(?=" + close + rb"))"


_VALUE = _FLAT
for _ in range(_NESTED):
    _VALUE = _nesting(_VALUE)

_space = re.compile(_SPACE).match
_text = re.compile(_TEXT).match
_plain = re.compile(_PLAIN).match
_colon = re.compile(_SPACE + rb":" + _SPACE).match


def _run(entry: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?:" + entry + _SPACE + rb"," + _SPACE + rb")*+")


_ARRAY_END, _OBJECT_END = b"]}"
# Near the limit of levels only what is flat: there it matters how deep a value is.
_RUNS = {_ARRAY_END: (_run(_FLAT).match, _run(_VALUE).match)}
_RUNS[_OBJECT_END] = (_run(_NAME + _FLAT).match, _run(_NAME + _VALUE).match)
_QUOTE, _COMMA = b'",'
_SPACES = b" \t\n\r"


class Kind(IntEnum):
    """What a value is to sub-document operations."""

    UNKNOWN = 0
    OPAQUE = 1
    JSON = 2
    TOO_DEEP = 3


class _Opaque(Exception):
    """The bytes are no JSON."""


def kind_of(value: bytes, levels: int = MAX_LEVELS) -> Work[Kind]:
    """Return whether bytes are one JSON value, and whether it is too deep to work on.

    Args:
        value: The bytes.
        levels: Levels of nesting that are not too deep; a scalar or an empty container is one.
    """
    try:
        if not value.isascii():
            yield from _decode(value)
        deep = yield from _Check(value, levels).run()
    except (_Opaque, UnicodeDecodeError, IndexError):
        return Kind.OPAQUE
    return Kind.TOO_DEEP if deep else Kind.JSON


def _decode(value: bytes) -> Work[None]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(value), PIECE):
        decoder.decode(value[at : at + PIECE])
        yield
    decoder.decode(b"", True)


class _Check:
    """One pass over one value; an IndexError is an end where something had to follow."""

    __slots__ = ("_data", "_left", "_levels")

    def __init__(self, data: bytes, levels: int) -> None:
        self._data = data
        self._levels = levels
        self._left = PIECE

    def _spent(self, size: int) -> bool:
        """Count work; return whether it is time to yield."""
        self._left -= size + STEP
        if self._left > 0:
            return False
        self._left = PIECE
        return True

    def run(self) -> Work[bool]:
        """Check; return whether the value is too deep.

        Raises:
            _Opaque: It is no JSON.
            IndexError: It ends too early.
        """
        data, levels = self._data, self._levels
        ends = bytearray()  # what closes each container that is open
        deep = levels < 1
        at = yield from self._after_space(0)
        while True:
            start = at
            first = data[at]
            if first in b"[{":
                end = first + 2
                at += 1
                if data[at] in _SPACES:
                    at = yield from self._after_space(at)
                if data[at] != end:
                    ends.append(end)
                    deep = deep or len(ends) >= levels
                    if len(ends) >= _MAX_OPEN:
                        return True
                    at = yield from self._entries(at, end, len(ends))
                    continue
                at += 1
            elif first == _QUOTE:
                at = yield from self._after_string(at)
            else:
                found = _plain(data, at)
                if found is None:
                    raise _Opaque
                at = found.end()
            if self._spent(at - start):
                yield
            while True:
                if not ends:
                    at = yield from self._after_space(at)
                    if at != len(data):
                        raise _Opaque
                    return deep
                if data[at] in _SPACES:
                    at = yield from self._after_space(at)
                if data[at] == ends[-1]:
                    ends.pop()
                    at += 1
                    if self._spent(0):
                        yield
                elif data[at] == _COMMA:
                    at += 1
                    if data[at] in _SPACES:
                        at = yield from self._after_space(at)
                    at = yield from self._entries(at, ends[-1], len(ends))
                    break
                else:
                    raise _Opaque

    def _entries(self, at: int, end: int, open_: int) -> Work[int]:
        """Take entries that others follow; return where the next value begins."""
        data = self._data
        take = _RUNS[end][open_ + _NESTED < self._levels]
        while True:
            start = at
            found = take(data, at, at + PIECE)
            assert found is not None
            at = found.end()
            if data[at] in _SPACES:  # the piece has cut it
                at = yield from self._after_space(at)
            if self._spent(at - start):
                yield
            if at - start < PIECE // 2:  # else there may be more of the kind
                break
        if end == _OBJECT_END:
            if data[at] != _QUOTE:
                raise _Opaque
            at = yield from self._after_string(at)
            at = yield from self._after_space(at)
            if data[at : at + 1] != b":":
                raise _Opaque
            at = yield from self._after_space(at + 1)
        return at

    def _after_string(self, at: int) -> Work[int]:
        data = self._data
        at += 1
        while True:
            found = _text(data, at, at + PIECE)
            assert found is not None
            if self._spent(found.end() - at):
                yield
            if data[found.end()] == _QUOTE:
                return found.end() + 1
            if found.end() == at:
                raise _Opaque
            at = found.end()

    def _after_space(self, at: int) -> Work[int]:
        data = self._data
        while True:
            found = _space(data, at, at + PIECE)
            assert found is not None
            if found.end() - at < PIECE:
                return found.end()
            at = found.end()
            if self._spent(PIECE):
                yield
