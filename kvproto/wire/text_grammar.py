"""What one line of memcached's text protocol means.

Pure functions from tokens to commands or refusals; the stream is cut into lines in
`kvproto.wire.text`.  Every refusal that memcached and this module both give has the same words.

Sources: memcached ``doc/protocol.txt``, ``proto_parser.c``, and the answers of memcached 1.6.45 to
the lines that ``tests/wire/golden_text.py`` records.  Where it would change what it was given
without a word (flags above 32 bits are cut off there) this module refuses instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvproto.wire.constants import MAX_KEY

__all__ = [
    "ADMINISTRATION",
    "BAD_DATA_CHUNK",
    "BAD_FORMAT",
    "END_OF_KEYS",
    "ERROR",
    "EXPIRED",
    "RETRIEVALS",
    "SIMPLE",
    "STORAGE",
    "TOO_LARGE",
    "TextCommand",
    "TextRefusal",
    "expiry_of",
    "number",
    "parse_other",
    "parse_retrieval",
    "parse_size",
    "parse_storage",
]

ERROR = b"ERROR\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_DELETE = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
BAD_EXPIRY = b"CLIENT_ERROR invalid exptime argument\r\n"
BAD_DELTA = b"CLIENT_ERROR invalid numeric delta argument\r\n"
BAD_DATA_CHUNK = b"CLIENT_ERROR bad data chunk\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"

EXPIRED = 30 * 24 * 60 * 60 + 1
"""The smallest expiry that is an absolute time: 31 January 1970.  Stands for "expired at once"."""

_new = object.__new__

_MAX_I32 = 0x7FFF_FFFF
_MAX_U32 = 0xFFFF_FFFF
_MAX_U64 = 0xFFFF_FFFF_FFFF_FFFF
_MAX_SIZE = _MAX_I32 - 2
"""memcached's ``INT_MAX - 2``: a value and its line end are counted in an ``int``."""

_SIZE_DIGITS = 11
"""Longest size as it is written, in bytes; what is longer memcached takes for no number."""

_SHORTEST_LINE = 4
"""Bytes, the line end included; memcached looks at nothing shorter."""

# What strtol(3) takes in front of a number, and what memcached allows behind one.
_NUMBER = re.compile(rb"[\t\v\f\r]*([+-]?[0-9]{1,64})(?:[\t\v\f\r].*)?\Z", re.DOTALL)
_SIGNED = re.compile(rb"-?[0-9]{1,20}\Z").match


@dataclass(slots=True)
class TextCommand:
    """One command, checked; a retrieval of several keys is one command for each and an ``end``.

    Attributes:
        verb: ``get gets gat gats end set add replace append prepend cas delete incr decr touch
            flush_all stats version verbosity quit mn config watch``, or one of `ADMINISTRATION`;
            ``end`` closes a retrieval.
        expiry: As the binary protocol's u32, a negative one has become one long past.  Of
            flush_all: the delay, 0 when there is none.
        delta: Of incr and decr.
        noreply: The client does not want the answer.
        args: The arguments of ``stats``, ``watch`` and of administration.
    """

    verb: str
    key: bytes = b""
    value: bytes = b""
    flags: int = 0
    expiry: int = 0
    cas: int = 0
    delta: int = 0
    noreply: bool = False
    args: tuple[bytes, ...] = ()


@dataclass(slots=True)
class TextRefusal:
    """What the decoder itself has to say to a line: send `line` (it may be empty) and go on.

    Attributes:
        line: The whole answer with its line end, ``b""`` when the client wants none.
        verb: The command refused, ``""`` when it was none.
        key: Set with `too_large` only.
        too_large: The value was longer than allowed and has been thrown away.  memcached then
            deletes the old value under `key` if the verb is ``set``.
        value: Of a ``set`` while it may be a login (`TextDecoder.login`), which looks at nothing
            else: name and password.
    """

    line: bytes
    verb: str = ""
    key: bytes = b""
    too_large: bool = False
    value: bytes = b""


END_OF_KEYS = TextCommand("end")
"""Closes each retrieval; one object for all, not to be changed."""

RETRIEVALS: dict[bytes, str] = {b"get": "get", b"gets": "gets", b"gat": "gat", b"gats": "gats"}
_KEYS_AT = {"get": 1, "gets": 1, "gat": 2, "gats": 2}
"""Where on the line of a retrieval its keys begin."""

STORAGE: dict[bytes, str] = {
    b"set": "set",
    b"add": "add",
    b"replace": "replace",
    b"append": "append",
    b"prepend": "prepend",
    b"cas": "cas",
}


