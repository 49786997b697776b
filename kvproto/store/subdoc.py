"""Sub-document operations: what each does to a text, and what may be asked together.

Pure: bytes and specs in, bytes and results out; the store decides which document and
whether to keep the result.  A failing path raises, so nothing is ever half done.

Source: kv_engine ``docs/SubDocument.md``; the corner cases follow subjson's tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvproto.store.jsontext import (
    MAX_LEVELS,
    check_value,
    children,
    count,
    end_of,
    skip_space,
    splice,
)
from kvproto.store.paths import Path, PathRefused, parse_path
from kvproto.wire.subdoc_terms import PathOp, PathStatus

__all__ = ["Edit", "look_up", "mutate"]


@dataclass(slots=True)
class Edit:
    """What one mutation made of a text, and what it answers (only a counter does)."""

    text: str
    answer: bytes | None = None


@dataclass(slots=True)
class _Place:
    """How far a path leads.

    Attributes:
        steps: How many of its steps lead somewhere.
        entry: Where the last of them begins (its name, in an object).
        value: Where its value begins.
    """

    steps: int
    entry: int
    value: int


def _locate(text: str, steps: tuple[str | int, ...]) -> _Place:
    """Follow a path as far as it leads.

    Raises:
        PathRefused: MISMATCH where it wants an array and there is none, or an object; NOT_JSON of
            a document that is a string, which for kv_engine is none.
    """
    entry = value = skip_space(text, 0)
    if text[value] == '"':
        raise PathRefused(PathStatus.NOT_JSON)
    for done, step in enumerate(steps):
        if text[value] != ("[" if isinstance(step, int) else "{"):
            raise PathRefused(PathStatus.MISMATCH)
        found = False
        for name, entry_, value_ in children(text, value):
            if step in (name, -1):
                found, last = True, (entry_, value_)
                if step != -1:
                    break
        if not found:
            return _Place(done, entry, value)
        entry, value = last
    return _Place(len(steps), entry, value)


# -- looking up -------------------------------------------------------------------------------


def look_up(text: str, op: int, path: bytes) -> bytes:
    """Answer one lookup.

    Args:
        text: A valid JSON document.
        op: GET, EXISTS or GET_COUNT.
        path: Where; empty is the whole document.

    Raises:
        PathRefused: There is nothing, or nothing of the right type.
    """
    parsed = parse_path(path)
    place = _locate(text, parsed.steps)
    if place.steps < len(parsed.steps):
        raise PathRefused(PathStatus.NOT_FOUND)
    if op == PathOp.GET_COUNT:
        if text[place.value] not in "[{":
            raise PathRefused(PathStatus.MISMATCH)
        return b"%d" % count(text, place.value)
    return text[place.value : end_of(text, place.value)].encode() if op == PathOp.GET else b""


# -- changing ---------------------------------------------------------------------------------


def mutate(text: str, op: int, path: bytes, value: bytes, create_parents: bool) -> Edit:
    """Do one mutation.

    Args:
        text: A valid JSON document.
        op: One of the mutations of `PathOp` that have a path.
        path: Where.
        value: JSON text; ``1,2,3`` for several elements of an array; a counter's delta.
        create_parents: Whether missing objects on the way are made.

    Raises:
        PathRefused: It cannot be done.
    """
    return _MUTATIONS[op](text, parse_path(path), value, create_parents)


def _store(text: str, path: Path, value: bytes, create: bool, *, add: bool) -> Edit:
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    new = check_value(value, MAX_LEVELS - len(path.steps))
    place = _locate(text, path.steps)
    if isinstance(path.steps[-1], int):
        raise PathRefused(PathStatus.BAD_PATH)
    if place.steps < len(path.steps):
        return Edit(_insert_member(text, place, path, new, create))
    if add:
        raise PathRefused(PathStatus.EXISTS)
    return Edit(splice(text, place.value, end_of(text, place.value), new))


def _dict_add(text: str, path: Path, value: bytes, create: bool) -> Edit:
    return _store(text, path, value, create, add=True)


def _dict_upsert(text: str, path: Path, value: bytes, create: bool) -> Edit:
    return _store(text, path, value, create, add=False)


def _replace(text: str, path: Path, value: bytes, create: bool) -> Edit:
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    new = check_value(value, MAX_LEVELS - len(path.steps))
    place = _found(text, path)
    return Edit(splice(text, place.value, end_of(text, place.value), new))


def _remove(text: str, path: Path, value: bytes, create: bool) -> Edit:
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    place = _found(text, path)
    start, end = place.entry, end_of(text, place.value)
    after = skip_space(text, end)
    if text[after] == ",":
        return Edit(splice(text, start, skip_space(text, after + 1), ""))
    before = _before_space(text, start)
    return Edit(splice(text, before - 1 if text[before - 1] == "," else start, end, ""))


def _push_last(text: str, path: Path, value: bytes, create: bool) -> Edit:
    new = check_value(value, MAX_LEVELS - 1 - len(path.steps), several=True)
    place = _locate(text, path.steps)
    if place.steps < len(path.steps):
        return Edit(_insert_member(text, place, path, f"[{new}]", create, whole=True))
    _want_array(text, place)
    return Edit(_insert_last(text, place.value, new))


def _push_first(text: str, path: Path, value: bytes, create: bool) -> Edit:
    new = check_value(value, MAX_LEVELS - 1 - len(path.steps), several=True)
    place = _locate(text, path.steps)
    if place.steps < len(path.steps):
        return Edit(_insert_member(text, place, path, f"[{new}]", create, whole=True))
    _want_array(text, place)
    return Edit(_insert_before(text, place.value + 1, new))


def _array_insert(text: str, path: Path, value: bytes, create: bool) -> Edit:
    new = check_value(value, MAX_LEVELS - len(path.steps), several=True)
    if not path.steps or not isinstance(path.steps[-1], int) or path.steps[-1] < 0:
        raise PathRefused(PathStatus.BAD_PATH)
    place = _locate(text, path.steps)
    if place.steps == len(path.steps):
        return Edit(_insert_before(text, place.entry, new))
    if place.steps < len(path.steps) - 1 or path.steps[-1] != count(text, place.value):
        raise PathRefused(PathStatus.NOT_FOUND)
    return Edit(_insert_last(text, place.value, new))


def _add_unique(text: str, path: Path, value: bytes, create: bool) -> Edit:
    new = check_value(value, MAX_LEVELS - 1 - len(path.steps), scalar=True)
    place = _locate(text, path.steps)
    if place.steps < len(path.steps):
        return Edit(_insert_member(text, place, path, f"[{new}]", create, whole=True))
    _want_array(text, place)
    wanted = new.strip(" \t\r\n")
    same = False
    for _, _, start in children(text, place.value):
        if text[start] in "[{":
            raise PathRefused(PathStatus.MISMATCH)
        same = same or text[start : end_of(text, start)] == wanted
    if same:
        raise PathRefused(PathStatus.EXISTS)
    return Edit(_insert_last(text, place.value, new))


_DELTA = re.compile(rb"-?[1-9][0-9]{0,18}")
_INTEGER = re.compile(r"-?[0-9]+")
_INT64 = range(-(1 << 63), 1 << 63)


def _counter(text: str, path: Path, value: bytes, create: bool) -> Edit:
    delta = int(value) if _DELTA.fullmatch(value) else 0
    if not delta or delta not in _INT64:
        raise PathRefused(PathStatus.BAD_DELTA)
    if not path.steps:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    place = _locate(text, path.steps)
    if place.steps < len(path.steps):
        answer = b"%d" % delta
        return Edit(_insert_member(text, place, path, answer.decode(), create), answer)
    end = end_of(text, place.value)
    number = text[place.value : end]
    if not _INTEGER.fullmatch(number):
        raise PathRefused(PathStatus.MISMATCH)
    # Longer texts are out of range for sure, and Python refuses to read very long ones.
    if len(number) > 20 or int(number) not in _INT64:
        raise PathRefused(PathStatus.NUMBER_RANGE)
    total = int(number) + delta
    if total not in _INT64:
        raise PathRefused(PathStatus.CANNOT_INSERT)
    return Edit(splice(text, place.value, end, str(total)), b"%d" % total)


_MUTATIONS: dict[int, Callable[[str, Path, bytes, bool], Edit]] = {
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


def _found(text: str, path: Path) -> _Place:
    """Follow a path to its end, or raise NOT_FOUND."""
    place = _locate(text, path.steps)
    if place.steps < len(path.steps):
        raise PathRefused(PathStatus.NOT_FOUND)
    return place


def _want_array(text: str, place: _Place) -> None:
    if text[place.value] != "[":
        raise PathRefused(PathStatus.MISMATCH)


def _insert_member(
    text: str, place: _Place, path: Path, new: str, create: bool, *, whole: bool = False
) -> str:
    """Make what is missing of a path, with a value at its end.

    Args:
        text: The document.
        place: How far the path leads; an object.
        path: The path.
        new: The value.
        create: Whether more than the last step may be made.
        whole: Whether even the last step may be made only with ``create``.
    """
    missing = path.steps[place.steps :]
    if not create and (whole or len(missing) > 1):
        raise PathRefused(PathStatus.NOT_FOUND)
    if any(isinstance(step, int) for step in missing):
        raise PathRefused(PathStatus.NOT_FOUND)
    names = path.texts[place.steps :]
    for name in reversed(names[1:]):
        new = f'{{"{name}":{new}}}'
    return _insert_last(text, place.value, f'"{names[0]}":{new}')


def _before_space(text: str, at: int) -> int:
    """Go back from a position over white space."""
    while text[at - 1] in " \t\r\n":
        at -= 1
    return at


def _insert_last(text: str, container: int, new: str) -> str:
    """Put an entry at the end of an array or object."""
    at = _before_space(text, end_of(text, container) - 1)
    return splice(text, at, at, new if at == container + 1 else f",{new}")


def _insert_before(text: str, at: int, new: str) -> str:
    """Put elements before the one that begins at, or follows, a position."""
    is_empty = text[skip_space(text, at)] == "]"
    return splice(text, at, at, new if is_empty else f"{new},")
