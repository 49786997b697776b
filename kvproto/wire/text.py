"""memcached's text protocol: bytes in, commands out; replies are encoded here too.

A command is a line and, for storage, exactly as many bytes as it said and a line end.  A wrong line
is answered and forgotten (`TextRefusal`), with the value that it announced: what a client meant as
data never becomes a command.  Only two things end a stream: a line longer than the limit, and a
request of HTTP, which memcached hangs up on too, so that no web page can talk to it.

A line longer than the limit is allowed for ``get`` and ``gets``, as in memcached: its keys are
delivered as they come in, so that no more than one of them is ever held.

Source: memcached ``doc/protocol.txt``, ``proto_text.c``.
"""

from __future__ import annotations

import re

from kvproto.errors import RemoteProtocolError
from kvproto.wire.constants import MAX_KEY
from kvproto.wire.meta import MetaCommand, parse_meta, parse_meta_set
from kvproto.wire.pieces import Pieces
from kvproto.wire.text_grammar import (
    BAD_DATA_CHUNK,
    BAD_FORMAT,
    END_OF_KEYS,
    ERROR,
    RETRIEVALS,
    SIMPLE,
    STORAGE,
    TOO_LARGE,
    TextCommand,
    TextRefusal,
    number,
    parse_other,
    parse_retrieval,
    parse_storage,
)

__all__ = [
    "BAD_FORMAT",
    "DEFAULT_MAX_LINE",
    "DEFAULT_MAX_VALUE",
    "DELETED",
    "END",
    "ERROR",
    "EXISTS",
    "NOT_A_NUMBER",
    "NOT_FOUND",
    "NOT_STORED",
    "OK",
    "STORED",
    "TOO_LARGE",
    "TOUCHED",
    "TextCommand",
    "TextDecoder",
    "TextRefusal",
    "client_error",
    "number",
    "server_error",
    "stat_line",
    "value_head",
    "value_reply",
    "version_line",
]

DEFAULT_MAX_VALUE = 20 * 1024 * 1024
"""Couchbase's largest value, in bytes."""

DEFAULT_MAX_LINE = 2048
"""Longest line without its line feed, in bytes: where memcached begins to suspect a line."""

_CR = 0x0D

_LONG_RETRIEVAL = re.compile(rb" {0,100}(gets?) ")
"""What a line beyond the limit must begin with; memcached allows the spaces."""

Item = TextCommand | MetaCommand | TextRefusal

_STORAGE = STORAGE | {b"ms": "ms"}
_SIMPLE = SIMPLE | {verb.encode(): (verb, parse_meta) for verb in ("mg", "md", "ma", "me")}