def number(token: bytes, least: int, most: int) -> int | None:
    """Read a decimal number in its plain form; None when it is none or out of range."""
    if token.isdigit() if least >= 0 else _SIGNED(token):
        found = int(token[-64:])
        if len(token) <= 64 and least <= found <= most:
            return found
    return None


def _lenient_number(token: bytes, least: int, most: int) -> int | None:
    """Read a number as strtol(3) does, where memcached still uses it."""
    if not token.isdigit() or len(token) > 64:
        match = _NUMBER.match(token)
        if match is None:
            return None
        token = match[1]
    found = int(token)
    return found if least <= found <= most else None


def expiry_of(found: int | None) -> int | None:
    """Return an expiry as the store takes it.

    memcached counts in 31 bits: what is negative, or was before a client made it unsigned, is over.
    """
    return EXPIRED if found is not None and (found < 0 or found > _MAX_I32) else found


def _expiry(token: bytes) -> int | None:
    return expiry_of(number(token, -_MAX_I32 - 1, _MAX_U32))


def _refuse(line: bytes, verb: str, tokens: list[bytes]) -> TextRefusal:
    """Refuse a command; a client that said ``noreply`` hears nothing, as memcached has it."""
    return TextRefusal(b"" if tokens[-1] == b"noreply" else line, verb)


def parse_retrieval(
    verb: str, tokens: list[bytes], items: list[Any], max_key: int = MAX_KEY
) -> None:
    """Read get, gets, gat or gats.

    Args:
        verb: Which of them.
        tokens: The line's tokens, the verb included.
        items: Takes one command a key and `END_OF_KEYS`; or one refusal, when any key is too long.
        max_key: Longest key, in bytes.
    """
    keys_at = _KEYS_AT[verb]
    if len(tokens) <= keys_at:
        items.append(TextRefusal(BAD_FORMAT, verb))
        return
    expiry = 0 if keys_at == 1 else _expiry(tokens[1])
    if expiry is None:
        items.append(TextRefusal(BAD_EXPIRY, verb))
        return
    first = len(items)
    for key in tokens[keys_at:]:
        if len(key) > max_key:
            items[first:] = [TextRefusal(BAD_FORMAT, verb)]
            return
        # What ``TextCommand(...)`` does, in two thirds of its time.
        command = _new(TextCommand)
        command.verb = verb
        command.key = key
        command.expiry = expiry
        command.flags = command.cas = command.delta = 0
        command.value = b""
        command.noreply = False
        command.args = ()
        items.append(command)
    items.append(END_OF_KEYS)


def parse_size(token: bytes) -> int | None:
    """Read how many bytes of value follow a line; None when it does not say."""
    if len(token) > _SIZE_DIGITS:
        return None
    size = int(token) if token.isdigit() else number(token, -_MAX_SIZE, _MAX_SIZE)
    return size if size is not None and 0 <= size <= _MAX_SIZE else None


def parse_storage(
    verb: str, tokens: list[bytes], max_key: int = MAX_KEY
) -> tuple[TextCommand | TextRefusal, int | None]:
    """Read set, add, replace, append, prepend or cas.

    Args:
        verb: Which of them.
        tokens: The line's tokens, the verb included.
        max_key: Longest key, in bytes.

    Returns:
        The command, without its value, or a refusal; and the size of the value that follows in
        bytes, None when the line does not say.
    """
    size = parse_size(tokens[4]) if len(tokens) > 4 else None
    if size is None:
        return TextRefusal(BAD_FORMAT, verb), None
    key = tokens[1]
    flags = _lenient_number(tokens[2], 0, _MAX_U32)
    expiry = _lenient_number(tokens[3], -_MAX_U64, _MAX_U32)
    if expiry:
        expiry = expiry_of(expiry)
    cas: int | None = 0
    if verb == "cas":
        cas = number(tokens[5], 0, _MAX_U64) if len(tokens) > 5 else None
    if len(key) > max_key or flags is None or expiry is None or cas is None:
        return _refuse(BAD_FORMAT, verb, tokens), size
    return TextCommand(verb, key, b"", flags, expiry, cas, 0, tokens[-1] == b"noreply"), size


