"""Write Erlang's external term format.

Owns: terms to bytes (`encode`).  A peer ends the whole link over one term that it cannot
read ("corrupted external term"), so whatever Erlang could not hold is refused here with
`LocalProtocolError`: types that are not in the table of `kvproto.dist.terms`, fields of
another type or out of range, and maps with a key twice.

Two keys are the same when Erlang says so (``=:=``), which Python cannot tell: ``"a"`` and
``b"a"`` are one binary, True and ``Atom("true")`` one atom, 1 and 1.0 two numbers.  Therefore
keys are compared by their bytes, and inside a key there is one way to write each term: maps
are sorted, improper lists with a proper tail are lists, references lose trailing zeros.

Source: Erlang, "External Term Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import copysign, isfinite
from struct import Struct
from typing import Any, Final

from kvproto.dist.etf import (
    MAX_ATOM_CHARACTERS,
    MAX_DEPTH,
    MAX_REFERENCE_WORDS,
    VERSION,
    read_environment,
)
from kvproto.dist.terms import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    MapPairs,
    Pid,
    Port,
    Reference,
    Term,
)
from kvproto.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["encode"]

_TAG_U16 = Struct(">BH")
_TAG_U32 = Struct(">BI")
_TAG_I32 = Struct(">Bi")
_FLOAT = Struct(">Bd")
_U32 = Struct(">I")
_THREE_U32 = Struct(">III")
_PORT_V4 = Struct(">QI")
_PORT = Struct(">II")

_LARGEST_STRING = 0xFFFF
_LARGEST_COUNT = 0xFFFF_FFFF
_NIL = b"\x6a"

_LARGEST_TUPLE: Final = (1 << 24) - 1
_LARGEST_INTEGER_BITS: Final = 4_194_240
"""Erlang's system limits; that of integers since OTP 26, older ones hold more."""

_DISTINCT: Final = frozenset({Atom, bytes, float, int})
"""Types of keys that are as different for Erlang as for a dict."""

_ZERO: Final = 1
_MINUS_ZERO: Final = 2


class _Out(list[bytes]):
    """Pieces that have been written.

    Attributes:
        in_key: Whether they are part of a map's key, where each term has one form only.
        zeros: Which zeros they hold: OTP 26 and older take 0.0 and -0.0 for one key.
    """

    __slots__ = ("in_key", "zeros")

    def __init__(self, in_key: bool = False) -> None:
        super().__init__()
        self.in_key = in_key
        self.zeros = 0


def _check_number(number: Any, bits: int, what: str) -> int:
    if not isinstance(number, int) or not 0 <= number < 1 << bits:
        raise LocalProtocolError(f"{what} is not an integer of {bits} bits without a sign")
    return number


def _check_count(items: Any, kind: type | tuple[type, ...], what: str) -> int:
    if not isinstance(items, kind):
        raise LocalProtocolError(f"{what} is a {type(items).__name__}")
    count = len(items)  # type: ignore[arg-type]
    if count > _LARGEST_COUNT:
        raise LocalProtocolError(f"{what} is longer than 4 GiB")
    return count


def _write_int(out: _Out, term: int, depth: int) -> None:
    if 0 <= term <= 255:
        out.append(bytes((97, term)))
    elif -(1 << 31) <= term < 1 << 31:
        out.append(_TAG_I32.pack(98, term))
    else:
        bits = term.bit_length()
        if bits > _LARGEST_INTEGER_BITS:
            raise LocalProtocolError(f"an integer has at most {_LARGEST_INTEGER_BITS} bits")
        size = (bits + 7) // 8
        head = bytes((110, size)) if size <= 255 else _TAG_U32.pack(111, size)
        out.append(head + bytes((term < 0,)) + abs(term).to_bytes(size, "little"))


def _write_float(out: _Out, term: float, depth: int) -> None:
    if not isfinite(term):
        raise LocalProtocolError("Erlang has no infinite floats and no NaN")
    if out.in_key and not term:
        out.zeros |= _ZERO if copysign(1.0, term) > 0 else _MINUS_ZERO
    out.append(_FLOAT.pack(70, term))


def _write_atom(out: _Out, term: str, depth: int) -> None:
    if not isinstance(term, str):
        raise LocalProtocolError(f"an atom is a str, not a {type(term).__name__}")
    if len(term) > MAX_ATOM_CHARACTERS:
        raise LocalProtocolError("an atom has at most 255 characters")
    name = _utf8(term)
    head = bytes((119, len(name))) if len(name) <= 255 else _TAG_U16.pack(118, len(name))
    out.append(head + name)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise LocalProtocolError("a text with lone surrogates cannot be sent") from None


