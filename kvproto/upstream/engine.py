"""What a store sees of an engine, whether it is one server or a cluster.

`Engine` sends commands and says what unusual replies mean; `SingleEngine` is one server.
`kvproto.upstream.cluster.ClusterEngine` is the other kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.python.failure import Failure

from kvproto.errors import OutcomeUnknown, StoreUnavailable, UpstreamError
from kvproto.upstream.connection import Call
from kvproto.upstream.fast_path import send_single
from kvproto.upstream.link import Link
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.resp import (
    EngineFailure,
    Fate,
    ReplyError,
    command,
    failure_of,
    judge_plainly,
)
from kvproto.upstream.scripts import with_text
from kvproto.upstream.security import EngineSecrets
from kvproto.upstream.server import Server
from kvproto.upstream.slots import tags

__all__ = ["TAGS", "Engine", "EngineFullError", "SingleEngine", "all_ended", "error_of"]

MOST_TRIES = 10
"""How often a command is sent on to somewhere else.  The last of them are further and further
apart, so that together they take about as long as an operation may."""

_HELLO = command(b"HELLO")
_PING = command(b"PING")
_OLDEST = 6, 2
_OLDEST_TEXT = "Redis 6.2"

TAGS = 256
"""How many tags there are: a server that has a range of 64 slots has one of them."""


class Engine:
    """Connections to servers, and what their replies mean beside values.

    Args:
        options: Which engine.
        reactor: For connections and deadlines.
        watch_interval: Seconds between looks at the files that the options name, 0 for never.

    Raises:
        ConfigError: A file that the options name cannot be used.

    Attributes:
        options: The same.
        on_change: Called when `unready` may be another.
    """

    def __init__(self, options: EngineOptions, reactor: Any, watch_interval: float = 2.0) -> None:
        self.options = options
        self.clock = reactor
        self._secrets = EngineSecrets(options, reactor, watch_interval, self._renew)
        self._again: set[IDelayedCall] = set()
        self.on_change: Callable[[], object] = lambda: None

    # what kinds of engines differ in

    @property
    def servers(self) -> list[Server]:
        """All servers that are known."""
        raise NotImplementedError

    @property
    def unready(self) -> str:
        """Why it cannot be used as a whole, for people; ``""`` when it can."""
        raise NotImplementedError

    def slot(self, key: bytes) -> int:
        """Return a number that decides where a key is, and over which connection it is reached."""
        raise NotImplementedError

    def send(self, call: Call) -> None:
        """Send a command to where the keys of its slot are."""
        raise NotImplementedError

    @property
    def tags(self) -> Sequence[tuple[int, bytes]]:
        """Slots, and for each a text in it: what all servers must know is written to all."""
        raise NotImplementedError

    def tag_of(self, server: Server) -> tuple[int, bytes]:
        """Return one of `tags` that a server has."""
        raise NotImplementedError

    def connected_replicas(self, slot: int) -> Deferred[tuple[int, int]]:
        """Ask who has a slot how many replicas follow it, and how many of these are online."""
        asked = self.ask(command(b"INFO", b"replication"), slot)
        return asked.addCallback(_read_replication)

    def replicas(self, slot: int) -> Deferred[tuple[int, int]]:
        """Find out how many replicas a slot should have, and how many are there."""
        raise NotImplementedError

    def server_of(self, slot: int) -> Server | None:
        """Return which server has a slot, None when that is not known."""
        raise NotImplementedError

    def redirect(self, error: ReplyError, call: Call) -> tuple[Server, bool] | None:
        """Return where an error reply sends a command, and whether ASKING must go before it."""
        raise NotImplementedError

    def _send_on(self, error: ReplyError, call: Call) -> bool:
        """Send a command to where an error reply says; False when that is nowhere."""
        raise NotImplementedError

    def failure_of(self, error: ReplyError) -> EngineFailure:
        """Return what an error reply means."""
        return failure_of(error)

    # what they share

    def start(self) -> None:
        """Connect."""
        self._secrets.start()

    def stop(self) -> None:
        """Close all connections; what is under way is told that it gets no answer."""
        self._secrets.stop()
        again, self._again = self._again, set()
        for delayed in again:
            delayed.cancel()
        for server in self.servers:
            server.stop()

    def settle(self, reply: Any, call: Call) -> EngineFailure | None:
        """Return what a reply means that is no value.

        Returns:
            The failure; None when the command was sent again: the call will be answered once more.
        """
        if isinstance(reply, ReplyError):
            word = str(reply).partition(" ")[0]
            if call.tries < MOST_TRIES:
                call.tries += 1
                if word == "NOSCRIPT":
                    call.data = with_text(call.data)
                    self.send(call)
                    return None
                if self._send_on(reply, call):
                    return None
            failure = self.failure_of(reply)
            if call.server is not None:
                call.server.refused(failure, self.clock.seconds())
        elif isinstance(reply, EngineFailure):
            failure = reply
        else:
            failure = EngineFailure(
                Fate.NOT_PERFORMED, "protocol", f"unexpected reply {reply!r:.80}"
            )
        if call.server is not None:
            call.server.count(failure)
        return failure

    def ask(self, data: bytes, slot: int, *, write: bool = False) -> Deferred[Any]:
        """Send a command to where the keys of a slot are.

        Returns:
            A Deferred of its reply, or of the exception that `error_of` makes.
        """
        call = Call(data, self._answer, write, slot=slot)
        answer = call.deferred = Deferred()
        self.send(call)
        return answer

    def ask_server(self, data: bytes, server: Server) -> Deferred[Any]:
        """Do as `ask`; the command, which must have no key, is for a certain server."""
        call = Call(data, self._answer)
        answer = call.deferred = Deferred()
        self._ride(call, server.link(0))
        return answer

    async def ask_all(
        self, asked: Iterable[tuple[bytes, bytes]], *, write: bool = False
    ) -> list[Any]:
        """Send commands that have one key each, and wait until all have ended.

        Args:
            asked: Keys, and the commands about them.
            write: As for `ask`.

        Returns:
            Their replies.

        Raises:
            UpstreamError: One has failed; the first that has is told of.
        """
        answers = [self.ask(data, self.slot(key), write=write) for key, data in asked]
        return await all_ended(answers)

    async def scan(
        self, server: Server, pattern: bytes, cursor: bytes, count: bytes
    ) -> tuple[bytes, list[bytes]]:
        """Ask a server for some names.

        Args:
            server: Which.
            pattern: Of the names, as SCAN takes it.
            cursor: ``b"0"`` to begin; then what the last call has returned.
            count: How many, about.

        Returns:
            The next cursor, ``b"0"`` when there are no more; and names.
        """
        data = command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", count)
        found: tuple[bytes, list[bytes]] = await self.ask_server(data, server)
        return found

    def _answer(self, reply: Any, call: Call) -> None:
        if isinstance(reply, ReplyError | EngineFailure):
            failure = self.settle(reply, call)
            if failure is not None:
                call.deferred.errback(error_of(failure, call))
        else:
            call.deferred.callback(reply)

    def _ride(self, call: Call, link: Link) -> None:
        """Send a command over a connection, with what must travel beside it."""
        rider = call.rider
        if rider is not None and rider not in link.companions:
            link.companions.add(rider)
            rider.ride(link)
        call.server = link.server
        link.send(call)

    def _later(self, seconds: float, act: Callable[..., object], *args: Any) -> None:
        def now() -> None:
            self._again.discard(delayed)
            act(*args)

        delayed = self.clock.callLater(seconds, now)
        self._again.add(delayed)

    def _renew(self) -> None:
        for server in self.servers:
            server.renew()

    def _server(self, host: str, port: int) -> Server:
        """Make the server at an address."""
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

        def endpoint() -> IStreamClientEndpoint:
            timeout = self.options.connect_timeout
            if isIPAddress(host):
                plain: IStreamClientEndpoint = TCP4ClientEndpoint(
                    self.clock, host, port, timeout=timeout
                )
            elif isIPv6Address(host):
                plain = TCP6ClientEndpoint(self.clock, host, port, timeout=timeout)
            else:
                plain = HostnameEndpoint(self.clock, host.encode(), port, timeout=timeout)
            if not self.options.tls:
                return plain
            return wrapClientTLS(self._secrets.connection_creator(host), plain)

        return self._server_at(name, endpoint)

    def _server_at(self, name: str, endpoint: Callable[[], IStreamClientEndpoint]) -> Server:
        options = self.options

        def make_link(
            changed: Callable[[Link], object], observe: Callable[[float, int], object]
        ) -> Link:
            return Link(
                self.clock,
                endpoint,
                self._greeting,
                options.connect_timeout,
                options.timeout,
                changed,
                observe,
                judge=self._judge,
            )

        return Server(name, make_link, options.connections, self._server_changed)

    def _greeting(self) -> list[bytes]:
        """Return what begins each connection: whoever answers it can be used."""
        commands = []
        if self._secrets.login:
            commands.append(command(b"AUTH", *self._secrets.login))
        if self.options.database:
            commands.append(command(b"SELECT", b"%d" % self.options.database))
        return [*commands, _HELLO, _PING]

    def _judge(self, data: bytes, reply: Any) -> EngineFailure | None:
        """Return why a reply to a greeting shows that this server cannot be used."""
        if data != _HELLO:
            return judge_plainly(data, reply)
        if isinstance(reply, ReplyError):
            failure = failure_of(reply)
            if "NOPERM" in failure.text:
                return None  # whoever may not ask is not told
            if failure.reason == "refused":
                failure.text = f"it is older than {_OLDEST_TEXT}, or something else: {failure.text}"
            return failure
        told = dict(zip(reply[::2], reply[1::2], strict=False))
        numbers = told.get(b"version", b"").decode("ascii", "replace")
        parts = tuple(int(part) for part in numbers.split(".")[:2] if part.isdecimal())
        if len(parts) == 2 and parts < _OLDEST:
            text = f"its version is {numbers}, and {_OLDEST_TEXT} is the oldest that can be used"
        elif told.get(b"mode") == b"sentinel":
            text = "it is a Sentinel, which has no documents: name the server that it watches"
        else:
            return None
        return EngineFailure(Fate.NOT_PERFORMED, "refused", text)

    def _server_changed(self, server: Server) -> None:
        self.on_change()


async def all_ended(answers: Iterable[Deferred[Any]]) -> list[Any]:
    """Wait until all have ended, and return their results; raise the first failure then."""
    results = []
    for _, result in await DeferredList(list(answers), consumeErrors=True):
        if isinstance(result, Failure):
            result.raiseException()
        results.append(result)
    return results


def error_of(failure: EngineFailure, call: Call) -> UpstreamError:
    """Return the exception that says what is known of a failed command."""
    where = "" if call.server is None else f"{call.server.name}: "
    text = f"engine {where}{failure.reason}: {failure.text}"
    kinds = {Fate.UNKNOWN: OutcomeUnknown, Fate.NO_MEMORY: EngineFullError}
    return kinds.get(failure.fate, StoreUnavailable)(text)


class EngineFullError(StoreUnavailable):
    """The engine's memory is full."""


