"""Binary requests told in memcached's meta commands, and the answers told as binary frames.

For servers that speak text alone.  `MetaTranslation` is one connection's: each frame becomes one
line (with a value behind it, where it has one), and since a server answers in order, the oldest
line that is not answered says what an answer means.  Each line carries the frame's opaque as well,
and an answer that gives back another one is an error.  A frame of opcode `META` is a line already.

What cannot be told in a line (a key of more than 186 bytes that needs base64, an opcode that is not
a document's) becomes ``mn``: its answer comes in its turn, and is a refusal.

Source: memcached ``doc/protocol.txt``, ``proto_text.c`` of 1.6.18, ``proto_bin.c``.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kvproto.errors import RemoteProtocolError
from kvproto.wire.constants import HEADER_SIZE, MAX_KEY, Opcode, Status
from kvproto.wire.encoding import (
    HEADER,
    counter_reply,
    encode_response,
    error_reply,
    get_reply,
    simple_reply,
)

__all__ = ["MAX_VALUE", "META", "OPAQUE", "MetaTranslation"]

META = 0xE1
"""The opcode, ours alone, of a frame whose value is a meta command as it is to be sent."""

OPAQUE = b" O\0"
"""What stands in such a line for the frame's opaque."""

MAX_LINE = 8192
"""Bytes of an answer's line: no server's is nearly as long."""

MAX_VALUE = 1 << 30
"""Bytes; memcached's ``-I`` goes no further."""

_DO_NOT_CREATE = 0xFFFF_FFFF
_LATEST = 0x7FFF_FFFF
"""What text takes for an expiry ends here; what is later is as good as never to both protocols."""

_unpack = HEADER.unpack_from
_needs_base64 = re.compile(rb"[\x00-\x20\x7f]").search

_MODES = {
    Opcode.SET: b"",
    Opcode.ADD: b" ME",
    Opcode.REPLACE: b" MR",
    Opcode.APPEND: b" MA",
    Opcode.PREPEND: b" MP",
}
_READS = frozenset({Opcode.GET, Opcode.GETK, Opcode.GAT, Opcode.STAT, Opcode.NOOP})


@dataclass(slots=True)
class _Request:
    """What an answer is to.

    Attributes:
        opcode: Of the frame.
        opaque: Of the frame.
        key: Of the document.
        refusal: The status that it is answered with, whatever the server says; 0 for none.
    """

    opcode: int
    opaque: int
    key: bytes
    refusal: int = 0


class MetaTranslation:
    """What one connection to a server that speaks text has been asked."""

    def __init__(self) -> None:
        self._asked: deque[_Request] = deque()
        self._held: list[bytes] = []
        self._held_size = 0
        self._needed = 0

    # requests

    def requests(self, data: bytes) -> bytes:
        """Return the lines for binary requests.

        Args:
            data: Whole frames.
        """
        out: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            _, opcode, key_size, extras_size, _, _, body_size, opaque, cas = _unpack(data, at)
            key_at = at + HEADER_SIZE + extras_size
            value_at = key_at + key_size
            extras, key = data[at + HEADER_SIZE : key_at], data[key_at:value_at]
            at += HEADER_SIZE + body_size
            asked = _Request(opcode, opaque, key)
            self._asked.append(asked)
            if opcode == META:
                line, end_of_line, rest = data[value_at:at].partition(b"\r\n")
                # The last one: a key may look like it.
                place = line.rfind(OPAQUE)
                if place > 0:
                    line = line[:place] + b" O%d" % opaque + line[place + len(OPAQUE) :]
                out += [line, end_of_line, rest]
                continue
            tell = _LINES.get(opcode)
            encoded = b""
            if _needs_base64(key):
                key, encoded = b64encode(key), b" b"
            if tell is None or len(key) > MAX_KEY:
                asked.refusal = Status.UNKNOWN_COMMAND if tell is None else Status.INVALID
                out.append(b"mn\r\n")
            else:
                frame = _Frame(opcode, opaque, cas, key, encoded, extras, data[value_at:at])
                out += tell(frame)
        return b"".join(out)

    # answers

    def replies(self, data: bytes) -> bytes:
        """Return the binary frames of the answers that are complete.

        Args:
            data: What was read.

        Raises:
            RemoteProtocolError: It is no answer to what was asked.
        """
        held = self._held
        if held:
            held.append(data)
            self._held_size += len(data)
            if self._held_size < self._needed:
                return b""
            data = b"".join(held)
            held.clear()
        out: list[bytes] = []
        at, end = 0, len(data)
        needed = 0
        while at < end:
            line_end = data.find(b"\n", at)
            if line_end < 0:
                if end - at > MAX_LINE:
                    raise RemoteProtocolError("a line that does not end")
                break
            line = data[at:line_end].removesuffix(b"\r")
            line_end += 1
            value = b""
            if line.startswith(b"VA "):
                size = _size(line)
                stop = line_end + size + 2
                if stop > end:
                    needed = stop - at
                    break
                value = data[line_end : stop - 2]
                if data[stop - 2 : stop] != b"\r\n":
                    raise RemoteProtocolError("a value that does not end where it should")
                line_end = stop
            at = line_end
            if not self._asked:
                raise RemoteProtocolError("a reply to no request")
            asked = self._asked[0]
            if asked.opcode == Opcode.STAT and line.startswith(b"STAT "):
                _, _, item = line.partition(b" ")
                name, _, text = item.partition(b" ")
                out.append(encode_response(Opcode.STAT, key=name, value=text, opaque=asked.opaque))
                continue
            self._asked.popleft()
            out.append(_frame(asked, line, value))
        if at < end:
            held.append(data[at:])
            self._held_size = end - at
            self._needed = needed
        return b"".join(out)


