"""The command ``kvtls top``: who moves most, live on a terminal, or once for a pipe.

Blocking, with one thread that asks, so that a key is answered at once; knows no Twisted, because a
command has to start fast.
"""

from __future__ import annotations

import locale
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kvproto.ops.client import NoServiceError
from kvproto.ops.commands import TOP_ORDERS
from kvproto.ops.layout import Piece, Style, Text, has_colours, styled_lines
from kvproto.ops.render import top_pieces

__all__ = ["LISTED", "Ask", "can_be_live", "live", "repeat"]

Ask = Callable[[float, str, int], dict[str, Any]]
"""Called with seconds to measure, the order, and how many connections to list at most; returns the
answer.  Raises `NoServiceError`."""

LISTED = 20
"""Connections where no terminal says how many fit."""

KEYS = {order[0]: order for order in TOP_ORDERS if order != "total"} | {"b": "total"}
"""What sorts by what; ``t`` is traffic, ``b`` the bytes so far."""

FIRST_SECONDS = 0.3
"""How long is measured for the first picture: nobody likes to wait for it."""

AROUND = 5
"""Lines of the screen that are no connection."""

LOOK_SECONDS = 0.1
"""How often the screen looks for an answer, in seconds; a key is seen at once."""


def can_be_live() -> bool:
    """Return whether a screen can be shown: both ends are a terminal that knows its cursor."""
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        return False
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        return False
    try:
        import curses

        curses.setupterm()
    except (ImportError, curses.error):
        return False
    return True


def repeat(
    ask: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None], count: int
) -> dict[str, Any]:
    """Measure and show, again and again.

    Args:
        ask: Measures.
        show: Prints an answer.
        count: How often; 0: without end.

    Returns:
        The last answer: one that tells of a failure is the last, and not shown.
    """
    done = 0
    while True:
        answer = ask()
        if not answer["ok"]:
            return answer
        show(answer)
        done += 1
        if done == count:
            return answer


class _Asking(threading.Thread):
    """Asks all the time, as the keys have said last.

    Attributes:
        answer: The last one.
        trouble: Why there is no newer one, ``""`` when all is well.
    """

    def __init__(self, ask: Ask, interval: float, sort: str, limit: int, answer: Any) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._interval = interval
        self.sort = sort
        self.limit = limit
        self.answer: dict[str, Any] = answer
        self.trouble = ""
        self.number = 0

    def run(self) -> None:
        """Ask until the process ends."""
        while True:
            try:
                answer = self._ask(self._interval, self.sort, self.limit)
            except NoServiceError as error:
                self.trouble = str(error)
            else:
                if answer["ok"]:
                    self.answer, self.trouble = answer, ""
                else:
                    self.trouble = str(answer["error"]["message"])
            self.number += 1
            if self.trouble:
                time.sleep(self._interval)


def live(ask: Ask, interval: float, sort: str, limit: int | None) -> dict[str, Any]:
    """Show a screen until somebody types ``q`` or Control-C.

    Args:
        ask: Measures.
        interval: Seconds.
        sort: One of `TOP_ORDERS`, to begin with.
        limit: How many connections at most; None, 0: as many as fit.

    Returns:
        The last answer; the first when the service has refused that.

    Raises:
        NoServiceError: Nobody has answered the first time.
    """
    import curses

    first = ask(min(FIRST_SECONDS, interval), sort, limit or os.get_terminal_size().lines)
    if not first["ok"]:
        return first
    with suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "")
    asking = _Asking(ask, interval, sort, limit or 0, first)
    with suppress(KeyboardInterrupt):
        curses.wrapper(lambda window: _Screen(window, asking, limit).run())
    return asking.answer


class _Screen:
    """What curses shows."""

    def __init__(self, window: Any, asking: _Asking, limit: int | None) -> None:
        import curses

        self._curses = curses
        self._window = window
        self._asking = asking
        self._most = limit
        self._attributes = {Style.HEAD: curses.A_BOLD, Style.BAD: curses.A_BOLD}
        with suppress(curses.error):
            curses.curs_set(0)
        with suppress(curses.error):
            curses.use_default_colors()
            if has_colours(sys.stdout):
                for number, (style, colour) in enumerate(
                    ((Style.BAD, curses.COLOR_RED), (Style.WARN, curses.COLOR_YELLOW)), 1
                ):
                    curses.init_pair(number, colour, -1)
                    self._attributes[style] = curses.color_pair(number) | curses.A_BOLD
        window.timeout(int(LOOK_SECONDS * 1000))

    def run(self) -> None:
        """Show what there is to see, until ``q``."""
        asking = self._asking
        self._fit()
        asking.start()
        drawn = -1
        while True:
            if drawn != asking.number:
                drawn = asking.number
                self._draw()
            key = self._window.getch()
            if key in (ord("q"), ord("Q")):
                return
            if key == self._curses.KEY_RESIZE:
                self._fit()
                drawn = -1
            elif 0 < key < 256 and chr(key) in KEYS:
                asking.sort = KEYS[chr(key)]
                drawn = -1

    def _fit(self) -> None:
        """Ask for what fits: more would be listed in vain."""
        lines, _ = self._window.getmaxyx()
        room = max(1, lines - AROUND)
        self._asking.limit = min(self._most or room, room)

    def _draw(self) -> None:
        lines, columns = self._window.getmaxyx()
        asking = self._asking
        pieces: list[Piece] = []
        if asking.trouble:
            pieces.append(Text(f"no news: {asking.trouble}", Style.BAD))
        pieces += top_pieces(asking.answer)
        pieces.append(Text())
        words = ", ".join(f"{key} {order}" for key, order in KEYS.items())
        pieces.append(Text(f"q quits; sorted by {asking.sort}; sort by: {words}"))
        self._window.erase()
        for number, (line, style) in enumerate(styled_lines(pieces, columns)[:lines]):
            # The last corner of a screen cannot be written to without an error.
            with suppress(self._curses.error):
                self._window.addnstr(number, 0, line, columns, self._attributes.get(style, 0))
        self._window.refresh()
