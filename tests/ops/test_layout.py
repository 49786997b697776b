"""How text fits a terminal, and when it has colours."""

from __future__ import annotations

import io
import os
import pty
import re
import termios

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.layout import (
    NARROWEST,
    WIDTH,
    Field,
    Piece,
    Row,
    Style,
    Table,
    Text,
    has_colours,
    lay_out,
    width_of,
)
from kvproto.ops.render import render
from tests.examples import examples
from tests.ops.material import listener, row, status

SGR = re.compile(r"\x1b\[[0-9;]*m")


class TerminalTests(SynchronousTestCase):
    """What is asked of the terminal and of the environment."""

    def terminal(self, columns: int = 100) -> io.TextIOWrapper:
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        termios.tcsetwinsize(theirs, (24, columns))
        stream = open(theirs, "w", encoding="utf-8")  # noqa: SIM115
        self.addCleanup(stream.close)
        return stream

    def test_width(self) -> None:
        """The terminal's, unless COLUMNS says another; 80 in a pipe or where nobody says."""
        without = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self.patch(os, "environ", without)
        self.assertEqual(width_of(self.terminal(133)), 133)
        self.assertEqual(width_of(self.terminal(0)), WIDTH)
        self.assertEqual(width_of(io.StringIO()), WIDTH)
        for columns, width in (("45", 45), ("0", WIDTH), ("wide", WIDTH), ("", WIDTH)):
            self.patch(os, "environ", {**without, "COLUMNS": columns})
            self.assertEqual(width_of(io.StringIO()), width)

    def test_colours(self) -> None:
        """On a terminal, unless somebody does not want them; elsewhere where somebody insists."""
        terminal, pipe = self.terminal(), io.StringIO()
        for environment, there, here in (
            ({"TERM": "xterm"}, True, False),
            ({"TERM": "dumb"}, False, False),
            ({}, False, False),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False, False),
            ({"TERM": "xterm", "NO_COLOR": ""}, True, False),
            ({"TERM": "xterm", "CLICOLOR": "0"}, False, False),
            ({"TERM": "xterm", "CLICOLOR": "1"}, True, False),
            ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True, True),
            ({"TERM": "xterm", "CLICOLOR_FORCE": "0"}, True, False),
            ({"TERM": "xterm", "CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False, False),
        ):
            self.assertEqual(has_colours(terminal, environment), there, environment)
            self.assertEqual(has_colours(pipe, environment), here, environment)


class LayoutTests(SynchronousTestCase):
    """Pieces become lines."""

    TABLE = Table(
        (">ID", "PEER", "USER", "NOTE"),
        [Row((1, "192.0.2.1:40000", "alice", "n"), note="it does not answer")],
        {"PEER": 8},
        dispensable=("NOTE", "USER"),
    )

    def test_table(self) -> None:
        """Columns are narrowed, then left out, then each row becomes a list."""
        for width, first in (
            (40, "ID PEER            USER  NOTE"),
            (26, "ID PEER         USER  NOTE"),
        ):
            self.assertEqual(lay_out([self.TABLE], width)[0], first)
        many = Table((">ID", "PEER"), [Row((n, "a" * 30)) for n in range(2)])
        self.assertEqual(
            lay_out([many], 25),
            [
                "  id           0",
                *["  peer         aaaaaaaaaa", "        aaaaaaaaaaaaaaaaa", "        aaa"],
                "",
                "  id           1",
                *["  peer         aaaaaaaaaa", "        aaaaaaaaaaaaaaaaa", "        aaa"],
            ],
        )

    def test_left_out(self) -> None:
        """The first of the dispensable columns goes first, and no other than needed."""
        table = Table(("A", "BBBBBBBBBB", "CCCCCCCCCC"), [Row((1, 2, 3))], dispensable=("A",))
        self.assertEqual(lay_out([table], 24)[0], "A BBBBBBBBBB CCCCCCCCCC")
        wider = Table(("A", "BBBBBBBBBB", "CCCCCCCCCCCC"), [Row((1, 2, 3))], dispensable=("A",))
        self.assertEqual(lay_out([wider], 24)[0], "BBBBBBBBBB CCCCCCCCCCCC")

    def test_whole(self) -> None:
        """What scripts read stays on one line."""
        self.assertEqual(lay_out([Text("a b " * 30, whole=True)], 40), [("a b " * 30).rstrip()])

    def test_colours(self) -> None:
        """They change nothing but the colour; what is bad is red, all its lines."""
        pieces: list[Piece] = [
            Text("good", Style.GOOD),
            Field("x", "word " * 30, Style.BAD),
            Text(),
        ]
        plain, coloured = lay_out(pieces, 40), lay_out(pieces, 40, colours=True)
        self.assertEqual([SGR.sub("", line) for line in coloured], plain)
        self.assertEqual(coloured[0], "\x1b[32mgood\x1b[0m")
        for line in coloured[1:-1]:
            self.assertTrue(line.startswith("\x1b[1;31m"))
        self.assertEqual(coloured[-1], "")

    def test_outside_words(self) -> None:
        """Nobody outside can colour anything, or move the cursor."""
        pieces: list[Piece] = [
            Text("\x1b[2J"),
            Field("l\x1b", "v\x9b31m"),
            Table(("H",), [Row(("\x1b[1m",))]),
        ]
        for line in lay_out(pieces, 80):
            self.assertTrue(line.isprintable(), line)

    @given(st.integers(0, 300), st.booleans())
    @examples(50)
    def test_any_width(self, width: int, colours: bool) -> None:
        """No line of a status or a list is wider than the terminal, down to the narrowest."""
        failing = listener("data-1" * 9, error="in use " * 9, retry_in_s=4.2, attempts=3)
        rows = [row(10**6, peer="[2001:db8::1:2:3:4]:40000", user="u" * 50) for _ in range(2)]
        for command, answer in (
            ("status", status(listeners=(listener(), failing))),
            ("connections", {"total": 9, "shown": 2, "connections": [
                {**one, "deadline_in_s": 1.0} for one in rows
            ]}),
        ):  # fmt: skip
            text = render(command, {"ok": True, **answer}, width, colours=colours)
            for line in SGR.sub("", text).splitlines():
                self.assertLessEqual(len(line), max(width, NARROWEST), line)
