"""The smallest memcached that can answer a `TextDecoder`'s commands."""

from __future__ import annotations

from kvproto.wire import text
from kvproto.wire.text import TextCommand, TextDecoder, TextRefusal
from tests.wire.golden_text import CLOSED

__all__ = ["Answering"]

_EXPIRED = 30 * 24 * 60 * 60 + 1


class Answering:
    """Holds ``k`` with flags 5 and the value ``1``; expiry is all or nothing, CAS always differs.

    Args:
        max_line: The decoder's limit.
    """

    def __init__(self, max_line: int = 2048) -> None:
        self.decoder = TextDecoder(max_value=1 << 20, max_line=max_line)
        self.held = {b"k": (5, b"1")}

    def answer(self, parts: list[bytes]) -> bytes:
        """Return all that a client would read back."""
        out = b""
        for part in parts:
            for item in self.decoder.feed(part):
                if isinstance(item, TextRefusal):
                    out += item.line
                else:
                    assert isinstance(item, TextCommand)
                    reply = getattr(self, f"do_{item.verb}", self.do_storage)(item)
                    out += b"" if item.noreply else reply
            if self.decoder.error is not None:
                return out + CLOSED
        return out

    def put(self, command: TextCommand, flags: int, value: bytes) -> bytes:
        if command.expiry == _EXPIRED:
            self.held.pop(command.key, None)
        else:
            self.held[command.key] = (flags, value)
        return text.STORED

    def do_storage(self, command: TextCommand) -> bytes:
        flags, old = self.held.get(command.key, (None, b""))
        match command.verb:
            case "cas":
                return text.NOT_FOUND if flags is None else text.EXISTS
            case "add" if flags is not None:
                return text.NOT_STORED
            case "replace" | "append" | "prepend" if flags is None:
                return text.NOT_STORED
            case "append" if flags is not None:
                return self.put(command, flags, old + command.value)
        return self.put(command, command.flags, command.value)

    def do_get(self, command: TextCommand) -> bytes:
        if command.key not in self.held:
            return b""
        return text.value_reply(command.key, *self.held[command.key])

    def do_gat(self, command: TextCommand) -> bytes:
        reply = self.do_get(command)
        self.do_touch(command)
        return reply

    do_gats = do_gat

    def do_end(self, command: TextCommand) -> bytes:
        return text.END

    def do_delete(self, command: TextCommand) -> bytes:
        return text.NOT_FOUND if self.held.pop(command.key, None) is None else text.DELETED

    def do_touch(self, command: TextCommand) -> bytes:
        if command.key not in self.held:
            return text.NOT_FOUND
        if command.expiry == _EXPIRED:
            del self.held[command.key]
        return text.TOUCHED

    def do_incr(self, command: TextCommand) -> bytes:
        if command.key not in self.held:
            return text.NOT_FOUND
        flags, value = self.held[command.key]
        sign = 1 if command.verb == "incr" else -1
        number = b"%d" % max(int(value) + sign * command.delta, 0)
        self.held[command.key] = (flags, number)
        return number + b"\r\n"

    do_decr = do_incr

    def do_flush_all(self, command: TextCommand) -> bytes:
        if not command.expiry:
            self.held.clear()
        return text.OK

    def do_verbosity(self, command: TextCommand) -> bytes:
        return text.OK

    def do_version(self, command: TextCommand) -> bytes:
        return text.version_line(b"1.6.45")

    def do_mn(self, command: TextCommand) -> bytes:
        return b"MN\r\n"
