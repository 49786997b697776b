"""Read Erlang's external term format, from peers that may be hostile.

Owns: bytes to terms (`decode`, `decode_at`).  The way back is in `encoding`.
Never does I/O, keeps nothing but a bounded cache of atoms.  What is refused:
whatever a distribution peer never sends after our flags (old floats, old
pids, atom cache), compressed terms (290 KB of zlib can hold 300 MB), depth and
counts beyond the limits.

Source: Erlang, "External Term Format".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isfinite
from struct import Struct
from struct import error as StructError
from typing import Final

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
from kvproto.errors import RemoteProtocolError

__all__ = [
    "MAX_DEPTH",
    "MAX_TERMS",
    "VERSION",
    "OversizedTermError",
    "decode",
    "decode_at",
    "decode_tuple_at",
    "read_environment",
]

VERSION: Final = 131
"""First byte of each encoded term; only at the top."""

MAX_DEPTH: Final = 200
"""Terms inside one another; two Python frames each, far below the recursion limit."""

MAX_TERMS: Final = 4_000_000
"""Elements of all lists, tuples and maps of one term: an empty list is 1 byte there, 64 here."""

MAX_ATOM_CHARACTERS: Final = 255

MAX_REFERENCE_WORDS: Final = 5

LARGEST_MIXED_DICT: Final = 64
"""Above this many keys a dict is only made of keys whose hashes a peer cannot choose.

