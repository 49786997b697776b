"""Loggers, by way of txaio: a level that is off costs one call of an empty function.

txaio serves two frameworks, and ``txaio.use_twisted()`` chooses one for the whole process.
A library must not: in a process that also runs autobahn on asyncio, whichever is imported second
would fail.  So this takes the functions of txaio's Twisted side from their own module, which
chooses nothing.

What a peer can choose (a user name, a key, a reason) reaches the log as a field, and every field
that is text is made printable here: nobody can forge a line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from twisted.logger import Logger
from twisted.python.failure import Failure
from txaio import tx

from kvproto.base.escape import printable

__all__ = ["CONNECTION", "Log", "make_logger"]

CONNECTION = "connection {connection} from {peer} on {listener}"
"""How a line about a connection begins; the connection's ``log_fields()`` fill it in."""


class Log(Protocol):
    """What modules use of a txaio logger.

    Each method takes a format in braces and its fields by name; see `twisted.logger.Logger.emit`.
    """

    def debug(self, format: str, **fields: Any) -> None:
        """Log what concerns one connection."""

    def info(self, format: str, **fields: Any) -> None:
        """Log a step in the life of the service."""

    def warn(self, format: str, **fields: Any) -> None:
        """Log a peer's or an operator's fault."""

    def error(self, format: str, **fields: Any) -> None:
        """Log a fault of ours that has no traceback."""

    def failure(self, format: str, failure: Failure | None = None, **fields: Any) -> None:
        """Log a fault of ours with its traceback: the current exception's when none is given."""


class _PrintableLogger(Logger):
    """A logger whose events hold nothing that does not print, except the format's own."""

    def emit(self, level: Any, format: str | None = None, **fields: Any) -> None:
        """Make fields printable, then emit the event."""
        for name, value in fields.items():
            if isinstance(value, str) and not value.isprintable():
                fields[name] = printable(value)
        super().emit(level, format, **fields)


make_logger = cast("Callable[[], Log]", partial(tx.make_logger, logger=_PrintableLogger))
"""Make the logger of the calling module; its namespace is the module's dotted name."""
