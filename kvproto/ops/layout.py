"""Lines of text that fit a terminal: words that wrap, labelled values, tables; colours perhaps.

What is said is made elsewhere (`kvproto.ops.render`), as pieces; how wide it may be and whether
the reader sees colours is decided here.  Text from outside is shown with its control characters
spelled out, so that no peer can write to an operator's terminal.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TextIO

from kvproto.base.escape import printable

__all__ = ["WIDTH", "Field", "Piece", "Row", "Style", "Table", "Text", "has_colours", "lay_out",
           "styled_lines", "width_of"]  # fmt: skip

WIDTH = 80
"""Columns where nobody knows better: a pipe, a file, a terminal that does not say."""

NARROWEST = 24
"""Columns below which nothing is made narrower; the terminal then breaks the lines."""

LABEL = 15
"""Column in which labelled values begin."""


class Style(Enum):
    """What a line means, and the colour it has: SGR parameters, ECMA-48 8.3.117."""

    PLAIN = ""
    HEAD = "1"
    GOOD = "32"
    WARN = "33"
    BAD = "1;31"


@dataclass(frozen=True, slots=True)
class Text:
    """Words, wrapped.

    Attributes:
        text: They; ``""`` for an empty line.
        style: Their colour.
        indent: What stands before each line.
        whole: Whether it stays on one line, however long: it names a file or an address.
    """

    text: str = ""
    style: Style = Style.PLAIN
    indent: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """A value with its name before it, wrapped under itself."""

    label: str
    value: object
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, and what is to be said below it."""

    cells: Sequence[object]
    style: Style = Style.PLAIN
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Values in columns; where they do not fit, each row becomes a list of labelled values.

    Attributes:
        head: Names of the columns; one that starts with ``>`` is aligned to the right.
        rows: What is in them.
        least: Columns that may be made narrower, and how narrow.
        dispensable: Columns that are left out where there is no room, the first one first.
    """

    head: Sequence[str]
    rows: Sequence[Row]
    least: Mapping[str, int] = field(default_factory=dict)
    dispensable: Sequence[str] = ()


Piece = Text | Field | Table


def width_of(stream: TextIO) -> int:
    """Return how wide lines may be: ``COLUMNS``, or the terminal's width, or `WIDTH`."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except (OSError, ValueError, AttributeError):
        return WIDTH


def has_colours(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether to colour what goes to a stream.

    Source: no-color.org; bixense.com/clicolors.
    """
    if environment.get("NO_COLOR"):
        return False
    if environment.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    if environment.get("CLICOLOR") == "0" or environment.get("TERM", "dumb") == "dumb":
        return False
    return stream is not None and stream.isatty()  # None where a shell has closed it


def lay_out(pieces: Iterable[Piece], width: int = WIDTH, *, colours: bool = False) -> list[str]:
    """Return lines.

    Args:
        pieces: What they say.
        width: Columns.
        colours: Whether to say by colours what matters.
    """
    return [
        f"\x1b[{style.value}m{line}\x1b[0m" if colours and style.value and line else line
        for line, style in styled_lines(pieces, width)
    ]


def styled_lines(pieces: Iterable[Piece], width: int) -> list[tuple[str, Style]]:
    """Return lines, and what each means; arguments as for `lay_out`."""
    width = max(width, NARROWEST)
    return [(line.rstrip(), style) for piece in pieces for line, style in _lines(piece, width)]


def _table_lines(table: Table, width: int) -> list[tuple[str, Style]] | None:
    """Return the lines of a table, its head first; None where it does not fit."""
    head = list(table.head)
    cells = [
        [name.lstrip(">") for name in head],
        *([printable(str(cell)) for cell in row.cells] for row in table.rows),
    ]
    leaving = list(table.dispensable)
    while True:
        widths = _widths(head, cells, table.least, width)
        if widths is not None:
            break
        if not leaving:
            return None
        out = next(i for i, name in enumerate(head) if name.lstrip(">") == leaving[0])
        del leaving[0], head[out]
        for row in cells:
            del row[out]
    sides = [">" if name.startswith(">") else "<" for name in head]
    lines = [
        " ".join(
            f"{_shortened(cell, size):{side}{size}}"
            for cell, size, side in zip(row, widths, sides, strict=True)
        )
        for row in cells
    ]
    return [*zip(lines, [Style.HEAD, *(row.style for row in table.rows)], strict=True)]


def _lines(piece: Piece, width: int) -> list[tuple[str, Style]]:
    if isinstance(piece, Text) and piece.whole:
        return [(printable(piece.text), piece.style)]
    if isinstance(piece, Text):
        wrapped = textwrap.wrap(
            printable(piece.text),
            width,
            initial_indent=piece.indent,
            subsequent_indent=piece.indent,
        )
        return [(line, piece.style) for line in wrapped or [""]]
    if isinstance(piece, Field):
        return [(line, piece.style) for line in _labelled(piece.label, piece.value, width)]
    table = _table_lines(piece, width)
    if table is None:
        return _expanded(piece, width)
    lines = table[:1]
    for row, line in zip(piece.rows, table[1:], strict=True):
        lines.append(line)
        if row.note:
            lines += _lines(Text(row.note, row.style, "    "), width)
    return lines


def _labelled(label: str, value: object, width: int) -> list[str]:
    """Return ``label  value``, the value wrapped under itself; a SHA-256 fits 80 columns."""
    start = f"  {printable(label):<{LABEL - 3}} "
    return textwrap.wrap(
        printable(str(value)),
        width,
        initial_indent=start,
        subsequent_indent=" " * min(LABEL, width // 3),
        break_on_hyphens=False,
    ) or [start]


def _expanded(table: Table, width: int) -> list[tuple[str, Style]]:
    """Return each row as a list of labelled values, an empty line between two."""
    lines: list[tuple[str, Style]] = []
    for row in table.rows:
        if lines:
            lines.append(("", Style.PLAIN))
        for name, cell in zip(table.head, row.cells, strict=True):
            said = _labelled(name.lstrip(">").lower(), cell, width)
            lines += [(line, row.style) for line in said]
        if row.note:
            lines += _lines(Text(row.note, row.style, "    "), width)
    return lines


def _widths(
    head: Sequence[str], cells: Sequence[Sequence[str]], least: Mapping[str, int], width: int
) -> list[int] | None:
    """Return how wide each column is so that all fit, the widest narrowed first; None: never."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    spare = {
        i: max(0, widths[i] - least[name.lstrip(">")])
        for i, name in enumerate(head)
        if name.lstrip(">") in least
    }
    excess = sum(widths) + len(widths) - 1 - width
    if excess > sum(spare.values()):
        return None
    for _ in range(excess):
        widest = max(spare, key=spare.__getitem__)
        widths[widest] -= 1
        spare[widest] -= 1
    return widths


def _shortened(text: str, width: int) -> str:
    """Shorten text to a width, in its middle: both ends of an address tell something."""
    if len(text) <= width:
        return text
    front = (width - 2) // 2
    return f"{text[:front]}..{text[front + 2 - width :]}"
