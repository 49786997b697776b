r"""JSON as text: where things are in it, without changing what nobody asked to change.

Values go in and out as the bytes that they are, so ``1.0``, ``1e400``, integers of any length, the
order of names and white space survive.  Nothing is built from a document but positions, which are
indexes into its bytes.  `Text` wants valid JSON; whether bytes are that is
`kvproto.store.jsoncheck`'s to say, and `kind` keeps the answer on the document.

Theory.  In valid JSON, to skip a value is to find the bracket that closes it, and all that can hide
a bracket is a string.  So one regular expression takes everything that is balanced, as far as the
piece goes, and Python counts only the brackets of what reaches beyond it.

A path is followed in one pass.  For a name or an index that is plain: what comes before it is
skipped.  The last element (``[-1]``) is known only at the end of its array, so each element that
might be it is followed as if it were, and forgotten when another one comes; otherwise each of
thirty-one ``[-1]`` would read the same bytes again.

Source: RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvproto.store.document import Document
from kvproto.store.jsoncheck import Kind, kind_of
from kvproto.store.paths import Path, PathRefused
from kvproto.store.pieces import PIECE, STEP, Work, at_once
from kvproto.wire.subdoc_terms import MAX_PATH_BYTES, PathStatus

__all__ = ["Place", "Text", "check_value", "is_json", "kind", "splice"]


def kind(document: Document) -> Work[Kind]:
    """Return the kind of a document's value, found out once and kept on the document."""
    if document.kind == Kind.UNKNOWN:
        document.kind = yield from kind_of(document.value)
    return Kind(document.kind)


def is_json(document: Document) -> bool:
    """Return whether a document is JSON, for the datatype of a response.

    The first call for a document parses its value (5 to 40 µs for each KiB, 1 ms for nothing but
    brackets), later ones look it up; so a session asks only for clients that have negotiated JSON.
    """
    return (document.kind or at_once(kind(document))) >= Kind.JSON


def check_value(
    value: bytes, levels: int, *, several: bool = False, scalar: bool = False
) -> Work[None]:
    """Make sure that a value can be inserted.

    Args:
        value: What the client sent.
        levels: How many levels it may have.
        several: Whether ``1,2,3`` may stand for three array elements.
        scalar: Whether only a string, number, true, false or null will do.

    Raises:
        PathRefused: CANNOT_INSERT or VALUE_TOO_DEEP.
    """
    if several:
        found = yield from kind_of(b"[%b]" % value, levels + 1)
    else:
        found = yield from kind_of(value, levels)
    first = value.lstrip(_SPACES)[:1]
    if found is Kind.OPAQUE or not first or (scalar and first in {b"[", b"{"}):
        raise PathRefused(PathStatus.CANNOT_INSERT)
    if found is Kind.TOO_DEEP or levels < 1:
        raise PathRefused(PathStatus.VALUE_TOO_DEEP)


def splice(data: bytes, start: int, end: int, new: bytes) -> bytes:
    """Put new bytes in the place of a span."""
    view = memoryview(data)
    return b"".join((view[:start], new, view[end:]))


_SPACES = b" \t\n\r"
_SPACE = rb"[ \t\n\r]*+"
_STRING_TEXT = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_STRING = rb'"' + _STRING_TEXT + rb'"'
_NESTED = 31
_BALANCED = rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+"
for _ in range(_NESTED):
    _BALANCED = rb'(?:[^"\[\]{}]++|' + _STRING + rb"|[\[{]" + _BALANCED + rb"[\]}])*+"
_PLAIN = rb'[^"\[\]{},\s]++'
_VALUE = rb"(?:" + _PLAIN + rb"|" + _STRING + rb"|[\[{]" + _BALANCED + rb"[\]}])"
_NEXT = _SPACE + rb"," + _SPACE
_NAME = rb'"(' + _STRING_TEXT + rb')"' + _SPACE + rb":" + _SPACE

_balanced = re.compile(_BALANCED, re.DOTALL).match
_string_text = re.compile(_STRING_TEXT, re.DOTALL).match
_plain = re.compile(_PLAIN).match
_space = re.compile(_SPACE).match
_ELEMENT = re.compile(_VALUE + _NEXT, re.DOTALL)
_MEMBER = re.compile(_NAME + _VALUE + _NEXT, re.DOTALL)
_name_and_colon = re.compile(_NAME, re.DOTALL).match
_SCALAR = re.compile(rb"(" + _PLAIN + rb"|" + _STRING + rb")" + _NEXT, re.DOTALL)
_QUOTE, _COMMA = b'",'
_ARRAY, _OBJECT = b"[{"
_TOO_MANY = 1 << 60
_LONGEST_NAME = 6 * MAX_PATH_BYTES  # an escape has six bytes for one of the path


