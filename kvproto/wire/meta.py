"""memcached's meta commands: what one line of them asks for, and the words of its answer.

A meta command is a verb, a key and flags of one letter, some with an argument.  All that is judged
here is the line; what it means for a document is `kvproto.store.meta`'s.  What a client asked to be
given back stands in the order of its flags, so the flags are kept as they came.

Source: memcached 1.6.45, ``doc/protocol.txt``, ``proto_parser.c``.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_letters, digits

from kvproto.wire.constants import MAX_KEY
from kvproto.wire.text_grammar import (
    BAD_FORMAT,
    TextRefusal,
    expiry_of,
    number,
    parse_size,
)

__all__ = ["MAX_OPAQUE", "MetaCommand", "meta_key", "parse_meta", "parse_meta_set"]

_MAX_I32 = 0x7FFF_FFFF
_MAX_U32 = 0xFFFF_FFFF
_MAX_U64 = 0xFFFF_FFFF_FFFF_FFFF
_MAX_FLAGS = 20
"""Most tokens of a line, as memcached counts them."""

MAX_OPAQUE = 32
"""Longest opaque token in bytes, its letter included."""

_FLAGS = frozenset(b"[\\]^_`" + (ascii_letters + digits).encode())
"""What memcached's tokenizer takes for the beginning of a flag."""

DUPLICATE = b"CLIENT_ERROR duplicate flag\r\n"
BAD_TOKEN = b"CLIENT_ERROR bad token in command line format\r\n"
BAD_KEY = b"CLIENT_ERROR error decoding key\r\n"
BAD_INITIAL = b"CLIENT_ERROR invalid numeric initial value\r\n"
BAD_DELTA = b"CLIENT_ERROR invalid numeric delta value\r\n"
BAD_FLAG = b"CLIENT_ERROR invalid flag\r\n"
TOO_MANY = b"CLIENT_ERROR options flags are too long\r\n"
LONG_OPAQUE = b"CLIENT_ERROR opaque token too long\r\n"
BAD_ARITHMETIC = b"CLIENT_ERROR invalid or duplicate flag\r\n"
"""Whatever is wrong with the flags of ``ma``."""
_BAD_MODE = {
    "ms": b"CLIENT_ERROR invalid mode for ms M token\r\n",
    "ma": b"CLIENT_ERROR invalid mode for ma M token\r\n",
}

_MODES = {"ms": b"SEARP", "ma": b"I+D-"}
_BARE = frozenset(b"bklOPLstcfvhuqxI")


@dataclass(slots=True)
class MetaCommand:
    """One meta command, checked.

    Attributes:
        verb: ``mg ms md ma me``.
        key: Decoded, if it came in base64.
        flags: As they came: each a letter and, perhaps, an argument.
        letters: The first byte of each flag, in order.
        value: Of ``ms``.
        quiet: The usual answer is not wanted (``q``).
        mode: Of ``ms`` one of ``SEARP``, of ``ma`` one of ``I+D-``; 0 when there is none.
        cas: The CAS that must match (``C``), None for any.
        new_cas: The CAS to be had afterwards (``E``), None for one of the store's.
        expiry: The new expiry (``T``), as the store takes it; None when it is not given.
        vivify: The expiry of what is made where nothing is (``N``); None when nothing shall be.
        recache: Seconds below which one client is told to fetch anew (``R``); None when none is.
        client_flags: Of ``ms`` (``F``).
        delta: Of ``ma`` (``D``).
        initial: Of ``ma`` (``J``).
    """

    verb: str
    key: bytes
    flags: tuple[bytes, ...] = ()
    letters: bytes = b""
    value: bytes = b""
    quiet: bool = False
    mode: int = 0
    cas: int | None = None
    new_cas: int | None = None
    expiry: int | None = None
    vivify: int | None = None
    recache: int | None = None
    client_flags: int = 0
    delta: int = 1
    initial: int = 0

    noreply = False
    """Errors are always answered, as everything else that is not the usual answer."""


def meta_key(key: bytes, *, binary: bool) -> bytes:
    """Return a key as an answer has it: `binary` keys in base64, and said to be."""
    return b"k%b b" % b64encode(key) if binary else b"k" + key


def parse_meta(verb: str, tokens: list[bytes], max_key: int = MAX_KEY) -> MetaCommand | TextRefusal:
    """Read mg, md, ma or me.

    Args:
        verb: Which of them.
        tokens: The line's tokens, the verb included.
        max_key: Longest key as it came, in bytes.
    """
    if len(tokens) < 2:
        return TextRefusal(BAD_FORMAT, verb)
    if verb == "me":
        tokens = [*tokens[:2], *(token for token in tokens[2:3] if token == b"b")]
    return _parse_flags(verb, tokens[1], tuple(tokens[2:]), len(tokens), max_key)


