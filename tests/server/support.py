"""What the tests of the server room share: a transport that fills up, and a way to speak."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.server import KVServer, KVServerProtocol, ServerSettings, UserTable
from kvproto.server.session import Session
from kvproto.store import MemoryStore, accessed_at
from kvproto.store.document import ALL_MARKS
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.frames import Response

NOW = 1_700_000_000.0


class FakeConnection:
    """An `IVerifiedConnection` that remembers what it hears."""

    id = 1
    listener = "data"
    peer = "the test"
    generation = 1
    ended_by = "peer lost"

    def __init__(self, peer_chain: tuple[bytes, ...] = ()) -> None:
        self.peer_chain = peer_chain
        self.users: list[str] = []
        self.errors: list[str] = []
        self.logins: list[tuple[str, str, str]] = []

    def login_ended(self, mechanism: str, user: str, fault: str) -> None:
        self.logins.append((mechanism, user, fault))

    def log_fields(self) -> dict[str, Any]:
        return {"connection": self.id, "peer": self.peer, "listener": self.listener}

    def authenticated(self, user: str) -> None:
        self.users.append(user)

    def note_error(self, reason: str) -> None:
        self.errors.append(reason)


def link_with(*, binary: Any = None, text: Any = None, **options: Any) -> Link:
    """Return a link that gives requests other meanings.

    Args:
        binary: Makes dialects of the binary protocol in place of the usual one.
        text: The same of the text protocol.
        options: For `Link`.
    """
    made = Link(**options)
    usual_text, usual_binary = made.protocol._kinds
    made.protocol._kinds = text or usual_text, binary or usual_binary
    return made


class Link:
    """One client and the server's end of its connection.

    Args:
        server: Made from the keyword arguments of `ServerSettings` when None.
        transport: A peer that reads everything when None.
        connection: What the session hears about its peer from.
        users: Names and passwords.
        settings: For `ServerSettings`.
    """

    def __init__(
        self,
        server: KVServer | None = None,
        transport: ScriptedTransport | None = None,
        connection: Any = None,
        users: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.time = NOW
        if server is None:
            server = make_server(lambda: self.time, users, **settings)
        self.server = server
        self.store: Any = next(iter(server.buckets.values())).store
        self.transport = transport or ScriptedTransport()
        self.protocol = KVServerProtocol(server, connection)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)
        self.decoder = ResponseDecoder()
        self._taken = 0

    @property
    def session(self) -> Session:
        """The session, once something was sent."""
        assert self.protocol.session is not None
        return self.protocol.session

    def take(self) -> bytes:
        """Return what the peer has received since the last call."""
        new = bytes(self.transport.received[self._taken :])
        self._taken += len(new)
        return new

    def read_all(self, at_once: int) -> tuple[Any, ...]:
        """Let the peer read until nothing waits; return all that can be told about the outcome.

        Args:
            at_once: Bytes that the peer takes at a time.

        Returns:
            What it has read, the documents in order of use, the statistics of store and server,
            whether the connection is closed, and whether it is read from.
        """
        while self.transport.unsent:
            self.transport.read(at_once)
        return (
            self.take(),
            [
                (key, asdict(found) | {"marks": (found.marks & ALL_MARKS, accessed_at(found))})
                for key, found in self.store.table.items.items()
            ],
            self.store.stats(),
            asdict(self.server.counters),
            self.transport.closed,
            self.transport.reading,
        )

    def ask(self, data: bytes) -> bytes:
        """Send bytes; return what comes back at once."""
        self.transport.send(data)
        return self.take()

    def responses(self, data: bytes = b"") -> list[Response]:
        """Send bytes; return the frames that come back."""
        frames = self.decoder.feed(self.ask(data))
        assert self.decoder.error is None
        assert all(isinstance(frame, Response) for frame in frames)
        return [frame for frame in frames if isinstance(frame, Response)]

    def call(self, opcode: int, **fields: Any) -> Response:
        """Make one request; return its one response."""
        responses = self.responses(encode_request(opcode, **fields))
        assert len(responses) == 1, responses
        return responses[0]

    def silent(self, opcode: int, **fields: Any) -> bool:
        """Make one request; return whether nothing came back."""
        return not self.responses(encode_request(opcode, **fields))


def make_server(
    now: Any = lambda: NOW, users: dict[str, str] | None = None, **settings: Any
) -> KVServer:
    """Make a server with a store in memory whose clock stands still."""
    options = ServerSettings(**settings)
    limit = options.value_limit
    return KVServer(
        MemoryStore(now, max_value=limit, uuid=1),
        options,
        UserTable.of_passwords(users or {}, iterations=1),
        now=now,
    )


class SlowStore:
    """A store whose answers come when the test lets them.

    Args:
        store: The store that knows the answers.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.waiting: list[tuple[Deferred[Any], Any]] = []
        self.cancelled = 0

    def durable(self, level: int, timeout: float | None) -> Any:
        return None if self.store.durable(level, timeout) is None else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # it does not provide what its store provides
        method = getattr(self.store, name)
        if not callable(method):
            return method

        def later(*args: Any, **options: Any) -> Deferred[Any]:
            answer: Deferred[Any] = Deferred(self._cancel)
            self.waiting.append((answer, method(*args, **options)))
            return answer

        return later

    def _cancel(self, _: Deferred[Any]) -> None:
        self.cancelled += 1

    def release(self, number: int = 0) -> None:
        """Let an answer come.

        Args:
            number: Which one: 0 for the oldest.
        """
        answer, outcome = self.waiting.pop(number)
        answer.callback(outcome)