@dataclass(slots=True)
class Place:
    """How far a path leads.

    Attributes:
        steps: How many of its steps lead somewhere.
        entry: Where the last of them begins (its name, in an object).
        value: Where its value begins.
        end: Where its value ends, if that is known already; else 0.
    """

    steps: int
    entry: int
    value: int
    end: int = 0


@dataclass(slots=True)
class _Walk:
    """How far a container was walked through, and where in it is what was looked for.

    Attributes:
        wanted: Names or indexes that are noted when they come by.
        at: Where the next entry begins; the last one, when there are no more.
        value: Where the value of the last entry begins.
        done: How many entries come before it, in an array.
        ended: Whether there are no more.
        found: Where entries and their values begin.
    """

    wanted: frozenset[str | int]
    at: int
    value: int = 0
    done: int = 0
    ended: bool = False
    found: dict[str | int, tuple[int, int]] = field(default_factory=dict)


class Text:
    """One valid JSON document, and what was found out of it so far.

    Args:
        data: The document.
        paths: Steps of the paths that it will be asked for, so that what they have in common is
            read once; others may be asked for as well.
    """

    __slots__ = ("_escapes", "_left", "_paths", "_places", "_walks", "data")

    def __init__(self, data: bytes, paths: Sequence[tuple[str | int, ...]] = ()) -> None:
        self.data = data
        self._paths = paths
        self._walks: dict[int, _Walk] = {}
        self._left = PIECE
        self._escapes = b"\\" in data
        self._places: dict[tuple[str | int, ...], Place | PathStatus] = {}

    def _spent(self, size: int) -> bool:
        """Count work; return whether it is time to yield."""
        self._left -= size + STEP
        if self._left > 0:
            return False
        self._left = PIECE
        return True

    # -- following paths ------------------------------------------------------

    def locate(self, path: Path) -> Work[Place]:
        """Follow a path as far as it leads.

        Raises:
            PathRefused: MISMATCH where it wants an array and there is none, or an object;
                NOT_JSON where the whole document is a string.
        """
        steps = path.steps
        found = self._places.get(steps)
        if found is None:
            found = yield from self._follow_known(steps)
            self._places[steps] = found
        if not isinstance(found, Place):
            raise PathRefused(found)
        return found

    def found(self, path: Path) -> Work[Place]:
        """Follow a path to its end.

        Raises:
            PathRefused: MISMATCH, or NOT_FOUND.
        """
        place = yield from self.locate(path)
        if place.steps < len(path.steps):
            raise PathRefused(PathStatus.NOT_FOUND)
        return place

    def _follow_known(self, steps: tuple[str | int, ...]) -> Work[Place | PathStatus]:
        """Follow a path from where another one has come by, or from the root."""
        for done in range(len(steps) - 1, 0, -1) if self._places else ():
            known = self._places.get(steps[:done])
            if isinstance(known, Place) and known.steps == done:
                found, _ = yield from self._follow(steps, done, known.entry, known.value, False)
                return found
        root = (yield from self.after_space(0)) if self.data[0] in _SPACES else 0
        if self.data[root] == _QUOTE:
            return PathStatus.NOT_JSON  # to these operations, as in kv_engine
        found, _ = yield from self._follow(steps, 0, root, root, False)
        return found

    def _follow(
        self, steps: tuple[str | int, ...], done: int, entry: int, value: int, to_end: bool
    ) -> Work[tuple[Place | PathStatus, int]]:
        """Follow the rest of a path.

        Args:
            steps: All of its steps.
            done: How many have led here.
            entry: Where the entry that they have led to begins.
            value: Where its value begins.
            to_end: Whether the end of that value is wanted as well.

        Returns:
            Where the path leads, and the end of the value (0 when it is not wanted).
        """
        data = self.data
        if done == len(steps):
            end = (yield from self.end_of(value)) if to_end else 0
            return Place(done, entry, value, end), end
        if done and not to_end and self._paths:
            self._places.setdefault(steps[:done], Place(done, entry, value))
        if self._spent(0):
            yield
        step = steps[done]
        if data[value] != (_ARRAY if isinstance(step, int) else _OBJECT):
            return PathStatus.MISMATCH, (yield from self.end_of(value)) if to_end else 0
        found: Place | PathStatus = Place(done, entry, value)
        at = value + 1
        if data[at] in _SPACES:
            at = yield from self.after_space(at)
        if data[at] == data[value] + 2:
            return found, at + 1
        if step == -1:
            while True:
                at, _ = yield from self._skip(_ELEMENT, at, _TOO_MANY)
                found, end = yield from self._follow(steps, done + 1, at, at, True)
                at = yield from self._next(end)
                if not at:
                    break
            return found, (yield from self.after_space(end)) + 1
        walk = self._walks.get(value) if self._walks else None
        if walk is None or to_end or step not in walk.wanted:
            walk = _Walk(self._wanted(steps, done), at)
            if not to_end and self._paths:
                self._walks[value] = walk
        if isinstance(step, int):
            yield from self._to_element(walk, step)
        else:
            yield from self._to_member(walk, step)
        there = walk.found.get(step)
        if there is not None:
            found, end = yield from self._follow(steps, done + 1, *there, to_end)
        elif to_end:
            end = yield from self.end_of(walk.value)
        return found, (yield from self._leave(end, 1)) if to_end else 0

    def _wanted(self, steps: tuple[str | int, ...], done: int) -> frozenset[str | int]:
        """Return what will be asked of a container: this and that of paths that lead there too."""
        if not self._paths:
            return frozenset((steps[done],))
        way = steps[:done]
        others = (path[done] for path in self._paths if len(path) > done and path[:done] == way)
        return frozenset((steps[done], *others))

    def _to_element(self, walk: _Walk, index: int) -> Work[None]:
        """Walk through an array until an element has come by, or its end."""
        while index not in walk.found and not walk.ended:
            following = min(
                step for step in walk.wanted if isinstance(step, int) and step >= walk.done
            )
            at, count = yield from self._skip(_ELEMENT, walk.at, following - walk.done)
            walk.at, walk.done = at, walk.done + count
            if walk.done < following:
                at = yield from self._next((yield from self.end_of(walk.at)))
                if not at:
                    walk.ended, walk.value = True, walk.at
                    return
                walk.at, walk.done = at, walk.done + 1
            if walk.done == following:
                walk.found[following] = walk.at, walk.at
                if index != following:
                    yield from self._pass(walk)

    def _pass(self, walk: _Walk) -> Work[None]:
        """Walk past the element that has come by."""
        at = yield from self._next((yield from self.end_of(walk.at)))
        if at:
            walk.at, walk.done = at, walk.done + 1
        else:
            walk.ended, walk.value = True, walk.at

    def _to_member(self, walk: _Walk, wanted: str) -> Work[None]:
        """Walk through an object until a member has come by, or its end."""
        data = self.data
        names = {step.encode(): step for step in walk.wanted if isinstance(step, str)}
        at = walk.at
        while wanted not in walk.found and not walk.ended:
            start = at
            for match in _matches(_MEMBER, data, at):
                step = names.get(match[1])
                if step is None and self._escapes and b"\\" in match[1]:
                    if self._spent(STEP):
                        yield
                    step = names.get(_unescaped(match[1]))
                if step is not None and step not in walk.found:
                    named = _name_and_colon(data, at)
                    assert named is not None
                    walk.found[step] = at, named.end()
                    if step == wanted:
                        break
                at = match.end()
            else:
                if data[at] in _SPACES:  # the piece has cut it
                    at = yield from self.after_space(at)
                if self._spent(at - start):
                    yield
                at = yield from self._take_member(walk, names, at)
            walk.at = at

    def _take_member(self, walk: _Walk, names: dict[bytes, str], at: int) -> Work[int]:
        """Walk past a member that is not easy to take; return where the next one begins."""
        data = self.data
        named = _name_and_colon(data, at, at + PIECE)
        if named is not None and named.end() < at + PIECE:
            name, value = named[1], named.end()
        else:  # the piece has cut it
            name = data[at + 1 : (yield from self.end_of(at)) - 1]
            colon = yield from self.after_space(at + len(name) + 2)
            value = yield from self.after_space(colon + 1)
        step = names.get(_unescaped(name))
        if step is not None:
            walk.found.setdefault(step, (at, value))
        following = yield from self._next((yield from self.end_of(value)))
        if not following:
            walk.ended, walk.value = True, value
        return following or at

    # -- skipping -------------------------------------------------------------

    def _skip(self, entry: re.Pattern[bytes], at: int, most: int) -> Work[tuple[int, int]]:
        """Skip entries that others follow, as many as are easy to skip.

        Returns:
            Where the next entry begins, and how many were skipped.
        """
        skipped = 0
        while most > skipped:
            start = at
            matches = _matches(entry, self.data, at)
            last = deque(zip(range(1, most - skipped + 1), matches, strict=False), maxlen=1)
            if last:
                [(count, found)] = last
                skipped += count
                at = found.end()
                if self.data[at] in _SPACES:  # the piece has cut it
                    at = yield from self.after_space(at)
            # The next one may have been looked at up to the end of the piece, in vain.
            if self._spent(at - start + min(PIECE, len(self.data) - at) // 2):
                yield
            if at - start < PIECE // 2:
                break
        return at, skipped

    def _next(self, end: int) -> Work[int]:
        """Return where the entry behind one that ends at a position begins, 0 if none follows."""
        data, at = self.data, end
        if data[at] in _SPACES:
            at = yield from self.after_space(at)
        if data[at] != _COMMA:
            return 0
        at += 1
        return (yield from self.after_space(at)) if data[at] in _SPACES else at

    def after_space(self, at: int) -> Work[int]:
        """Return the position of the next byte that is no white space."""
        while True:
            found = _space(self.data, at, at + PIECE)
            assert found is not None
            if found.end() - at < PIECE:
                return found.end()
            at = found.end()
            if self._spent(PIECE):
                yield

    def end_of(self, start: int) -> Work[int]:
        """Return where the value that begins at a position ends."""
        data, at = self.data, start
        first = data[at]
        if first in b"[{":
            return (yield from self._leave(at + 1, 1))
        if first == _QUOTE:
            at += 1
            while True:
                found = _string_text(data, at, at + PIECE)
                assert found is not None
                if self._spent(found.end() - at):
                    yield
                at = found.end()
                if data[at] == _QUOTE:
                    return at + 1
        while True:
            found = _plain(data, at, at + PIECE)
            if found is None or found.end() - at < PIECE:
                return at if found is None else found.end()
            at = found.end()
            if self._spent(PIECE):
                yield

    def _leave(self, at: int, depth: int) -> Work[int]:
        """Return where a container ends, from a position that is some levels deep in it."""
        data = self.data
        while True:
            found = _balanced(data, at, at + PIECE)
            assert found is not None
            if self._spent(found.end() - at):
                yield
            at = found.end()
            first = data[at]
            if first == _QUOTE:
                at = yield from self.end_of(at)
            elif first in b"[{":
                # It reaches beyond the piece, so all of it may have been looked at in vain.
                depth += 1
                at += 1
                if self._spent(PIECE // 2):
                    yield
            elif first in b"]}":
                depth -= 1
                at += 1
                if not depth:
                    return at

    def before_space(self, at: int, start: int) -> Work[int]:
        """Go back from a position over white space, not beyond another position."""
        while at > start:
            piece = self.data[max(start, at - PIECE) : at]
            kept = piece.rstrip(_SPACES)
            at -= len(piece) - len(kept)
            if kept:
                break
            if self._spent(PIECE):
                yield
        return at

    # -- entries --------------------------------------------------------------

    def count(self, container: int) -> Work[int]:
        """Return how many entries an array or object has."""
        data = self.data
        entry = _ELEMENT if data[container] == _ARRAY else _MEMBER
        at = yield from self.after_space(container + 1)
        if data[at] == data[container] + 2:
            return 0
        total = 0
        while at:
            at, skipped = yield from self._skip(entry, at, _TOO_MANY)
            total += skipped + 1
            end = yield from self.end_of(at)
            if entry is _MEMBER:
                value = (yield from self.after_space(end)) + 1
                end = yield from self.end_of((yield from self.after_space(value)))
            at = yield from self._next(end)
        return total

    def has_scalar(self, array: int, wanted: bytes) -> Work[bool]:
        """Return whether an array of scalars has this one, spelt alike.

        Raises:
            PathRefused: MISMATCH: it has arrays or objects.
        """
        data = self.data
        at = yield from self.after_space(array + 1)
        if data[at] == _ARRAY + 2:
            return False
        same = False
        while at:
            start = at
            for found in _matches(_SCALAR, data, at):
                same = same or found[1] == wanted
                at = found.end()
            at = yield from self.after_space(at)  # the piece may have cut it
            if self._spent(at - start):
                yield
            if data[at] in b"[{":
                raise PathRefused(PathStatus.MISMATCH)
            end = yield from self.end_of(at)
            same = same or data[at:end] == wanted
            at = yield from self._next(end)
        return same


def _matches(entry: re.Pattern[bytes], data: bytes, at: int) -> Iterator[re.Match[bytes]]:
    """Match entries one behind the other, as far as a piece goes."""
    # Like ``finditer``, but not searching: the standard library's own `re.Scanner` uses it.
    scanner = entry.scanner(data, at, at + PIECE)  # type: ignore[attr-defined]
    return iter(scanner.match, None)


def _unescaped(name: bytes) -> bytes:
    """Return the name that JSON string text stands for; itself if no path can be as long."""
    if b"\\" not in name or len(name) > _LONGEST_NAME:
        return name
    unescaped: str = json.loads(b'"%b"' % name)
    return unescaped.encode("utf-8", "surrogatepass")