def _size(line: bytes) -> int:
    size = _number(line.split(b" ", 2)[1], 8)
    if size > MAX_VALUE:
        raise RemoteProtocolError("a value of more than a gibibyte")
    return size


class _Frame(NamedTuple):
    """A request to be told.

    Attributes:
        name: The key as the line has it.
        encoded: The flag that says that it is base64; ``b""`` where it is not.
    """

    opcode: int
    opaque: int
    cas: int
    name: bytes
    encoded: bytes
    extras: bytes
    value: bytes

    def flags(self) -> bytes:
        """Return the flags that every line has."""
        return b"%b O%d" % (self.encoded, self.opaque)

    def expiry(self, at: int) -> int:
        """Return the expiry that stands in the extras."""
        return min(int.from_bytes(self.extras[at : at + 4]), _LATEST)

    def comparison(self) -> bytes:
        """Return the flag for the CAS that must match; ``b""`` where any will do."""
        return b" C%d" % self.cas if self.cas else b""


# One function for each kind of request: its line and what follows


def _get(frame: _Frame) -> list[bytes]:
    return [b"mg %b f c v%b\r\n" % (frame.name, frame.flags())]


def _gat(frame: _Frame) -> list[bytes]:
    return [b"mg %b f c v T%d%b\r\n" % (frame.name, frame.expiry(0), frame.flags())]


def _touch(frame: _Frame) -> list[bytes]:
    return [b"mg %b c T%d%b\r\n" % (frame.name, frame.expiry(0), frame.flags())]


def _store(frame: _Frame) -> list[bytes]:
    mode = _MODES[Opcode(frame.opcode)]
    if frame.cas and frame.extras:
        # A CAS makes a comparison of SET, ADD and REPLACE alike.
        mode = b""
    kept = b""
    if frame.extras:
        kept = b" F%d T%d" % (int.from_bytes(frame.extras[:4]), frame.expiry(4))
    words = (frame.name, len(frame.value), kept, mode, frame.comparison(), frame.flags())
    return [b"ms %b %d c%b%b%b%b\r\n" % words, frame.value, b"\r\n"]


def _delete(frame: _Frame) -> list[bytes]:
    return [b"md %b%b%b\r\n" % (frame.name, frame.comparison(), frame.flags())]


def _count(frame: _Frame) -> list[bytes]:
    delta, initial = int.from_bytes(frame.extras[:8]), int.from_bytes(frame.extras[8:16])
    made = b""
    if int.from_bytes(frame.extras[16:20]) != _DO_NOT_CREATE:
        made = b" J%d N%d" % (initial, frame.expiry(16))
    down = b" MD" if frame.opcode == Opcode.DECREMENT else b""
    words = (frame.name, delta, made, down, frame.comparison(), frame.flags())
    return [b"ma %b v c D%d%b%b%b%b\r\n" % words]


def _flush(frame: _Frame) -> list[bytes]:
    return [b"flush_all %d\r\n" % frame.expiry(0) if frame.extras else b"flush_all\r\n"]


def _stat(frame: _Frame) -> list[bytes]:
    return [b"stats %b\r\n" % frame.name if frame.name else b"stats\r\n"]


def _noop(frame: _Frame) -> list[bytes]:
    return [b"mn\r\n"]


_LINES: dict[int, Callable[[_Frame], list[bytes]]] = {
    Opcode.GET: _get,
    Opcode.GETK: _get,
    Opcode.GAT: _gat,
    Opcode.TOUCH: _touch,
    **dict.fromkeys(_MODES, _store),
    Opcode.DELETE: _delete,
    Opcode.INCREMENT: _count,
    Opcode.DECREMENT: _count,
    Opcode.FLUSH: _flush,
    Opcode.STAT: _stat,
    Opcode.NOOP: _noop,
}


# Answers