def _write_bytes(out: _Out, term: bytes, depth: int) -> None:
    out.append(_TAG_U32.pack(109, _check_count(term, bytes, "a binary")))
    out.append(term)


def _write_tuple(out: _Out, term: tuple[Term, ...], depth: int) -> None:
    count = len(term)
    if count > _LARGEST_TUPLE:
        raise LocalProtocolError(f"a tuple has at most {_LARGEST_TUPLE} elements")
    out.append(bytes((104, count)) if count <= 255 else _TAG_U32.pack(105, count))
    _write_all(out, term, depth)


def _write_list(out: _Out, term: list[Term], depth: int) -> None:
    if not term:
        out.append(_NIL)
        return
    if isinstance(term[0], int) and len(term) <= _LARGEST_STRING:
        try:
            string = bytes(term)
        except (TypeError, ValueError):
            string = b""
        # bytes() would also take True, which is an atom there.
        kinds = set(map(type, term))
        if string and bool not in kinds and all(issubclass(kind, int) for kind in kinds):
            out.append(_TAG_U16.pack(107, len(string)) + string)
            return
    out.append(_TAG_U32.pack(108, _check_count(term, list, "a list")))
    _write_all(out, term, depth)
    out.append(_NIL)


def _write_improper(out: _Out, term: ImproperList, depth: int) -> None:
    if not _check_count(term.elements, (tuple, list), "what is before the bar of a list"):
        raise LocalProtocolError("an improper list has at least one element")
    if out.in_key and isinstance(term.tail, list | ImproperList):
        flat = _flattened(term)
        if isinstance(flat, list):
            _write_list(out, flat, depth)
            return
        term = flat
    out.append(_TAG_U32.pack(108, len(term.elements)))
    _write_all(out, term.elements, depth)
    _write_all(out, (term.tail,), depth)


def _flattened(term: ImproperList) -> ImproperList | list[Term]:
    """Return what a list is whose tail is a list, proper or not."""
    elements: list[Term] = []
    tail: Term = term
    while isinstance(tail, ImproperList):
        elements += tail.elements
        tail = tail.tail
    return elements + tail if isinstance(tail, list) else ImproperList(tuple(elements), tail)


def _write_dict(out: _Out, term: dict[Term, Term], depth: int) -> None:
    kinds = set(map(type, term))
    if out.in_key or not (kinds <= _DISTINCT or kinds == {str}):
        _write_checked(out, term.items(), depth)
        return
    out.append(_TAG_U32.pack(116, len(term)))
    _write_all(out, [part for pair in term.items() for part in pair], depth)


def _write_map_pairs(out: _Out, term: MapPairs, depth: int) -> None:
    _check_count(term.pairs, (tuple, list), "what a map's pairs are in")
    for pair in term.pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise LocalProtocolError("a map consists of pairs")
    _write_checked(out, term.pairs, depth)


def _write_checked(out: _Out, pairs: Iterable[tuple[Term, Term]], depth: int) -> None:
    """Write a map of which Python does not know that each key is there once."""
    written: dict[bytes, _Out] = {}
    zeros = set()
    for key, value in pairs:
        part = _Out(in_key=True)
        _write_all(part, (key,), depth)
        data = b"".join(part)
        if data in written:
            raise LocalProtocolError(f"a map has the key {type(key).__name__} twice")
        if part.zeros:
            zeros.add(part.zeros)
        out.zeros |= part.zeros
        rest = _Out(out.in_key)
        _write_all(rest, (value,), depth)
        out.zeros |= rest.zeros
        written[data] = rest
    if len(zeros) > 1:
        raise LocalProtocolError("a map has keys with 0.0 and with -0.0")
    out.append(_TAG_U32.pack(116, len(written)))
    for data in sorted(written) if out.in_key else written:
        out.append(data)
        out += written[data]


def _write_bits(out: _Out, term: BitString, depth: int) -> None:
    size = _check_count(term.data, bytes, "what a bitstring is in")
    if not size or _check_number(term.bits, 3, "the number of bits in a last byte") == 0:
        raise LocalProtocolError("a bitstring has 1 to 7 bits in its last byte")
    last = bytes((term.data[-1] & (0xFF00 >> term.bits) & 0xFF,))
    out.append(_TAG_U32.pack(77, size) + bytes((term.bits,)) + term.data[:-1] + last)