class SingleEngine(Engine):
    """One server; the arguments are those of `Engine`."""

    def __init__(self, options: EngineOptions, reactor: Any, watch_interval: float = 2.0) -> None:
        super().__init__(options, reactor, watch_interval)
        if options.path is not None:
            path = options.path
            self.server = self._server_at(
                path,
                lambda: UNIXClientEndpoint(reactor, path, timeout=options.connect_timeout),
            )
        else:
            self.server = self._server(*options.servers[0])
        self._links = self.server.links
        self._renewed_at = -1.0
        self._replicas_seen = 0

    @property
    def servers(self) -> list[Server]:
        """The one."""
        return [self.server]

    @property
    def unready(self) -> str:
        """Why it cannot be used."""
        server = self.server
        return "" if server.up else f"engine {server.name}: {server.text}"

    def start(self) -> None:
        """Connect."""
        super().start()
        self.server.start()

    slot = staticmethod(hash)  # type: ignore[assignment]

    send = send_single

    @property
    def tags(self) -> Sequence[tuple[int, bytes]]:
        """One is enough: the first of a cluster's, should the data move to one."""
        return tags(TAGS)[:1]

    def tag_of(self, server: Server) -> tuple[int, bytes]:
        """Return the one."""
        return tags(TAGS)[0]

    def replicas(self, slot: int) -> Deferred[tuple[int, int]]:
        """Find out how many replicas it has had since this process asked first, and has."""
        return self.connected_replicas(slot).addCallback(self._told_replicas)

    def _told_replicas(self, found: tuple[int, int]) -> tuple[int, int]:
        connected, online = found
        self._replicas_seen = max(self._replicas_seen, connected)
        return self._replicas_seen, online

    def server_of(self, slot: int) -> Server | None:
        """Return the one."""
        return self.server

    def redirect(self, error: ReplyError, call: Call) -> tuple[Server, bool] | None:
        """Return None: there is nowhere else."""
        return None

    def failure_of(self, error: ReplyError) -> EngineFailure:
        """Return what an error reply means, and what to do where that is known."""
        failure = failure_of(error)
        if failure.reason == "redirected":
            failure.text += " (it is a server of a cluster: name it as redis+cluster://)"
        return failure

    def _send_on(self, error: ReplyError, call: Call) -> bool:
        if str(error).startswith("READONLY"):
            # A name that leads to the primary may lead to another server by now.
            now = self.clock.seconds()
            if now - self._renewed_at > 1.0:
                self._renewed_at = now
                self._later(0, self.server.renew)
        return False


def _read_replication(reply: bytes) -> tuple[int, int]:
    connected = reply.partition(b"connected_slaves:")[2].partition(b"\r")[0]
    return int(connected or 0), reply.count(b",state=online,")
