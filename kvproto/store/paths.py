r"""Sub-document paths: `a.b[0].c`, taken apart.

Components are separated by dots, array elements are in brackets, backticks quote what would
otherwise separate, a doubled backtick is one.  A name is JSON string text without its quotes.

Source: kv_engine ``docs/SubDocument.md``, "Path"; the corner cases follow subjson's tests
(a trailing dot is ignored, ``[0].[1]`` is ``[0][1]``, ``\u`` escapes are refused).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from kvproto.wire.subdoc_terms import MAX_PATH_BYTES, PathStatus

__all__ = ["MAX_COMPONENTS", "Path", "PathRefused", "parse_path"]

MAX_COMPONENTS = 31
"""Components of a path; with the root they are the 32 levels that Couchbase allows."""

_SIMPLE = re.compile(r"[A-Za-z0-9_$ -]+(?:\.[A-Za-z0-9_$ -]+)*")
_INDEX = re.compile(r"\[(-1|[0-9]+)\]")
_BAD_IN_NAME = re.compile(r'["\x00-\x1f]|\\(?!["/\\bfnrt])')
_ESCAPE = re.compile(r"\\.")


class PathRefused(Exception):
    """One path of a request cannot be done.

    Args:
        status: Why.
    """

    def __init__(self, status: PathStatus) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True, frozen=True)
class Path:
    """A path, taken apart.

    Attributes:
        steps: Names and indexes from the root; -1 is the last element.
        texts: The names as JSON string text, to be put between quotes; "" for an index.
    """

    steps: tuple[str | int, ...]
    texts: tuple[str, ...]


@lru_cache(maxsize=256)  # programs ask for the same few again and again
def parse_path(path: bytes) -> Path:
    """Take a path apart.

    Raises:
        PathRefused: BAD_PATH for its syntax, PATH_TOO_BIG above 31 components or 1024 bytes.
    """
    if len(path) > MAX_PATH_BYTES:
        raise PathRefused(PathStatus.PATH_TOO_BIG)
    try:
        text = path.decode()
    except UnicodeDecodeError:
        raise PathRefused(PathStatus.BAD_PATH) from None
    if _SIMPLE.fullmatch(text):
        names = tuple(text.split("."))
        parsed = Path(names, names)
    else:
        parsed = _parse(text)
    if len(parsed.steps) > MAX_COMPONENTS:
        raise PathRefused(PathStatus.PATH_TOO_BIG)
    return parsed


def _parse(text: str) -> Path:
    steps: list[str | int] = []
    texts: list[str] = []
    at, end = 0, len(text)
    while at < end:
        if text[at] == "[":
            match = _INDEX.match(text, at)
            if match is None:
                raise PathRefused(PathStatus.BAD_PATH)
            steps.append(int(match[1]))
            texts.append("")
            at = match.end()
            if at < end and text[at] == ".":
                at += 1
            elif at < end and text[at] != "[":
                raise PathRefused(PathStatus.BAD_PATH)
        else:
            name_end = _end_of_name(text, at)
            _refuse_unescaped(text[at:name_end])
            name = _unquote(text[at:name_end])
            steps.append(json.loads(f'"{name}"') if "\\" in name else name)
            texts.append(name)
            at = name_end + 1 if text[name_end : name_end + 1] == "." else name_end
    return Path(tuple(steps), tuple(texts))


def _end_of_name(text: str, start: int) -> int:
    """Find where a name ends: at a dot or bracket outside backticks, or with the text."""
    quoted = False
    for at in range(start, len(text)):
        character = text[at]
        if character == "`":
            quoted = not quoted
        elif quoted:
            continue
        elif character in ".[":
            return at
        elif character == "]":
            raise PathRefused(PathStatus.BAD_PATH)
    if quoted:
        raise PathRefused(PathStatus.BAD_PATH)
    return len(text)


def _unquote(name: str) -> str:
    """Take the backticks off a name: those around it, then single ones; double ones stand."""
    if len(name) > 1 and name[0] == name[-1] == "`":
        name = name[1:-1]
    name = name.replace("``", "\0").replace("`", "").replace("\0", "`") if "`" in name else name
    if not name:
        raise PathRefused(PathStatus.BAD_PATH)
    return name


def _refuse_unescaped(name: str) -> None:
    """Make sure that a name can stand between quotes as it is."""
    if _BAD_IN_NAME.search(_ESCAPE.sub(_keep_bad_escapes, name)):
        raise PathRefused(PathStatus.BAD_PATH)


def _keep_bad_escapes(match: re.Match[str]) -> str:
    """Take a valid escape out of a text that is searched for what needs escaping."""
    return "" if match[0][1] in '"/\\bfnrt' else "\0"