def _write_pid(out: _Out, term: Pid, depth: int) -> None:
    numbers = (
        _check_number(term.id, 32, "the id of a pid"),
        _check_number(term.serial, 32, "the serial of a pid"),
        _check_number(term.creation, 32, "the creation of a pid"),
    )
    out.append(b"\x58")
    _write_atom(out, term.node, depth)
    out.append(_THREE_U32.pack(*numbers))


def _write_reference(out: _Out, term: Reference, depth: int) -> None:
    words = list(term.words) if isinstance(term.words, tuple | list) else []
    if not 1 <= len(words) <= MAX_REFERENCE_WORDS:
        raise LocalProtocolError("a reference has one to five words")
    while out.in_key and len(words) > 1 and words[-1] == 0:
        words.pop()
    numbers = [_check_number(term.creation, 32, "the creation of a reference")]
    numbers += (_check_number(word, 32, "a word of a reference") for word in words)
    out.append(_TAG_U16.pack(90, len(words)))
    _write_atom(out, term.node, depth)
    out.append(b"".join(map(_U32.pack, numbers)))


def _write_port(out: _Out, term: Port, depth: int) -> None:
    # The 64-bit form only where it is needed: OTP 25 does the same.
    number = _check_number(term.id, 64, "the id of a port")
    creation = _check_number(term.creation, 32, "the creation of a port")
    wide = number >= 1 << 32
    out.append(b"\x78" if wide else b"\x59")
    _write_atom(out, term.node, depth)
    out.append((_PORT_V4 if wide else _PORT).pack(number, creation))


def _write_export(out: _Out, term: Export, depth: int) -> None:
    arity = _check_number(term.arity, 8, "the arity of a function")
    out.append(b"\x71")
    _write_atom(out, term.module, depth)
    _write_atom(out, term.function, depth)
    out.append(bytes((97, arity)))


def _write_fun(out: _Out, term: Fun, depth: int) -> None:
    size = _check_count(term.data, bytes, "what a fun is in")
    try:
        environment = read_environment(term.data)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"that is no fun: {error}") from None
    # What it holds is sent as it came, but must be something that Erlang can read.
    _write_all(_Out(), environment, depth)
    out.append(_TAG_U32.pack(112, size + 4) + term.data)


def _write_bool(out: _Out, term: bool, depth: int) -> None:
    _write_atom(out, "true" if term else "false", depth)


def _write_none(out: _Out, term: None, depth: int) -> None:
    _write_atom(out, "undefined", depth)


def _write_text(out: _Out, term: str, depth: int) -> None:
    _write_bytes(out, _utf8(term), depth)


_WRITERS: dict[type, Callable[[_Out, Term, int], None]] = {
    Atom: _write_atom,
    BitString: _write_bits,
    Export: _write_export,
    Fun: _write_fun,
    ImproperList: _write_improper,
    MapPairs: _write_map_pairs,
    Pid: _write_pid,
    Port: _write_port,
    Reference: _write_reference,
    bool: _write_bool,
    bytes: _write_bytes,
    dict: _write_dict,
    float: _write_float,
    int: _write_int,
    list: _write_list,
    str: _write_text,
    tuple: _write_tuple,
    type(None): _write_none,
}


def _writer_of(term: Term) -> Callable[[_Out, Term, int], None]:
    """Find the writer of a subclass, such as an `enum.IntEnum` member."""
    for kind in type(term).__mro__:
        writer = _WRITERS.get(kind)
        if writer is not None:
            return writer
    raise LocalProtocolError(f"Erlang has no term for a {type(term).__name__}")


def _write_all(out: _Out, terms: tuple[Term, ...] | list[Term], depth: int) -> None:
    depth -= 1
    if depth < 0:
        raise LocalProtocolError("term is nested too deep")
    writers = _WRITERS
    for term in terms:
        writer = writers.get(type(term)) or _writer_of(term)
        writer(out, term, depth)


def encode(term: Term) -> bytes:
    """Write one term, with its version byte.

    Raises:
        LocalProtocolError: Erlang has no such term, or it is nested deeper
            than `kvproto.dist.etf.MAX_DEPTH`.
    """
    out = _Out()
    out.append(bytes((VERSION,)))
    writer = _WRITERS.get(type(term)) or _writer_of(term)
    writer(out, term, MAX_DEPTH)
    return b"".join(out)