def _parse_delete(verb: str, tokens: list[bytes], max_key: int) -> TextCommand | TextRefusal:
    if len(tokens) < 2:
        return TextRefusal(BAD_FORMAT, verb)
    if len(tokens) > 4:
        return TextRefusal(ERROR, verb)
    noreply = tokens[-1] == b"noreply"
    # A zero between key and noreply was once a hold time; old clients still send it.
    middle = tokens[2:-1] if noreply else tokens[2:]
    if middle not in ([], [b"0"]):
        return _refuse(BAD_DELETE, verb, tokens)
    if len(tokens[1]) > max_key:
        return _refuse(BAD_FORMAT, verb, tokens)
    return TextCommand(verb, tokens[1], noreply=noreply)


def _parse_arithmetic(verb: str, tokens: list[bytes], max_key: int) -> TextCommand | TextRefusal:
    if len(tokens) < 3:
        return TextRefusal(BAD_FORMAT, verb)
    if len(tokens[1]) > max_key:
        return _refuse(BAD_FORMAT, verb, tokens)
    delta = number(tokens[2], 0, _MAX_U64)
    if delta is None:
        return _refuse(BAD_DELTA, verb, tokens)
    return TextCommand(verb, tokens[1], delta=delta, noreply=tokens[-1] == b"noreply")


def _parse_touch(verb: str, tokens: list[bytes], max_key: int) -> TextCommand | TextRefusal:
    if len(tokens) < 3:
        return TextRefusal(BAD_FORMAT, verb)
    if len(tokens[1]) > max_key:
        return _refuse(BAD_FORMAT, verb, tokens)
    expiry = _expiry(tokens[2])
    if expiry is None:
        return _refuse(BAD_EXPIRY, verb, tokens)
    return TextCommand(verb, tokens[1], expiry=expiry, noreply=tokens[-1] == b"noreply")


def _parse_flush(verb: str, tokens: list[bytes], max_key: int) -> TextCommand | TextRefusal:
    noreply = tokens[-1] == b"noreply"
    is_bare = len(tokens) == (2 if noreply else 1)
    delay = 0 if is_bare else number(tokens[1], -_MAX_I32 - 1, _MAX_I32)
    if delay is None:
        return _refuse(BAD_EXPIRY, verb, tokens)
    return TextCommand(verb, expiry=max(delay, 0), noreply=noreply)


def _parse_verbosity(verb: str, tokens: list[bytes], max_key: int) -> TextCommand | TextRefusal:
    if len(tokens) < 2 or number(tokens[1], 0, _MAX_U32) is None:
        return _refuse(BAD_FORMAT, verb, tokens)
    return TextCommand(verb, noreply=tokens[-1] == b"noreply")


def _parse_bare(verb: str, tokens: list[bytes], max_key: int) -> TextCommand | TextRefusal:
    """Read a command that memcached answers whatever its arguments are."""
    return TextCommand(verb, args=tuple(tokens[1:]))


def _parse_administration(
    verb: str, tokens: list[bytes], max_key: int
) -> TextCommand | TextRefusal:
    return TextCommand(verb, args=tuple(tokens[1:]), noreply=tokens[-1] == b"noreply")


_Parse = Callable[[str, list[bytes], int], TextCommand | TextRefusal]

ADMINISTRATION = ("cache_memlimit", "debugtime", "lru", "lru_crawler", "shutdown", "slabs")
"""Commands about the server as a whole, with memcached's names."""

SIMPLE: dict[bytes, tuple[str, _Parse]] = {
    b"delete": ("delete", _parse_delete),
    b"incr": ("incr", _parse_arithmetic),
    b"decr": ("decr", _parse_arithmetic),
    b"touch": ("touch", _parse_touch),
    b"flush_all": ("flush_all", _parse_flush),
    b"verbosity": ("verbosity", _parse_verbosity),
    b"stats": ("stats", _parse_bare),
    b"version": ("version", _parse_bare),
    b"quit": ("quit", _parse_bare),
    b"watch": ("watch", _parse_bare),
    b"mn": ("mn", _parse_bare),
    b"config": ("config", _parse_bare),
    **{verb.encode(): (verb, _parse_administration) for verb in ADMINISTRATION},
}
"""Commands that are one line and one item: name, and who reads it."""


def parse_other(line: bytes, tokens: list[bytes]) -> TextRefusal | None:
    """Answer a line that begins with no command.

    Args:
        line: The line, with its line end.
        tokens: Its tokens.

    Returns:
        None for a request of HTTP.
    """
    if len(line) < _SHORTEST_LINE:
        return TextRefusal(BAD_FORMAT)
    if len(tokens) > 1 and tokens[-1].startswith(b"HTTP/"):
        return None
    return _refuse(ERROR, "", tokens)