def parse_meta_set(
    tokens: list[bytes], max_key: int = MAX_KEY
) -> tuple[MetaCommand | TextRefusal, int | None]:
    """Read ms.

    Args:
        tokens: The line's tokens, the verb included.
        max_key: Longest key as it came, in bytes.

    Returns:
        The command, without its value, or a refusal; and the size of the value that follows in
        bytes, None when the line does not say.
    """
    size = parse_size(tokens[2]) if len(tokens) > 2 else None
    if size is None:
        return TextRefusal(BAD_FORMAT, "ms"), None
    return _parse_flags("ms", tokens[1], tuple(tokens[3:]), len(tokens), max_key), size


def _parse_flags(
    verb: str, key: bytes, flags: tuple[bytes, ...], tokens: int, max_key: int
) -> MetaCommand | TextRefusal:
    letters = bytes([flag[0] for flag in flags])
    if not _FLAGS.issuperset(letters):
        return TextRefusal(BAD_FORMAT, verb)
    command = MetaCommand(verb, key, flags, letters)
    fault = _read_flags(command, tokens, max_key)
    if fault is not None:
        return TextRefusal(BAD_ARITHMETIC if verb == "ma" else fault, verb)
    if command.mode and command.mode not in _MODES.get(verb, b""):
        if verb in _BAD_MODE:
            return TextRefusal(_BAD_MODE[verb], verb)
        command.mode = 0
    at = letters.find(_OPAQUE)
    if at >= 0 and len(flags[at]) > MAX_OPAQUE:
        return TextRefusal(LONG_OPAQUE, verb)
    return command


_OPAQUE, _QUIET, _BASE64, _CLIENT_FLAGS = b"OqbF"


def _read_flags(command: MetaCommand, tokens: int, max_key: int) -> bytes | None:
    """Read the flags of a command; return what is wrong with them, as memcached says it."""
    if len(command.key) > max_key:
        return BAD_FORMAT
    if tokens > _MAX_FLAGS:
        return TOO_MANY
    fault: bytes | None = None
    seen = set()
    for flag in command.flags:
        letter = flag[0]
        if letter in seen:
            return DUPLICATE
        seen.add(letter)
        if letter in _BARE:
            if letter == _QUIET:
                command.quiet = True
            elif letter == _BASE64:
                command.key = _decode(command.key)
                fault = fault if command.key else BAD_KEY
            continue
        read = _ARGUMENTS.get(letter)
        if read is None:
            return BAD_FLAG
        found = read(command, flag[1:])
        # memcached has no words for bad client flags: what it has found before stands.
        fault = (fault or found) if letter == _CLIENT_FLAGS else (found or fault)
    return fault


_foreign = re.compile(rb"[^A-Za-z0-9+/=]+").sub


def _decode(key: bytes) -> bytes:
    """Return what base64 stands for, b"" when it is none.

    Characters that belong to no base64 are passed over, as memcached does.
    """
    key = _foreign(b"", key)
    try:
        return b"" if len(key) % 4 else a2b_base64(key)
    except ValueError:
        return b""


_Read = Callable[[MetaCommand, bytes], "bytes | None"]


def _read_number(name: str, most: int, fault: bytes) -> _Read:
    def read(command: MetaCommand, argument: bytes) -> bytes | None:
        found = number(argument, 0, most)
        if found is None:
            return fault
        setattr(command, name, found)
        return None

    return read


def _read_expiry(name: str) -> _Read:
    def read(command: MetaCommand, argument: bytes) -> bytes | None:
        found = expiry_of(number(argument, -_MAX_I32 - 1, _MAX_U32))
        if found is None:
            return BAD_TOKEN
        setattr(command, name, found)
        return None

    return read


def _read_mode(command: MetaCommand, argument: bytes) -> bytes | None:
    command.mode = argument[0] if argument else 0x20
    return None


_ARGUMENTS: dict[int, _Read] = {
    ord("C"): _read_number("cas", _MAX_U64, BAD_TOKEN),
    ord("E"): _read_number("new_cas", _MAX_U64, BAD_TOKEN),
    ord("F"): _read_number("client_flags", _MAX_U32, BAD_FORMAT),
    ord("D"): _read_number("delta", _MAX_U64, BAD_DELTA),
    ord("J"): _read_number("initial", _MAX_U64, BAD_INITIAL),
    ord("T"): _read_expiry("expiry"),
    ord("N"): _read_expiry("vivify"),
    ord("R"): _read_expiry("recache"),
    ord("M"): _read_mode,
}
"""Flags with an argument: each reads it, and says what is wrong with it."""