_MISSES = {
    b"EN": Status.NOT_FOUND,
    b"NF": Status.NOT_FOUND,
    b"EX": Status.EXISTS,
}
_NOT_STORED = {Opcode.ADD: Status.EXISTS, Opcode.REPLACE: Status.NOT_FOUND}
"""What NS means to those to whom it says more than that nothing was stored."""


def _frame(asked: _Request, line: bytes, value: bytes) -> bytes:
    """Return the frame of one answer."""
    opcode, opaque = asked.opcode, asked.opaque
    code, *flags = line.split(b" ")
    if opcode == META:
        if code not in _CODES_OF_META:
            _error(line, opcode)
        elif code != b"ME" and not _gives_back(b"O%d" % opaque, flags):
            raise RemoteProtocolError("a reply to another request")
        answer = b"%b\r\n%b" % (line, value)
        return encode_response(opcode, value=answer, opaque=opaque)
    if code not in (_CODES[opcode] if not asked.refusal else _CODES_OF_NOOP):
        return error_reply(opcode, _error(line, opcode), opaque)
    if asked.refusal:
        return error_reply(opcode, asked.refusal, opaque)
    found = {flag[:1]: flag[1:] for flag in flags[code == b"VA" :]}
    if found.get(b"O", b"%d" % opaque) != b"%d" % opaque:
        raise RemoteProtocolError("a reply to another request")
    if code == b"NS":
        return error_reply(opcode, _NOT_STORED.get(Opcode(opcode), Status.NOT_STORED), opaque)
    if code in _MISSES:
        if opcode == Opcode.GETK:
            # memcached names what is not there.
            return encode_response(opcode, Status.NOT_FOUND, key=asked.key, opaque=opaque)
        return error_reply(opcode, _MISSES[code], opaque)
    cas, client_flags = _number(found.get(b"c", b"0"), 8), _number(found.get(b"f", b"0"), 4)
    if opcode in _COUNTS:
        return counter_reply(opcode, opaque, cas, _number(value.rstrip(b" "), 8))
    if code != b"VA":
        return simple_reply(opcode, 0, opaque, cas)
    if opcode == Opcode.GETK:
        return encode_response(
            opcode,
            key=asked.key,
            extras=client_flags.to_bytes(4),
            value=value,
            cas=cas,
            opaque=opaque,
        )
    return get_reply(opcode, 0, opaque, cas, client_flags, value)


def _gives_back(opaque: bytes, flags: list[bytes]) -> bool:
    """Return whether an answer has an opaque, or none: not all servers have it with a miss."""
    return opaque in flags or not any(flag[:1] == b"O" for flag in flags)


def _number(digits: bytes, size: int) -> int:
    """Read a number that has room in so many bytes."""
    if not digits.isdigit() or (number := int(digits[:20])) >= 1 << 8 * size:
        raise RemoteProtocolError("a number that is none")
    return number


_CODES_OF_META = frozenset({b"VA", b"HD", b"EN", b"NF", b"NS", b"EX", b"ME"})
_CODES_OF_NOOP = frozenset({b"MN"})
_COUNTS = frozenset({Opcode.INCREMENT, Opcode.DECREMENT})
_READ_CODES = frozenset({b"VA", b"EN"})
_CODES: dict[int, frozenset[bytes]] = {
    Opcode.GET: _READ_CODES,
    Opcode.GETK: _READ_CODES,
    Opcode.GAT: _READ_CODES,
    Opcode.TOUCH: frozenset({b"HD", b"EN"}),
    **dict.fromkeys(_MODES, frozenset({b"HD", b"NS", b"EX", b"NF"})),
    Opcode.DELETE: frozenset({b"HD", b"NF", b"EX"}),
    **dict.fromkeys(_COUNTS, frozenset({b"VA", b"NF", b"NS", b"EX"})),
    Opcode.FLUSH: frozenset({b"OK"}),
    Opcode.STAT: frozenset({b"END", b"RESET"}),
    Opcode.NOOP: _CODES_OF_NOOP,
}
"""The codes that may answer a request; whatever else comes is an error, or makes no sense."""


def _error(line: bytes, opcode: int) -> int:
    """Return the status of an answer that is an error.

    Raises:
        RemoteProtocolError: It is none, or the server does not know the command: then nobody knows
            where the next answer begins.
    """
    if line.startswith(b"SERVER_ERROR"):
        if b"too large" in line:
            return Status.TOO_BIG
        if b"out of memory" in line:
            return Status.NO_MEMORY
        return Status.TEMPORARY_FAILURE if opcode in _READS else Status.INTERNAL
    if line.startswith(b"CLIENT_ERROR"):
        return Status.NOT_A_NUMBER if b"non-numeric" in line else Status.INVALID
    text = line[:40].decode("ascii", "backslashreplace")
    raise RemoteProtocolError(f"an answer that makes no sense: {text}")
