"""What the tests of the server room share: a transport that fills up, and a way to speak."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from kvproto.server import KVServer, KVServerProtocol, ServerSettings, UserTable
from kvproto.server.session import Session
from kvproto.store import MemoryStore
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.frames import Response

NOW = 1_700_000_000.0


class FakeTransport:
    """A transport whose peer reads only when the test says so.

    Args:
        high_water: Bytes above which the producer is paused, as Twisted's own transports do.
        reads: Whether the peer reads whatever is written at once.

    Attributes:
        in_place: Whether it asks for answers in place first, as TLS does.
    """

    in_place = False

    def __init__(self, high_water: int = 65536, *, reads: bool = True) -> None:
        self.high_water = high_water
        self.peer_reads = reads
        self.received = bytearray()
        self.unsent: list[bytes] = []
        self.writes = 0
        self.most_unsent = 0
        self.producer: Any = None
        self.producer_paused = False
        self.reading = True
        self.arrived: list[bytes] = []
        self.protocol: Any = None
        self.disconnecting = False
        self.closed = False
        self.host: Any = None

    # what the protocol calls

    def write(self, data: bytes) -> None:
        self.writeSequence([data])

    def writeSequence(self, parts: list[bytes]) -> None:
        self.writes += 1
        if self.disconnecting or self.closed:
            return
        self.unsent.extend(parts)
        size = self.unsent_size()
        self.most_unsent = max(self.most_unsent, size)
        if self.peer_reads:
            self.received += b"".join(self.unsent)
            self.unsent.clear()
        elif size > self.high_water and self.producer is not None and not self.producer_paused:
            self.producer_paused = True
            self.producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True
        self._deliver()

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._close_if_sent()

    def abortConnection(self) -> None:
        self.lose(ConnectionLost())

    def getPeer(self) -> str:
        return "the test"

    def getHost(self) -> Any:
        return self.host

    # what the test calls

    def unsent_size(self) -> int:
        """Return how many bytes wait for the peer."""
        return sum(map(len, self.unsent))

    def send(self, data: bytes, *, read_size: int = 65536) -> None:
        """Let bytes arrive; they are read when the protocol wants them."""
        self.arrived += [data[at : at + read_size] for at in range(0, len(data), read_size)]
        self._deliver()

    def read(self, size: int | None = None) -> bytes:
        """Let the peer read some of what waits for it; return it."""
        waiting = b"".join(self.unsent)
        taken, rest = (waiting, b"") if size is None else (waiting[:size], waiting[size:])
        self.unsent[:] = [rest] if rest else []
        self.received += taken
        if not rest:
            if self.producer is not None and self.producer_paused:
                self.producer_paused = False
                self.producer.resumeProducing()
            self._close_if_sent()
        return taken

    def lose(self, reason: Exception | None = None) -> None:
        """Let the connection end."""
        if not self.closed:
            self.closed = True
            if self.producer is not None:
                self.producer.stopProducing()
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    def _deliver(self) -> None:
        while self.reading and self.arrived and not self.closed and not self.disconnecting:
            data = self.arrived.pop(0)
            if self.in_place:
                replies: list[bytes] = []
                data = data[self.protocol.answer(data, replies) :]
                if replies:
                    self.writeSequence(replies)
            if data:
                self.protocol.dataReceived(data)

    def _close_if_sent(self) -> None:
        if self.disconnecting and not self.unsent and self.producer is None:
            self.lose()


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
        transport: FakeTransport | None = None,
        connection: Any = None,
        users: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.time = NOW
        if server is None:
            server = make_server(lambda: self.time, users, **settings)
        self.server = server
        self.store: Any = next(iter(server.buckets.values())).store
        self.transport = transport or FakeTransport()
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
            [(key, asdict(found)) for key, found in self.store.table.items.items()],
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
