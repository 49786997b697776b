"""Terms of peers as short texts, for errors and logs.

``repr()`` will not do: it raises for an integer of more than 4,300 digits, and a reason may be
a process's whole state.
"""

from __future__ import annotations

import reprlib

from kvproto.dist.terms import ImproperList, MapPairs, Term

__all__ = ["display"]

_LONGEST = 400
"""Characters of a text."""

_LARGEST_BITS = 256
"""Integers above are described by their size: decimal digits cost quadratic time."""


class _Display(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 8
        self.maxtuple = self.maxlist = self.maxdict = 12
        self.maxstring = self.maxother = 120

    def repr_int(self, term: int, level: int) -> str:
        bits = term.bit_length()
        if bits > _LARGEST_BITS:
            return f"<{'negative ' if term < 0 else ''}integer of {bits} bits>"
        return repr(term)

    def repr_bytes(self, term: bytes, level: int) -> str:
        more = "..." if len(term) > self.maxstring else ""
        return repr(term[: self.maxstring]) + more

    def repr_ImproperList(self, term: ImproperList, level: int) -> str:
        parts = f"{self.repr1(term.elements, level)}, {self.repr1(term.tail, level - 1)}"
        return f"ImproperList({parts if level > 0 else '...'})"

    def repr_MapPairs(self, term: MapPairs, level: int) -> str:
        return f"MapPairs({self.repr1(term.pairs, level)})"


_display = _Display()


def display(term: Term) -> str:
    """Return a text that is never longer than some lines, whatever the term is."""
    text = _display.repr(term)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
