"""Write Erlang's external term format.

Owns: terms to bytes (`encode`).  Says `LocalProtocolError` for what Erlang
could not hold: infinite floats, atoms of more than 255 characters, types that
are not in the table of `kvproto.dist.terms`.

Source: Erlang, "External Term Format".
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from struct import Struct
from struct import error as StructError

from kvproto.dist.etf import MAX_ATOM_CHARACTERS, MAX_DEPTH, MAX_REFERENCE_WORDS, VERSION
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
from kvproto.errors import LocalProtocolError

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
_NIL = b"\x6a"

_Out = list[bytes]


def _write_int(out: _Out, term: int, depth: int) -> None:
    if 0 <= term <= 255:
        out.append(bytes((97, term)))
    elif -(1 << 31) <= term < 1 << 31:
        out.append(_TAG_I32.pack(98, term))
    else:
        size = (abs(term).bit_length() + 7) // 8
        head = bytes((110, size)) if size <= 255 else _TAG_U32.pack(111, size)
        out.append(head + bytes((term < 0,)) + abs(term).to_bytes(size, "little"))


def _write_float(out: _Out, term: float, depth: int) -> None:
    if not isfinite(term):
        raise LocalProtocolError("Erlang has no infinite floats and no NaN")
    out.append(_FLOAT.pack(70, term))


def _write_atom(out: _Out, term: str, depth: int) -> None:
    if len(term) > MAX_ATOM_CHARACTERS:
        raise LocalProtocolError("an atom has at most 255 characters")
    name = term.encode("utf-8")
    head = bytes((119, len(name))) if len(name) <= 255 else _TAG_U16.pack(118, len(name))
    out.append(head + name)


def _write_bytes(out: _Out, term: bytes, depth: int) -> None:
    out.append(_TAG_U32.pack(109, len(term)))
    out.append(term)


def _write_tuple(out: _Out, term: tuple[Term, ...], depth: int) -> None:
    count = len(term)
    out.append(bytes((104, count)) if count <= 255 else _TAG_U32.pack(105, count))
    _write_all(out, term, depth)


def _write_list(out: _Out, term: list[Term], depth: int) -> None:
    if not term:
        out.append(_NIL)
        return
    if type(term[0]) is int and len(term) <= _LARGEST_STRING:
        try:
            string = bytes(term)
        except (TypeError, ValueError):
            string = b""
        # bytes() would also take True, which is an atom there.
        if string and set(map(type, term)) == {int}:
            out.append(_TAG_U16.pack(107, len(string)) + string)
            return
    out.append(_TAG_U32.pack(108, len(term)))
    _write_all(out, term, depth)
    out.append(_NIL)


def _write_improper(out: _Out, term: ImproperList, depth: int) -> None:
    if not term.elements:
        raise LocalProtocolError("an improper list has at least one element")
    out.append(_TAG_U32.pack(108, len(term.elements)))
    _write_all(out, term.elements, depth)
    _write_all(out, (term.tail,), depth)


def _write_dict(out: _Out, term: dict[Term, Term], depth: int) -> None:
    _write_pairs(out, tuple(term.items()), depth)


def _write_map_pairs(out: _Out, term: MapPairs, depth: int) -> None:
    _write_pairs(out, term.pairs, depth)


def _write_pairs(out: _Out, pairs: tuple[tuple[Term, Term], ...], depth: int) -> None:
    out.append(_TAG_U32.pack(116, len(pairs)))
    _write_all(out, [part for pair in pairs for part in pair], depth)


def _write_bits(out: _Out, term: BitString, depth: int) -> None:
    if not term.data or not 1 <= term.bits <= 7:
        raise LocalProtocolError("a bitstring has 1 to 7 bits in its last byte")
    out.append(_TAG_U32.pack(77, len(term.data)) + bytes((term.bits,)) + term.data)


def _write_pid(out: _Out, term: Pid, depth: int) -> None:
    out.append(b"\x58")
    _write_atom(out, term.node, depth)
    out.append(_THREE_U32.pack(term.id, term.serial, term.creation))


def _write_reference(out: _Out, term: Reference, depth: int) -> None:
    if not 1 <= len(term.words) <= MAX_REFERENCE_WORDS:
        raise LocalProtocolError("a reference has one to five words")
    out.append(_TAG_U16.pack(90, len(term.words)))
    _write_atom(out, term.node, depth)
    out.append(_U32.pack(term.creation) + b"".join(map(_U32.pack, term.words)))


def _write_port(out: _Out, term: Port, depth: int) -> None:
    # The 64-bit form only where it is needed: OTP 25 does the same.
    wide = term.id >= 1 << 32
    out.append(b"\x78" if wide else b"\x59")
    _write_atom(out, term.node, depth)
    out.append((_PORT_V4 if wide else _PORT).pack(term.id, term.creation))


def _write_export(out: _Out, term: Export, depth: int) -> None:
    out.append(b"\x71")
    _write_atom(out, term.module, depth)
    _write_atom(out, term.function, depth)
    _write_int(out, term.arity, depth)


def _write_fun(out: _Out, term: Fun, depth: int) -> None:
    out.append(_TAG_U32.pack(112, len(term.data) + 4) + term.data)


def _write_bool(out: _Out, term: bool, depth: int) -> None:
    _write_atom(out, "true" if term else "false", depth)


def _write_none(out: _Out, term: None, depth: int) -> None:
    _write_atom(out, "undefined", depth)


def _write_text(out: _Out, term: str, depth: int) -> None:
    _write_bytes(out, term.encode("utf-8"), depth)


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
    out = [bytes((VERSION,))]
    writer = _WRITERS.get(type(term)) or _writer_of(term)
    try:
        writer(out, term, MAX_DEPTH)
    except (OverflowError, StructError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"term does not fit its encoding: {error}") from None
    return b"".join(out)