class TextDecoder:
    """Cuts a client's stream into commands.

    Args:
        max_value: Longest value that is kept, in bytes; a longer one is discarded as it streams
            in and reported as a `TextRefusal` with `too_large` once it is through.
        max_key: Longest key, in bytes.
        max_line: Longest line of any command but get and gets, in bytes.

    Attributes:
        max_value: As given; a new value holds for the commands that are still to come.
        login: Whether a ``set`` may be a login, of which only the value counts: a refused one then
            has its value.
        error: Why the stream cannot be read any further, None while it can.
        held: Whether the next bytes continue something: part of a command, or a broken stream.
    """

    __slots__ = (
        "_keys",
        "_line_end",
        "_max_key",
        "_max_line",
        "_missing",
        "_owed",
        "_pieces",
        "_retrieval",
        "_skipping",
        "_tail",
        "error",
        "held",
        "login",
        "max_value",
    )

    def __init__(
        self,
        max_value: int = DEFAULT_MAX_VALUE,
        max_key: int = MAX_KEY,
        max_line: int = DEFAULT_MAX_LINE,
    ) -> None:
        self.max_value = max_value
        self.login = False
        self._max_key = max_key
        self._max_line = max_line
        # True when anything below is set: the usual read, whole commands only, looks at one flag.
        self.held = False
        self._tail = b""
        # Whose value is coming in, or being thrown away; None when its answer is out already.
        self._owed: Item | None = None
        self._pieces: Pieces | None = None
        self._missing = 0
        self._line_end = b""
        # The verb of a long retrieval whose keys are coming in, how many came, and whether a bad
        # one has spoilt the rest.
        self._retrieval = ""
        self._keys = 0
        self._skipping = False
        self.error: RemoteProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes that are held for commands that are not complete yet."""
        return len(self._tail) + (0 if self._pieces is None else self._pieces.size)

    @property
    def partial(self) -> bool:
        """Whether the stream, not broken, has stopped in the middle of a command."""
        return self.held and self.error is None

    def discard(self) -> None:
        """Forget what is held of a command that will never be complete; nothing may follow."""
        self._tail = b""
        self._owed = self._pieces = None
        self.held = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Item]:
        """Decode what was read.

        Nothing is raised for what this call finds: the commands before the fault are returned, and
        `error` says what ended the stream.  Look at `error` once the commands have been served.

        Args:
            data: Any part of the stream, following what was fed before; not kept unless it is
                ``bytes``.

        Returns:
            What is complete now, in order.

        Raises:
            RemoteProtocolError: The stream was ended by an earlier call.
        """
        if type(data) is not bytes:
            data = bytes(data)
        items: list[Item] = []
        at = 0
        if self.held:
            if self.error is not None:
                raise self.error
            self.held = False
            data, at = self._resume(data, items)
        end = len(data)
        max_line, max_key = self._max_line, self._max_key
        while at < end:
            line_end = data.find(b"\n", at, at + max_line + 1)
            if line_end < 0:
                if end - at <= max_line:
                    self.held = True
                    self._tail = data[at:]
                    break
                at = self._long_line(data, at, items)
                continue
            line_at, at = at, line_end + 1
            if data[line_end - 1] == _CR and line_end > line_at:
                line_end -= 1
            tokens = data[line_at:line_end].split(b" ")
            name = tokens[0]
            if b"" in tokens:
                tokens = [token for token in tokens if token] or [b""]
            if name in RETRIEVALS:
                parse_retrieval(RETRIEVALS[name], tokens, items, max_key)
            elif name in _STORAGE:
                at = self._storage(_STORAGE[name], tokens, data, at, items)
            elif name in _SIMPLE:
                verb, parse = _SIMPLE[name]
                items.append(parse(verb, tokens, max_key))
            elif (refusal := parse_other(data[line_at:at], tokens)) is not None:
                items.append(refusal)
            else:
                at = self._fail("an HTTP request", end)
        return items

    def _resume(self, data: bytes, items: list[Item]) -> tuple[bytes, int]:
        """Go on with what the last read left; return the data to decode and where to begin."""
        if self._retrieval:
            return data, self._stream_keys(data, 0, items)
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if self._owed is not None or self._missing:
            return data, self._take_value(data, 0, items)
        return data, 0

    # Storage

    def _storage(
        self, verb: str, tokens: list[bytes], data: bytes, at: int, items: list[Item]
    ) -> int:
        """Take a storage command, or begin to; return where the next line begins."""
        command: Item
        if verb == "ms":
            command, size = parse_meta_set(tokens, self._max_key)
        else:
            command, size = parse_storage(verb, tokens, self._max_key)
        if size is None:
            items.append(command)
            return at
        stop = at + size
        if command.__class__ is not TextRefusal and size <= self.max_value:
            if data[stop : stop + 2] == b"\r\n":
                command.value = data[at:stop]
                items.append(command)
                return stop + 2
            self._owed = command
            self._pieces = Pieces()
        else:
            self._owe_refusal(command, size, items)
        self._missing = size + 2
        return self._take_value(data, at, items)

    def _owe_refusal(self, command: Item, size: int, items: list[Item]) -> None:
        """Refuse a command of which a value is still to come."""
        if not isinstance(command, TextRefusal):
            line = b"" if command.noreply else TOO_LARGE
            self._owed = TextRefusal(line, command.verb, command.key, too_large=True)
        elif self.login and command.verb == "set" and size <= self.max_value:
            self._owed = command
            self._pieces = Pieces()
        else:
            items.append(command)

    def _take_value(self, data: bytes, at: int, items: list[Item]) -> int:
        """Take what belongs to the value that is coming in; return where the next line begins."""
        pieces = self._pieces
        take = min(self._missing, len(data) - at)
        stop = at + take
        if pieces is not None:
            value_end = min(stop, at + max(self._missing - 2, 0))
            pieces.add(data[at:value_end])
            self._line_end += data[value_end:stop]
        self._missing -= take
        if self._missing:
            self.held = True
            return stop
        owed, self._owed, self._pieces = self._owed, None, None
        if pieces is not None and owed is not None:
            if self._line_end == b"\r\n":
                owed.value = pieces.join()
            elif not isinstance(owed, TextRefusal):
                # As memcached does it: exactly these bytes are gone, the next one begins a line.
                owed = TextRefusal(b"" if owed.noreply else BAD_DATA_CHUNK, owed.verb)
            self._line_end = b""
        if owed is not None:
            items.append(owed)
        return stop

    # Lines beyond the limit

    def _long_line(self, data: bytes, at: int, items: list[Item]) -> int:
        """Begin a line that is longer than the limit; return where the next one begins."""
        match = _LONG_RETRIEVAL.match(data, at)
        if match is None:
            return self._fail(f"a line of more than {self._max_line} bytes", len(data))
        self._retrieval = RETRIEVALS[match[1]]
        self._keys = 0
        self._skipping = False
        return self._stream_keys(data, match.end(), items)

    def _stream_keys(self, data: bytes, at: int, items: list[Item]) -> int:
        """Deliver the keys of a long retrieval as they come in; return where the next line begins.

        A key is complete when a space or the line end follows it.
        """
        line_end = data.find(b"\n", at)
        whole = line_end >= 0
        part = self._tail + data[at : line_end if whole else len(data)]
        if whole and part.endswith(b"\r"):
            part = part[:-1]
        tokens = part.split(b" ")
        self._tail = b"" if whole else tokens.pop()
        verb, max_key = self._retrieval, self._max_key
        if len(self._tail) > max_key + 1:
            # Too long even if its last byte should turn out to belong to the line end.
            tokens.append(self._tail)
            self._tail = b""
        for key in () if self._skipping else tokens:
            if len(key) > max_key:
                items.append(TextRefusal(BAD_FORMAT, verb))
                self._skipping = True
                break
            if key:
                self._keys += 1
                items.append(TextCommand(verb, key))
        if not whole:
            self.held = True
            return len(data)
        if not self._skipping:
            items.append(END_OF_KEYS if self._keys else TextRefusal(BAD_FORMAT, verb))
        self._retrieval = ""
        return line_end + 1

    def _fail(self, reason: str, end: int) -> int:
        """Note that the peer broke the stream: the one place where a decoder blames anybody."""
        self.held = True
        self.error = RemoteProtocolError(reason)
        return end


STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
EXISTS = b"EXISTS\r\n"
NOT_FOUND = b"NOT_FOUND\r\n"
DELETED = b"DELETED\r\n"
TOUCHED = b"TOUCHED\r\n"
OK = b"OK\r\n"
END = b"END\r\n"
NOT_A_NUMBER = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"


def value_head(key: bytes, flags: int, size: int, cas: int | None = None) -> bytes:
    """Encode the line before a value; `size` bytes and a line end must follow.

    Args:
        key: The key asked for.
        flags: As stored.
        size: Of the value, in bytes.
        cas: For gets and gats; None leaves it out.
    """
    if cas is None:
        return b"VALUE %b %d %d\r\n" % (key, flags, size)
    return b"VALUE %b %d %d %d\r\n" % (key, flags, size, cas)


def value_reply(key: bytes, flags: int, value: bytes, cas: int | None = None) -> bytes:
    """Encode one hit with its value; for values short enough to be copied.

    Args:
        key: The key asked for.
        flags: As stored.
        value: As stored.
        cas: For gets and gats; None leaves it out.
    """
    if cas is None:
        return b"VALUE %b %d %d\r\n%b\r\n" % (key, flags, len(value), value)
    return b"VALUE %b %d %d %d\r\n%b\r\n" % (key, flags, len(value), cas, value)


def stat_line(name: bytes, value: bytes) -> bytes:
    """Encode one statistic; `END` closes the list."""
    return b"STAT %b %b\r\n" % (name, value)


def version_line(version: bytes) -> bytes:
    """Encode the answer to ``version``."""
    return b"VERSION %b\r\n" % version


def client_error(text: bytes) -> bytes:
    """Encode "the client is wrong"; the text must hold no line end."""
    return b"CLIENT_ERROR %b\r\n" % text


def server_error(text: bytes) -> bytes:
    """Encode "the server cannot"; the text must hold no line end."""
    return b"SERVER_ERROR %b\r\n" % text