Python hashes integers modulo 2**61 - 1 and tuples without a secret, so that a
peer could make each insertion as slow as a search through all.
"""

HASH_RANGE: Final = 2**61 - 1

_U16 = Struct(">H")
_U32 = Struct(">I")
_U64 = Struct(">Q")
_I32 = Struct(">i")
_FLOAT = Struct(">d")
_THREE_U32 = Struct(">III")
_PORT_V4 = Struct(">QI")
_PORT = Struct(">II")


class OversizedTermError(RemoteProtocolError):
    """A term that Erlang could hold is nested deeper, or has more elements, than is read here."""


class _Reader:
    """A term being read: where we are and what we may still afford."""

    __slots__ = ("budget", "data", "depth", "position")

    def __init__(self, data: bytes, position: int, depth: int, budget: int) -> None:
        self.data = data
        self.position = position
        self.depth = depth
        self.budget = budget

    def byte(self) -> int:
        position = self.position
        self.position = position + 1
        return self.data[position]

    def number(self, form: Struct) -> int:
        position = self.position
        self.position = position + form.size
        value: int = form.unpack_from(self.data, position)[0]
        return value

    def take(self, size: int) -> bytes:
        position = self.position
        end = position + size
        if end > len(self.data):
            raise RemoteProtocolError("term is cut short")
        self.position = end
        return self.data[position:end]

    def spend(self, count: int) -> None:
        """Check a count of elements before anything is allocated for it."""
        if count > len(self.data) - self.position:
            raise RemoteProtocolError("term is cut short")
        self.budget -= count
        if self.budget < 0:
            raise OversizedTermError("term has too many elements")

    def atom(self) -> Atom:
        # Looking at the tag first keeps a pid inside a pid from being followed without end.
        tag = self.data[self.position]
        if tag not in _ATOM_TAGS:
            raise RemoteProtocolError("term has something else where a name belongs")
        atom: Atom = self.term()
        return atom

    def term(self) -> Term:
        data = self.data
        position = self.position
        self.position = position + 1
        return _READERS[data[position]](self)

    def terms(self, count: int) -> list[Term]:
        """Read so many terms, one level deeper."""
        self.spend(count)
        self.depth -= 1
        if self.depth < 0:
            raise OversizedTermError("term is nested too deep")
        data = self.data
        readers = _READERS
        found: list[Term] = []
        append = found.append
        for _ in range(count):
            position = self.position
            self.position = position + 1
            append(readers[data[position]](self))
        self.depth += 1
        return found


@lru_cache(maxsize=4096)
def _utf8_atom(name: bytes) -> Atom:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("atom is not UTF-8") from None
    if len(text) > MAX_ATOM_CHARACTERS:
        raise RemoteProtocolError("atom has more than 255 characters")
    return Atom(text)


def _read_latin1_atom(name: bytes) -> Atom:
    if len(name) > MAX_ATOM_CHARACTERS:
        raise RemoteProtocolError("atom has more than 255 characters")
    return Atom(name.decode("latin-1"))


def _read_big(reader: _Reader, size: int) -> int:
    sign = reader.byte()
    if sign > 1:
        raise RemoteProtocolError("integer has an unknown sign")
    value = int.from_bytes(reader.take(size), "little")
    return -value if sign else value


def _read_float(reader: _Reader) -> float:
    position = reader.position
    reader.position = position + 8
    value: float = _FLOAT.unpack_from(reader.data, position)[0]
    if not isfinite(value):
        raise RemoteProtocolError("float is not finite")
    return value


def _read_tuple(reader: _Reader) -> tuple[Term, ...]:
    return tuple(reader.terms(reader.byte()))


def _read_large_tuple(reader: _Reader) -> tuple[Term, ...]:
    return tuple(reader.terms(reader.number(_U32)))


def _read_string(reader: _Reader) -> list[int]:
    size = reader.number(_U16)
    reader.spend(size)
    return list(reader.take(size))


def _read_list(reader: _Reader) -> Term:
    count = reader.number(_U32)
    elements = reader.terms(count)
    # By far most lists end in [], which needs no deeper level to be seen.
    if reader.data[reader.position] == TAG_NIL:
        reader.position += 1
        return elements
    tail = reader.terms(1)[0]
    if type(tail) is list:
        elements += tail
        return elements
    if not elements:
        return tail
    if type(tail) is ImproperList:
        return ImproperList((*elements, *tail.elements), tail.tail)
    return ImproperList(tuple(elements), tail)


def _read_bits(reader: _Reader) -> bytes | BitString:
    size = reader.number(_U32)
    bits = reader.byte()
    data = reader.take(size)
    if not data:
        if bits:
            raise RemoteProtocolError("bitstring counts bits of no byte")
        return data
    if not 1 <= bits <= 8:
        raise RemoteProtocolError("bitstring counts an impossible number of bits")
    if bits == 8:
        return data
    return BitString(data[:-1] + bytes([data[-1] & (0xFF00 >> bits) & 0xFF]), bits)


def _hash_is_safe(key: Term) -> bool:
    kind = type(key)
    return (kind is Atom or kind is bytes or kind is float) or (
        kind is int and -HASH_RANGE < key < HASH_RANGE
    )


def _read_map(reader: _Reader) -> dict[Term, Term] | MapPairs:
    count = reader.number(_U32)
    flat = reader.terms(2 * count)
    keys = flat[::2]
    pairs = tuple(zip(keys, flat[1::2], strict=True))
    if count > LARGEST_MIXED_DICT and not all(map(_hash_is_safe, keys)):
        return MapPairs(pairs)
    try:
        found = dict(pairs)
    except TypeError:  # a key with a list or a map inside
        return MapPairs(pairs)
    # Python takes 1 and 1.0 for one key, Erlang does not.
    return found if len(found) == count else MapPairs(pairs)


def _read_pid(reader: _Reader) -> Pid:
    node = reader.atom()
    position = reader.position
    reader.position = position + 12
    return Pid(node, *_THREE_U32.unpack_from(reader.data, position))


def _read_reference(reader: _Reader) -> Reference:
    count = reader.number(_U16)
    if not 1 <= count <= MAX_REFERENCE_WORDS:
        raise RemoteProtocolError("reference has an impossible length")
    node = reader.atom()
    creation = reader.number(_U32)
    return Reference(node, creation, tuple(reader.number(_U32) for _ in range(count)))


def _read_port(reader: _Reader, form: Struct) -> Port:
    node = reader.atom()
    position = reader.position
    reader.position = position + form.size
    return Port(node, *form.unpack_from(reader.data, position))


def _read_export(reader: _Reader) -> Export:
    module = reader.atom()
    function = reader.atom()
    if reader.byte() != TAG_SMALL_INTEGER:
        raise RemoteProtocolError("fun has an impossible arity")
    return Export(module, function, reader.byte())


def _read_fun(reader: _Reader) -> Fun:
    size = reader.number(_U32)
    if size < _U32.size:
        raise RemoteProtocolError("fun has an impossible size")
    return Fun(reader.take(size - _U32.size))


def _refuse_zlib(reader: _Reader) -> Term:
    raise RemoteProtocolError("term is compressed, which this node did not offer")


def _refuse(reader: _Reader) -> Term:
    raise RemoteProtocolError(f"unknown term tag {reader.data[reader.position - 1]}")


TAG_NIL: Final = 106
TAG_SMALL_INTEGER: Final = 97
TAG_SMALL_TUPLE: Final = 104

_ATOM_TAGS: Final = frozenset({100, 115, 118, 119})
_SMALL_INTEGERS: Final = frozenset({TAG_SMALL_INTEGER, 98})
_PIDS: Final = frozenset({88})

_KNOWN: dict[int, Callable[[_Reader], Term]] = {
    70: _read_float,
    77: _read_bits,
    80: _refuse_zlib,
    88: _read_pid,
    89: lambda reader: _read_port(reader, _PORT),
    90: _read_reference,
    TAG_SMALL_INTEGER: _Reader.byte,
    98: lambda reader: reader.number(_I32),
    100: lambda reader: _read_latin1_atom(reader.take(reader.number(_U16))),
    TAG_SMALL_TUPLE: _read_tuple,
    105: _read_large_tuple,
    TAG_NIL: lambda reader: [],
    107: _read_string,
    108: _read_list,
    109: lambda reader: reader.take(reader.number(_U32)),
    110: lambda reader: _read_big(reader, reader.byte()),
    111: lambda reader: _read_big(reader, reader.number(_U32)),
    112: _read_fun,
    113: _read_export,
    115: lambda reader: _read_latin1_atom(reader.take(reader.byte())),
    116: _read_map,
    118: lambda reader: _utf8_atom(reader.take(reader.number(_U16))),
    119: lambda reader: _utf8_atom(reader.take(reader.byte())),
    120: lambda reader: _read_port(reader, _PORT_V4),
}

_HEAD_OF_FUN: Final = 1 + 16 + 4
"""Bytes of arity, digest and index."""


def read_environment(data: bytes) -> list[Term]:
    """Read the variables that a closure holds.

    Args:
        data: What `kvproto.dist.terms.Fun` holds.

    Raises:
        RemoteProtocolError: This is no closure.
    """
    reader = _Reader(data, 0, MAX_DEPTH, MAX_TERMS)
    try:
        reader.take(_HEAD_OF_FUN)
        count = reader.number(_U32)
        reader.atom()
        for tags in (_SMALL_INTEGERS, _SMALL_INTEGERS, _PIDS):
            if data[reader.position] not in tags:
                raise RemoteProtocolError("closure has an unknown layout")
            reader.term()
        environment = reader.terms(count)
    except (IndexError, StructError):
        raise RemoteProtocolError("term is cut short") from None
    if reader.position != len(data):
        raise RemoteProtocolError("bytes after the closure")
    return environment


_READERS: tuple[Callable[[_Reader], Term], ...] = tuple(
    _KNOWN.get(tag, _refuse) for tag in range(256)
)


def decode_at(
    data: bytes, position: int = 0, *, max_depth: int = MAX_DEPTH, max_terms: int = MAX_TERMS
) -> tuple[Term, int]:
    """Read one term, its version byte included, and say where it ends.

    Args:
        data: Not copied as a whole; the terms hold copies of their parts.
        position: Where the version byte is.
        max_depth: Terms inside one another.
        max_terms: Elements of all containers together.

    Returns:
        The term and the position of the first byte after it.

    Raises:
        RemoteProtocolError: This is no term; `OversizedTermError` if it is one, beyond the limits.
    """
    reader = _Reader(data, position, max_depth, max_terms)
    try:
        _read_version(reader)
        return reader.term(), reader.position
    except (IndexError, StructError):
        raise RemoteProtocolError("term is cut short") from None


def decode_tuple_at(data: bytes, position: int, stand_in: Term) -> tuple[Term, ...]:
    """Read a tuple of up to 255 elements of which the last one may be beyond the limits.

    Args:
        data: Ends with the tuple.
        position: Where the version byte is.
        stand_in: What takes the place of a last element that is too large.

    Raises:
        RemoteProtocolError: This is no such tuple; `OversizedTermError` if something else in it
            is too large.
    """
    reader = _Reader(data, position, MAX_DEPTH, MAX_TERMS)
    try:
        _read_version(reader)
        if reader.byte() != TAG_SMALL_TUPLE:
            raise OversizedTermError("term is too large")
        count = reader.byte()
        elements = [reader.terms(1)[0] for _ in range(count - 1)]
        try:
            elements += reader.terms(min(count, 1))
        except OversizedTermError:
            elements.append(stand_in)
    except (IndexError, StructError):
        raise RemoteProtocolError("term is cut short") from None
    return tuple(elements)


def _read_version(reader: _Reader) -> None:
    if reader.byte() != VERSION:
        raise RemoteProtocolError("term does not begin with 131")


def decode(data: bytes) -> Term:
    """Read exactly one term.

    Raises:
        RemoteProtocolError: This is no term, or one beyond the limits, or more than one.
    """
    term, end = decode_at(data)
    if end != len(data):
        raise RemoteProtocolError("bytes after the term")
    return term
