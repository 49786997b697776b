"""JSON as text: where things are in it, without changing what nobody asked to change.

Values go in and out as the text that they are, so ``1.0``, ``1e400``, integers of any length,
the order of keys and white space survive.  Nothing is built from a document but positions; the
skipping of a value is done by the standard library's C scanner.

Positions are indexes into the decoded text.  All functions but `kind_of` and `check_value` want
valid JSON.

Source: RFC 8259; depth limits: kv_engine ``docs/SubDocument.md`` (32 levels, a scalar is one).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import IntEnum
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import make_scanner

from kvproto.store.document import Document
from kvproto.store.paths import PathRefused
from kvproto.wire.subdoc_terms import PathStatus

__all__ = [
    "MAX_LEVELS",
    "Kind",
    "check_value",
    "children",
    "count",
    "end_of",
    "is_json",
    "kind_of",
    "skip_space",
    "splice",
]

MAX_LEVELS = 32
"""Levels of nesting that sub-document operations accept; a scalar is one level."""


class Kind(IntEnum):
    """What a value is to sub-document operations."""

    UNKNOWN = 0
    OPAQUE = 1
    JSON = 2
    TOO_DEEP = 3


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


# Numbers are handed over as text: that costs least and knows no limit of digits.
_scan = make_scanner(
    json.JSONDecoder(  # type: ignore[arg-type]
        parse_float=str, parse_int=str, parse_constant=_refuse_constant
    )
)
_scan_pairs = make_scanner(
    json.JSONDecoder(  # type: ignore[arg-type]
        object_pairs_hook=lambda pairs: pairs, parse_float=str, parse_int=str
    )
)
_space = re.compile(r"[ \t\n\r]*").match
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_comma = re.compile(r"[ \t\n\r]*,[ \t\n\r]*").match
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_BOILED = bytes(byte if byte in b"[]{}" else ord("s") for byte in range(256))


def skip_space(text: str, at: int) -> int:
    """Return the position of the next character that is no white space."""
    match = _space(text, at)
    assert match is not None
    return match.end()


def end_of(text: str, start: int) -> int:
    """Return where the value that begins at ``start`` ends.

    Raises:
        ValueError: There is no valid value.
        RecursionError: It is nested a thousand levels deep.
    """
    try:
        end: int = _scan(text, start)[1]
    except StopIteration:
        raise ValueError(start) from None
    return end


def levels_of(text: str) -> int:
    """Return how deep a valid text is nested, a scalar or empty container counted as one level.

    Everything but brackets is boiled down to ``s``; then, level by level from the inside,
    ``[s]`` becomes ``s``.  All in C, so a large document costs no more than parsing it does.
    """
    rest = _STRING.sub("s", text).encode().translate(_BOILED, b" \t\n\r,:")
    rest = _squeeze(rest.replace(b"[]", b"s").replace(b"{}", b"s"))
    level = 1
    while rest != b"s":
        rest = _squeeze(rest.replace(b"[s]", b"x").replace(b"{s}", b"x").replace(b"x", b"s"))
        level += 1
    return level


def _squeeze(text: bytes) -> bytes:
    while b"ss" in text:
        text = text.replace(b"ss", b"s")
    return text


def _is_deeper(text: str, levels: int) -> bool:
    brackets = text.count("[") + text.count("{")
    return brackets >= levels and levels_of(text) > levels


def kind_of(value: bytes) -> Kind:
    """Say whether bytes are one JSON value, and whether it is too deep to work on."""
    try:
        text = value.decode()
        if skip_space(text, end_of(text, skip_space(text, 0))) != len(text):
            return Kind.OPAQUE
    except RecursionError:
        return Kind.TOO_DEEP
    except ValueError:
        return Kind.OPAQUE
    return Kind.TOO_DEEP if _is_deeper(text, MAX_LEVELS) else Kind.JSON


def kind(document: Document) -> Kind:
    """Return the kind of a document's value, found out once and kept on the document."""
    if document.kind == Kind.UNKNOWN:
        document.kind = kind_of(document.value)
    return Kind(document.kind)


def is_json(document: Document) -> bool:
    """Say whether a document is JSON, for the datatype of a response.

    The first call for a document parses its value (10 to 20 µs for each KiB), later ones look it
    up; so a session asks only for clients that have negotiated JSON.
    """
    return document.kind >= Kind.JSON if document.kind else kind(document) >= Kind.JSON


def check_value(value: bytes, levels: int, *, several: bool = False, scalar: bool = False) -> str:
    """Return a value to insert as text.

    Args:
        value: What the client sent.
        levels: How many levels it may have.
        several: Whether ``1,2,3`` may stand for three array elements.
        scalar: Whether only a string, number, true, false or null will do.

    Raises:
        PathRefused: CANNOT_INSERT or VALUE_TOO_DEEP.
    """
    try:
        text = value.decode()
        at = skip_space(text, end_of(text, skip_space(text, 0)))
        while several and text[at : at + 1] == ",":
            at = skip_space(text, end_of(text, skip_space(text, at + 1)))
    except RecursionError:
        raise PathRefused(PathStatus.VALUE_TOO_DEEP) from None
    except ValueError:
        raise PathRefused(PathStatus.CANNOT_INSERT) from None
    if at != len(text) or (scalar and text[skip_space(text, 0)] in "[{"):
        raise PathRefused(PathStatus.CANNOT_INSERT)
    if levels < 1 or _is_deeper(text, levels):
        raise PathRefused(PathStatus.VALUE_TOO_DEEP)
    return text


def children(text: str, container: int) -> Iterator[tuple[str | int, int, int]]:
    """Go through an array or object.

    Args:
        text: Valid JSON.
        container: Position of the opening bracket.

    Yields:
        Name or index, where the entry begins (its name, in an object), where its value begins.
    """
    at = skip_space(text, container + 1)
    if text[at] in "}]":
        return
    is_object = text[container] == "{"
    name: str | int = -1
    entry = at
    while True:
        if is_object:
            name, at = scanstring(text, at + 1, True)
            at = _colon(text, at).end()  # type: ignore[union-attr]
        else:
            name += 1  # type: ignore[operator]
        yield name, entry, at
        comma = _comma(text, _scan(text, at)[1])
        if comma is None:
            return
        entry = at = comma.end()


def count(text: str, container: int) -> int:
    """Return how many entries an array or object has."""
    return len(_scan_pairs(text, container)[0])


def splice(text: str, start: int, end: int, new: str) -> str:
    """Put new text in the place of a span."""
    return text[:start] + new + text[end:]
