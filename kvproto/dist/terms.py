"""Erlang's terms as Python values.

=================  ==========================================================
Erlang             Python
=================  ==========================================================
integer, float     `int`, `float`
atom               `Atom`, a `str`; ``true`` is ``Atom("true")``, never True
binary             `bytes`; a bitstring that does not end on a byte: `BitString`
tuple, list        `tuple`, `list` (an Erlang string is a list of integers)
``[a|b]``          `ImproperList`
map                `dict`, or `MapPairs` where a dict cannot hold its keys
pid, ref, port     `Pid`, `Reference`, `Port`
fun                `Export` (``fun m:f/a``), `Fun` (any other, opaque)
=================  ==========================================================

On the way out only, for convenience: `bool` becomes ``true``/``false``, None
``undefined``, a plain `str` a binary in UTF-8.

Source: Erlang, "External Term Format".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "Atom",
    "BitString",
    "Export",
    "Fun",
    "ImproperList",
    "MapPairs",
    "Pid",
    "Port",
    "Reference",
    "Term",
]

Term: TypeAlias = Any
"""Any value of the table above; a recursive union would help no reader and slow every check."""


class Atom(str):
    """An Erlang atom: at most 255 characters.

    A `str`, so that ``request == "ping"`` and ``case ("echo", value):`` read
    well; a binary is `bytes` and never equal to it.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


@dataclass(frozen=True, slots=True)
class Pid:
    """A process.

    Args:
        node: Name of its node.
        id: 32 bits.
        serial: 32 bits.
        creation: Which incarnation of the node, 32 bits.
    """

    node: Atom
    id: int
    serial: int
    creation: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A unique reference.

    Args:
        node: Name of the node that made it.
        creation: Which incarnation of the node, 32 bits.
        words: One to five numbers of 32 bits.
    """

    node: Atom
    creation: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """A port: what Erlang talks to the outside with.

    Args:
        node: Name of its node.
        id: 64 bits.
        creation: Which incarnation of the node, 32 bits.
    """

    node: Atom
    id: int
    creation: int


@dataclass(frozen=True, slots=True)
class Export:
    """A function named from outside: ``fun module:function/arity``."""

    module: Atom
    function: Atom
    arity: int


@dataclass(frozen=True, slots=True)
class Fun:
    """A closure, which only Erlang can call.

    Args:
        data: Its encoding after the size field, kept as it came.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class BitString:
    """A binary whose last byte is used in part.

    Args:
        data: At least one byte; unused low bits of the last one are zero.
        bits: How many high bits of the last byte count, 1 to 7.
    """

    data: bytes
    bits: int


@dataclass(frozen=True, slots=True)
class ImproperList:
    """A list whose tail is not a list: ``[alias|Ref]`` is one.

    Args:
        elements: What comes before the bar, at least one.
        tail: What comes after it.
    """

    elements: tuple[Term, ...]
    tail: Term


@dataclass(frozen=True, slots=True, eq=True, unsafe_hash=False)
class MapPairs:
    """A map that a dict cannot hold: keys with a list or map inside, or both 1 and 1.0.

    Not hashable, like a dict: hashing a term then never looks into a map, and
    decoding maps inside keys of maps stays linear.

    Args:
        pairs: (key, value) in the order of arrival.
    """

    __hash__ = None  # type: ignore[assignment]

    pairs: tuple[tuple[Term, Term], ...]
