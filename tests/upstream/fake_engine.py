"""An engine in memory that does what the store's commands say, for tests without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from kvproto.upstream.connection import Call
from kvproto.upstream.engine import Engine
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.resp import ReplyError, command
from kvproto.upstream.scripts import REPLACE_IF, SET_NEWER, SET_PLAIN
from kvproto.upstream.server import Server
from kvproto.upstream.slots import tags

__all__ = ["FakeEngine"]


class FakeEngine(Engine):
    """Answers at the end of a clock's turn; the contents are a dictionary.

    Args:
        clock: Whose turn, and whose time.
        content: What several of them share.

    Attributes:
        before: Called with each command before it is done; what it returns that is not None is
            the reply, and the command is not done.
    """

    def __init__(self, clock: Clock, content: dict[bytes, bytes]) -> None:
        super().__init__(EngineOptions(servers=(("fake", 1),)), clock, 0)
        self.content = content
        self.micros = 1_700_000_000_000_000
        self.before: Callable[[list[bytes]], Any] = lambda words: None
        self._server_there = self._server("fake", 1)
        self._riding = False

    servers = property(lambda self: [self._server_there])
    unready = ""

    @property
    def tags(self) -> Sequence[tuple[int, bytes]]:
        return tags(256)[:2]

    def tag_of(self, server: Server) -> tuple[int, bytes]:
        return self.tags[0]

    def slot(self, key: bytes) -> int:
        return 0

    def ask_server(self, data: bytes, server: Server) -> Deferred[Any]:
        return self.ask(data, 0)

    def server_of(self, slot: int) -> Server | None:
        return self._server_there

    def replicas(self, slot: int) -> Deferred[tuple[int, int]]:
        return succeed((0, 0))

    def redirect(self, error: ReplyError, call: Call) -> None:
        return None

    def _send_on(self, error: ReplyError, call: Call) -> bool:
        return False

    def send(self, call: Call) -> None:
        """Do the check of epochs, then the command, when the clock turns."""
        if call.rider is not None:
            name = call.rider._name(self.tags[0][1])
            self.send(Call(command(b"GET", name), call.rider._checked, context=name))
        self.clock.callLater(0, self._do, call)

    def _do(self, call: Call) -> None:
        reader = hiredis.Reader()
        reader.feed(call.data)
        words = reader.gets()
        reply = self.before(words)
        call.answered(self._reply(words) if reply is None else reply, call)

    def _time(self) -> list[bytes]:
        self.micros += 1
        return [b"%d" % (self.micros // 1_000_000), b"%d" % (self.micros % 1_000_000)]

    def _reply(self, words: list[bytes]) -> Any:
        content = self.content
        name = words[0]
        if name == b"TIME":
            return self._time()
        if name == b"GET":
            return content.get(words[1])
        if name == b"SET":
            content[words[1]] = words[2]
            return b"OK"
        if name == b"UNLINK":
            return int(content.pop(words[1], None) is not None)
        if name == b"SCAN":
            return [b"0", [key for key in content if key.startswith(words[3].rstrip(b"*"))]]
        if name == b"STRLEN":
            return len(content.get(words[1], b""))
        if name == b"INFO":
            return b"used_memory:1\r\nmaxmemory:0\r\n"
        if name == b"DBSIZE":
            return len(content)
        key, arguments = words[3], words[4:]
        old = content.get(key)
        if words[1] == SET_NEWER.digest:
            if old is None or old < arguments[0]:
                content[key] = arguments[0]
            return 1
        if words[1] == REPLACE_IF.digest:
            if (old or b"")[: len(arguments[0]) or 1] != arguments[0]:
                return old
            if arguments[1]:
                content[key] = arguments[1]
            else:
                content.pop(key, None)
            return 1
        assert words[1] == SET_PLAIN.digest
        if old is not None and (old[0] != 1 or any(old[9:22])):
            return old
        if old is None or old[1:9] < arguments[0][1:9]:
            content[key] = arguments[0]
            return 1
        packed = (int.from_bytes(old[1:9]) + 1).to_bytes(8)
        content[key] = b"\1" + packed + arguments[0][9:40] + packed + arguments[0][48:]
        return packed
