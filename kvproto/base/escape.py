"""Text that somebody else chose, made harmless for logs, terminals and listings."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""Return text in which everything that does not print is spelled out, ``"\n"`` as ``"\\n"``.

    So no user name, key or reason can begin a line of its own, move a terminal's cursor or hide
    what stands beside it.  A backslash that was there stays as it is: this is for people, not for
    being read back.
    """
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)
