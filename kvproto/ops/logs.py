"""Lines of the log of a process that is ours: as text or JSON, to a file, the terminal or journald.

Text is Twisted's classic form; under journald each line begins with its priority in place of the
time, which journald has itself.  JSON is one object a line: ``time``, ``level``, ``logger``,
``message``, and those of `FIELDS` that the event has; a failure has ``traceback``.

A file that was renamed or deleted is opened anew before the next line, and on SIGUSR1.
"""

from __future__ import annotations

import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatEventAsClassicLogText,
)
from txaio import tx
from zope.interface import implementer

from kvproto.config import LogFormat, RoomLevel
from kvproto.config import LogLevel as Level

__all__ = ["FIELDS", "LineObserver", "LogFile", "json_line", "observer_for", "reopen_logs"]

FIELDS = (
    *("connection", "listener", "peer", "user", "mechanism", "stage", "reason"),
    *("generation", "action", "address", "path", "count"),
)
"""Fields of events that JSON lines have as fields of their own, in this order."""

_PRIORITIES = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}
"""syslog's, as ``sd-daemon(3)`` wants them in front of a line."""

_THRESHOLDS = {
    Level.DEBUG: LogLevel.debug,
    Level.INFO: LogLevel.info,
    Level.WARN: LogLevel.warn,
    Level.ERROR: LogLevel.error,
}

LOOK_SECONDS = 1.0
"""Seconds between looks whether a file is still where it was."""


def _level_of(event: LogEvent) -> Any:
    level = event.get("log_level")
    if level in _PRIORITIES:
        return level
    return LogLevel.error if event.get("isError") else LogLevel.info


def _harmless(text: str) -> str:
    """Return text without what does something to a terminal; a traceback keeps its lines."""
    if text.isprintable():
        return text
    return "".join(
        mark if mark.isprintable() or mark in "\n\t" else ascii(mark)[1:-1] for mark in text
    )


def json_line(event: LogEvent) -> str:
    """Return an event as one line of JSON, without its end."""
    level = _level_of(event)
    when = datetime.fromtimestamp(event.get("log_time") or time.time(), UTC)
    row: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level.name,
        "logger": str(event.get("log_namespace") or event.get("log_system") or "-"),
        "message": formatEvent(event),
    }
    for name in FIELDS:
        value = event.get(name)
        if value is not None:
            row[name] = value if isinstance(value, bool | int | float | str) else str(value)
    failure = event.get("log_failure")
    if failure is not None:
        row["message"] = row["message"] or failure.getErrorMessage()
        row["traceback"] = failure.getTraceback()
    return json.dumps(row, allow_nan=False, default=str)


def text_line(event: LogEvent) -> str:
    """Return an event as text, without its end; a traceback takes several lines."""
    return _harmless((formatEventAsClassicLogText(event) or "").rstrip("\n"))


def journal_line(event: LogEvent) -> str:
    """Return an event for journald, which has the time itself; each line with its priority."""
    level = _level_of(event)
    line = formatEventAsClassicLogText(event, formatTime=lambda _when: "") or ""
    lines = _harmless(line.strip()).split("\n")
    return "\n".join(f"<{_PRIORITIES[level]}>{one}" for one in lines)


class LogFile:
    """A file that is opened anew when somebody has renamed or deleted it.

    Args:
        path: Where.
        now: Returns monotonic seconds.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path.absolute()
        self._now = now
        self._next_look = 0.0
        self._file = self._open()
        _files.add(self)

    def _open(self) -> TextIO:
        return self._path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> None:
        """Append text; what cannot be written is lost, and harms nobody."""
        now = self._now()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            if self._moved():
                self.reopen()
        with suppress(OSError):
            self._file.write(text)
            self._file.flush()

    def flush(self) -> None:
        """Nothing to do: each line is written at once."""

    def _moved(self) -> bool:
        try:
            there = self._path.stat()
        except OSError:
            return True
        here = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def reopen(self) -> None:
        """Open the file anew; where that cannot be done the old one is written on."""
        with suppress(OSError):
            opened = self._open()
            with suppress(OSError):
                self._file.close()
            self._file = opened


_files: weakref.WeakSet[LogFile] = weakref.WeakSet()


def reopen_logs() -> None:
    """Open every log file anew, as SIGUSR1 asks for."""
    for file in list(_files):
        file.reopen()


@implementer(ILogObserver)
class LineObserver:
    """Writes events as lines.

    Args:
        stream: Where to.
        line: Makes a line of an event, without its end.
        level: The least important level that is written.
    """

    def __init__(self, stream: Any, line: Callable[[LogEvent], str], level: Level) -> None:
        self._stream = stream
        self._line = line
        self.set_level(level)
        _observers.add(self)

    def set_level(self, level: Level, rooms: Iterable[RoomLevel] = ()) -> None:
        """Write events of this level and above from now on, of some rooms those of another."""
        self._least = _THRESHOLDS[level]
        self._rooms = {one.room: _THRESHOLDS[one.level] for one in rooms}

    def _least_of(self, event: LogEvent) -> Any:
        package, _, rest = str(event.get("log_namespace") or "").partition(".")
        room = rest.partition(".")[0] if package == "kvproto" else ""
        return self._rooms.get(room, self._least)

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        if _level_of(event) < (self._least_of(event) if self._rooms else self._least):
            return
        try:
            line = self._line(event)
        except Exception as error:
            line = f"an event could not be written: {type(error).__name__}"
        if line:
            with suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()


_observers: weakref.WeakSet[LineObserver] = weakref.WeakSet()


def set_log_level(level: Level, rooms: Collection[RoomLevel] = ()) -> None:
    """Log events of this level and above from now on, in the whole process.

    Args:
        level: Of everything but these rooms.
        rooms: What is logged of single ones.
    """
    # Loggers make events of what anybody wants; observers write what is wanted of each room.
    least = min([level, *(one.level for one in rooms)], key=[*Level].index)
    tx.set_global_log_level(least.value)
    for observer in list(_observers):
        observer.set_level(level, rooms)


def observer_for(
    form: LogFormat,
    level: Level,
    logfile: str | None,
    *,
    daemon: bool,
    rooms: Collection[RoomLevel] = (),
) -> LineObserver:
    """Return the observer for what ``twistd`` was told.

    Args:
        form: What lines look like.
        level: The least important level that is written.
        logfile: ``--logfile``; ``"-"`` for stdout, none for the usual place.
        daemon: Whether the process leaves its terminal.
        rooms: The least important level of single rooms.
    """
    stream: Any
    if logfile == "-" or (not logfile and not daemon):
        if daemon:
            raise SystemExit("Daemons cannot log to stdout, exiting!")
        stream = sys.stdout
    else:
        stream = LogFile(Path(logfile or "twistd.log"))
    if form is LogFormat.JSON:
        line = json_line
    else:
        line = journal_line if _is_journal(stream) else text_line
    observer = LineObserver(stream, line, level)
    set_log_level(level, rooms)
    return observer


def _is_journal(stream: Any) -> bool:
    """Return whether a stream is journald's, as ``JOURNAL_STREAM`` says (sd-daemon(3))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, AttributeError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
