"""Sub-document operations: what each does to a document.

Pure: bytes and specs in, bytes and results out; the store decides which document and whether to
keep the result.  A failing path raises, so nothing is ever half done.

Source: kv_engine ``docs/SubDocument.md``; the corner cases follow subjson's tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvproto.store.jsoncheck import MAX_LEVELS
from kvproto.store.jsontext import Place, Text, check_value, splice
from kvproto.store.paths import Path, PathRefused, parse_path
from kvproto.store.pieces import Work
from kvproto.wire.subdoc_terms import PathOp, PathStatus

__all__ = ["Edit", "look_up", "mutate"]


@dataclass(slots=True)
class Edit:
    """What one mutation made of a document, and what it answers (only a counter does)."""

    data: bytes
    answer: bytes | None = None


# -- looking up -------------------------------------------------------------------------------


def look_up(text: Text, op: int, path: bytes) -> Work[bytes]:
    """Answer one lookup.

    Args:
        text: The document.
        op: GET, EXISTS or GET_COUNT.
        path: Where; empty is the whole document.

    Raises:
        PathRefused: There is nothing, or nothing of the right type.
    """
    place = yield from text.found(parse_path(path))
    if op == PathOp.GET_COUNT:
        if text.data[place.value] not in b"[{":
            raise PathRefused(PathStatus.MISMATCH)
        return b"%d" % (yield from text.count(place.value))
    if op != PathOp.GET:
        return b""
    place.end = yield from _end(text, place)
    return text.data[place.value : place.end]


def _end(text: Text, place: Place) -> Work[int]:
    return place.end or (yield from text.end_of(place.value))


# -- changing ---------------------------------------------------------------------------------


def mutate(data: bytes, op: int, path: bytes, value: bytes, create_parents: bool) -> Work[Edit]:
    """Do one mutation.

    Args:
        data: A valid JSON document.
        op: One of the mutations of `PathOp` that have a path.
        path: Where.
        value: JSON text; ``1,2,3`` for several elements of an array; a counter's delta.
        create_parents: Whether missing objects on the way are made.

    Raises:
        PathRefused: It cannot be done.
    """
    return (yield from _MUTATIONS[op](Text(data), parse_path(path), value, create_parents))


def _store(text: Text, path: Path, value: bytes, create: bool, *, add: bool) -> Work[Edit]:
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    yield from check_value(value, MAX_LEVELS - len(path.steps))
    place = yield from text.locate(path)
    if isinstance(path.steps[-1], int):
        raise PathRefused(PathStatus.BAD_PATH)
    if place.steps < len(path.steps):
        return Edit((yield from _insert_member(text, place, path, value, create)))
    if add:
        raise PathRefused(PathStatus.EXISTS)
    end = yield from _end(text, place)
    return Edit(splice(text.data, place.value, end, value))


def _dict_add(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    return (yield from _store(text, path, value, create, add=True))


def _dict_upsert(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    return (yield from _store(text, path, value, create, add=False))


def _replace(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    yield from check_value(value, MAX_LEVELS - len(path.steps))
    place = yield from text.found(path)
    end = yield from _end(text, place)
    return Edit(splice(text.data, place.value, end, value))


def _remove(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    place = yield from text.found(path)
    data, start = text.data, place.entry
    end = yield from _end(text, place)
    after = yield from text.after_space(end)
    if data[after] == _COMMA:
        return Edit(splice(data, start, (yield from text.after_space(after + 1)), b""))
    before = yield from text.before_space(start, 0)
    return Edit(splice(data, before - 1 if data[before - 1] == _COMMA else start, end, b""))


def _push_last(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    yield from check_value(value, MAX_LEVELS - 1 - len(path.steps), several=True)
    place = yield from text.locate(path)
    if place.steps < len(path.steps):
        return Edit((yield from _insert_array(text, place, path, value, create)))
    _want_array(text, place)
    return Edit((yield from _insert_last(text, place.value, value)))


def _push_first(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    yield from check_value(value, MAX_LEVELS - 1 - len(path.steps), several=True)
    place = yield from text.locate(path)
    if place.steps < len(path.steps):
        return Edit((yield from _insert_array(text, place, path, value, create)))
    _want_array(text, place)
    return Edit((yield from _insert_before(text, place.value + 1, value)))


def _array_insert(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    yield from check_value(value, MAX_LEVELS - len(path.steps), several=True)
    last = path.steps[-1] if path.steps else -1
    if not isinstance(last, int) or last < 0:
        raise PathRefused(PathStatus.BAD_PATH)
    place = yield from text.locate(path)
    if place.steps == len(path.steps):
        return Edit((yield from _insert_before(text, place.entry, value)))
    if place.steps < len(path.steps) - 1 or last != (yield from text.count(place.value)):
        raise PathRefused(PathStatus.NOT_FOUND)
    return Edit((yield from _insert_last(text, place.value, value)))


def _add_unique(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    yield from check_value(value, MAX_LEVELS - 1 - len(path.steps), scalar=True)
    place = yield from text.locate(path)
    if place.steps < len(path.steps):
        return Edit((yield from _insert_array(text, place, path, value, create)))
    _want_array(text, place)
    if (yield from text.has_scalar(place.value, value.strip(b" \t\r\n"))):
        raise PathRefused(PathStatus.EXISTS)
    return Edit((yield from _insert_last(text, place.value, value)))


_DELTA = re.compile(rb"-?[1-9][0-9]{0,18}")
_INTEGER = re.compile(rb"-?[0-9]+")
_INT64 = range(-(1 << 63), 1 << 63)


def _counter(text: Text, path: Path, value: bytes, create: bool) -> Work[Edit]:
    delta = int(value) if _DELTA.fullmatch(value) else 0
    if not delta or delta not in _INT64:
        raise PathRefused(PathStatus.BAD_DELTA)
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    place = yield from text.locate(path)
    if place.steps < len(path.steps):
        answer = b"%d" % delta
        return Edit((yield from _insert_member(text, place, path, answer, create)), answer)
    end = yield from _end(text, place)
    number = text.data[place.value : end]
    if not _INTEGER.fullmatch(number):
        raise PathRefused(PathStatus.MISMATCH)
    # Longer texts are out of range for sure, and Python refuses to read very long ones.
    if len(number) > 20 or int(number) not in _INT64:
        raise PathRefused(PathStatus.NUMBER_RANGE)
    total = int(number) + delta
    if total not in _INT64:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    answer = b"%d" % total
    return Edit(splice(text.data, place.value, end, answer), answer)


_MUTATIONS: dict[int, Callable[[Text, Path, bytes, bool], Work[Edit]]] = {
    PathOp.DICT_ADD: _dict_add,
    PathOp.DICT_UPSERT: _dict_upsert,
    PathOp.REMOVE: _remove,
    PathOp.REPLACE: _replace,
    PathOp.ARRAY_PUSH_LAST: _push_last,
    PathOp.ARRAY_PUSH_FIRST: _push_first,
    PathOp.ARRAY_INSERT: _array_insert,
    PathOp.ARRAY_ADD_UNIQUE: _add_unique,
    PathOp.COUNTER: _counter,
}

_COMMA = ord(",")


def _want_array(text: Text, place: Place) -> None:
    if text.data[place.value : place.value + 1] != b"[":
        raise PathRefused(PathStatus.MISMATCH)


def _insert_array(text: Text, place: Place, path: Path, new: bytes, create: bool) -> Work[bytes]:
    """Make what is missing of a path, with an array at its end; only with ``create``."""
    if not create:
        raise PathRefused(PathStatus.NOT_FOUND)
    return (yield from _insert_member(text, place, path, b"[%b]" % new, create))


def _insert_member(text: Text, place: Place, path: Path, new: bytes, create: bool) -> Work[bytes]:
    """Make what is missing of a path, with a value at its end.

    Args:
        text: The document.
        place: How far the path leads; an object.
        path: The path.
        new: The value.
        create: Whether more than the last step may be made.
    """
    missing = path.steps[place.steps :]
    if (not create and len(missing) > 1) or any(isinstance(step, int) for step in missing):
        raise PathRefused(PathStatus.NOT_FOUND)
    names = [name.encode() for name in path.texts[place.steps :]]
    start = b'"%b":' % b'":{"'.join(names)
    return (yield from _insert_last(text, place.value, start + new + b"}" * (len(names) - 1)))


def _insert_last(text: Text, container: int, new: bytes) -> Work[bytes]:
    """Put an entry at the end of an array or object."""
    end = yield from text.end_of(container)
    at = yield from text.before_space(end - 1, container + 1)
    return splice(text.data, at, at, new if at == container + 1 else b"," + new)


def _insert_before(text: Text, at: int, new: bytes) -> Work[bytes]:
    """Put elements before the one that begins at, or follows, a position."""
    is_empty = text.data[(yield from text.after_space(at))] == ord("]")
    return splice(text.data, at, at, new if is_empty else new + b",")
