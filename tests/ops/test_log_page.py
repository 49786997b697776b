"""The page of the log has every line that the service can log, and none besides."""

from __future__ import annotations

import importlib
import re
from typing import Any

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.limited_log import LINES, LINES_OF_ONE, LimitedLog
from kvproto.config.values import ROOMS
from tests.log_lines import LEVELS, PACKAGE, Line, lines

PAGE = PACKAGE.parent / "docs" / "reference" / "log.md"
ROOM = re.compile(r"^### `(\w+)`")
ROW = re.compile(r"^\| (\w+)(\\\*)? \| `([^`]*)` \| (.*)")

Row = tuple[str, str, str, bool]


def rows_of_the_page() -> list[tuple[Row, str]]:
    """Return room, level, text and whether it is limited of each row, and the rest of it."""
    found = []
    room = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := ROOM.match(line):
            room = heading[1]
        elif line == "### Defects":
            room = ""
        elif row := ROW.match(line):
            here, level = (room, row[1]) if room else (row[1], "critical")
            found.append(((here, level, row[3], bool(row[2])), row[4]))
    return found


class PageTests(SynchronousTestCase):
    """Source and page, both ways."""

    def test_same_lines(self) -> None:
        """Each line has a row in its room with its level; each row is a line."""
        code = {(line.room, line.level, line.shown, line.limited) for line in lines()}
        page = [row for row, _ in rows_of_the_page()]
        missing, unknown = code - {*page}, {*page} - code
        self.assertEqual((missing, unknown), (set(), set()), f"docs/reference/{PAGE.name}")
        self.assertEqual(len(page), len({*page}))

    def test_meanings(self) -> None:
        """Every row says what it means; a warning says what to do, or that nothing is to do."""
        for row, rest in rows_of_the_page():
            self.assertTrue(rest.partition(" |")[0].strip(), row)

    def test_rooms(self) -> None:
        """`--log-levels` knows the rooms that log."""
        self.assertEqual(sorted({line.room for line in lines()}), [*ROOMS])

    def test_same_level_everywhere(self) -> None:
        """A line is not a warning here and an error there."""
        levels: dict[tuple[str, str], set[str]] = {}
        for line in lines():
            if line.level != "critical":
                levels.setdefault((line.room, line.format), set()).add(line.level)
        self.assertEqual([key for key, found in levels.items() if len(found) > 1], [])


class LimitTests(SynchronousTestCase):
    """What peers can provoke."""

    def test_who_is_named(self) -> None:
        """A line that names a peer is limited, unless it is for debugging."""
        for line in lines():
            if "{peer" in line.format and line.level != "debug":
                self.assertTrue(line.limited, line)

    def test_each(self) -> None:
        """Each such line comes so often from one address, and so often from all together."""
        limited = {(line.module, line.format): line for line in lines() if line.limited}
        self.assertGreater(len(limited), 20)
        for line in limited.values():
            room: Any = importlib.import_module(line.module)
            self.assertIsInstance(room.peer_log, LimitedLog, line.module)
            for peers, most in (
                ([f"192.0.2.1:{port}" for port in range(2 * LINES_OF_ONE)], LINES_OF_ONE),
                ([f"198.51.100.{host % 256}:{host}" for host in range(LINES + 20)], LINES),
            ):
                self.assertEqual(self.provoke(room, line, peers), most, line)

    def provoke(self, room: Any, line: Line, peers: list[str]) -> int:
        """Have a line logged for each of some peers; return how often it was."""
        method = next(name for name, level in LEVELS.items() if level == line.level)
        fields = dict.fromkeys(re.findall(r"\{(\w+)", line.format), "x")
        self.patch(room, "peer_log", LimitedLog(room.peer_log._log, lambda: 0.0))
        with capturedLogs() as events:
            for peer in peers:
                try:
                    self.fail_once()
                except ConnectionError:
                    getattr(room.peer_log, method)(line.format, **{**fields, "peer": peer})
        self.flushLoggedErrors(ConnectionError)
        return sum(event["log_level"] >= LogLevel.info for event in events)

    def fail_once(self) -> None:
        raise ConnectionError
