"""A memcached fleet: servers, ring, gutter, and how requests go to them.

`Fleet` decides where a request goes and what its failure means; what operations are is
`kvproto.upstream.fleet_store`'s.  Nothing is kept here but connections and what is under way, so
any number of processes in front of one fleet agree.

Rules that a change must keep:

* A server that is away stays in the ring: its keys fail at once (or go to the gutter), nobody
  else's key moves, and when it is back it has them again.
* A lane's requests to one server go over one connection, so their order holds; so do all requests
  for one key, whatever the lane, as far as the sessions keep them in order.
* Values of `LARGE_VALUE` bytes and more, and keys that had such a value, use one connection beside
  the others: a hundred small answers do not wait behind 1 MiB.
* What certainly was not written, and a read whose connection was lost, is sent once more, on a new
  connection: the first request after a pause must not fail because the old connection is dead.
* A write that was sent and got no answer is never repeated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint

from kvproto.base.log import make_logger
from kvproto.errors import OutcomeUnknown, StoreUnavailable
from kvproto.upstream.connection import Call
from kvproto.upstream.fleet_options import FleetOptions
from kvproto.upstream.link import Link
from kvproto.upstream.memcached import (
    FrameCall,
    MemcachedConnection,
    MetaConnection,
    greeting,
)
from kvproto.upstream.places import Places
from kvproto.upstream.resp import EngineFailure, Fate
from kvproto.upstream.ring import FleetServer, Ring, make_ring
from kvproto.upstream.server import Server
from kvproto.wire.encoding import HEADER
from kvproto.wire.meta_frames import META

__all__ = ["LARGE_VALUE", "Fleet", "FleetRequest"]

log = make_logger()

_pack = HEADER.pack

LARGE_VALUE = 64 * 1024
"""Bytes from which a value uses the connection beside the others."""

_LARGE_KEYS = 4096
"""Keys with large values that are remembered."""

_RETIRING_LOOK_S = 0.1

_AGAIN_AFTER_S = {"disconnected": 0.0, "unreachable": 0.1}
"""Reasons for which a request is sent again to a server that was up, and seconds until then: an
attempt to connect that failed may have begun before a restart was over, and the next one follows
within a twentieth of a second."""

_MOST_TRIES = 3

_EXPIRED = 2_592_001
"""An expiry in January 1970: memcached takes a number of 2**31 and above for a distant time."""


class FleetRequest:
    """One request on its way.

    Args:
        opcode: Loud.
        key: Of the document; ``b""`` for a request about the server.
        extras: As the protocol has them.
        value: The request's value.
        cas: The request's CAS.
        parse: Makes the result of the reply's frame.
        write: Whether it may change something.
        expiry_at: Where in `extras` an expiry of four bytes stands; None without one.

    Attributes:
        deferred: Fires with the result.
        gutter: Whether it has gone to the gutter.
        gutter_value: What its value is there, of `META`.
        tries: How often it has been sent.
    """

    __slots__ = (
        "cas", "deferred", "expiry_at", "extras", "gutter", "gutter_value", "key", "opcode",
        "parse", "tries", "value", "write",
    )  # fmt: skip

    def __init__(
        self,
        opcode: int,
        key: bytes,
        parse: Callable[[Any, FrameCall], Any],
        extras: bytes = b"",
        value: bytes = b"",
        cas: int = 0,
        write: bool = True,
        expiry_at: int | None = None,
    ) -> None:
        self.opcode = opcode
        self.key = key
        self.parse = parse
        self.extras = extras
        self.value = value
        self.cas = cas
        self.write = write
        self.expiry_at = expiry_at
        self.gutter = False
        self.gutter_value = b""
        self.tries = 0
        self.deferred: Deferred[Any] = Deferred()


MakeEndpoint = Callable[[FleetServer], IStreamClientEndpoint]
"""Makes the endpoint of an attempt to reach a server, TLS included."""


def _nowhere(key: bytes) -> int:
    """Stand for the ring of a fleet of which no server is known yet."""
    raise StoreUnavailable("the servers of the fleet are not known yet")


class _Pool:
    """Servers in the order given, and which of them has a key."""

    def __init__(
        self, servers: Sequence[FleetServer], options: FleetOptions, links: dict[str, Server]
    ) -> None:
        self.addresses = tuple(servers)
        self.servers = [links[server.name] for server in servers]
        self._ring: Ring = _nowhere
        if servers:
            self._ring = make_ring(servers, options.distribution, options.hash, options.hash_tag)

    def index_of(self, key: bytes) -> int:
        return self._ring(key)

    def server_of(self, key: bytes) -> Server:
        return self.servers[self._ring(key)]


class Fleet:
    """Servers of a fleet and the connections to them.

    Args:
        options: The fleet.
        servers: Those that there are; none while they are not known.
        endpoint: See `MakeEndpoint`.
        reactor: For connections and deadlines.
    """

    def __init__(
        self,
        options: FleetOptions,
        servers: Sequence[FleetServer],
        endpoint: MakeEndpoint,
        reactor: Any,
    ) -> None:
        self.options = options
        self._endpoint = endpoint
        self._reactor = reactor
        self._running = False
        self.next_opaque = 1
        self.places = Places()
        self._links: dict[str, Server] = {}
        self._large: OrderedDict[bytes, None] = OrderedDict()
        self._retiring: dict[Server, float] = {}
        self._look: IDelayedCall | None = None
        self._waiting: dict[FleetRequest, tuple[IDelayedCall, int, Server]] = {}
        self._gutter: _Pool | None = None
        self._pool = self._make_pool(servers)
        if options.gutter:
            self._gutter = self._make_pool(options.gutter)

    # servers

    @property
    def servers(self) -> list[Server]:
        """All servers, those of the gutter last."""
        return [*self._pool.servers, *(self._gutter.servers if self._gutter else ())]

    @property
    def addresses(self) -> tuple[FleetServer, ...]:
        """The servers of the ring, in order."""
        return self._pool.addresses

    def _make_pool(self, servers: Sequence[FleetServer]) -> _Pool:
        for server in servers:
            if server.name not in self._links:
                self._links[server.name] = made = self._make_server(server)
                if self._running:
                    made.start()
        return _Pool(servers, self.options, self._links)

    def _make_server(self, server: FleetServer) -> Server:
        options = self.options

        def make_link(
            connection: type[MemcachedConnection], changed: Callable[[Link], object], observe: Any
        ) -> Link:
            return Link(
                self._reactor,
                partial(self._endpoint, server),
                greeting,
                options.connect_timeout,
                options.timeout,
                changed,
                observe,
                connection=connection,
            )

        return Server(
            server.name,
            partial(make_link, MemcachedConnection),
            options.connections,
            _ignore,
            partial(make_link, MetaConnection),
        )

    def start(self) -> None:
        """Connect to all servers."""
        self._running = True
        for server in self._links.values():
            server.start()

    def stop(self) -> None:
        """Close all connections."""
        self._running = False
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for server in (*self._links.values(), *self._retiring):
            server.stop()
        self._retiring.clear()
        waiting, self._waiting = self._waiting, {}
        for request, (again, _, _) in waiting.items():
            again.cancel()
            request.deferred.errback(StoreUnavailable("the service is stopping"))

    def renew(self) -> None:
        """Make all connections anew, with what is in the credential files now."""
        for server in self._links.values():
            server.renew()

    def change(self, servers: Sequence[FleetServer]) -> bool:
        """Have other servers from now on; return whether anything is different.

        What is under way is answered by the servers that it was sent to.
        """
        if tuple(servers) == self._pool.addresses:
            return False
        self._pool = self._make_pool(servers)
        self.places = Places()  # another one: pipes see by it that their connections are old
        kept = {id(server) for server in self.servers}
        for name, server in list(self._links.items()):
            if id(server) not in kept:
                del self._links[name]
                self._retiring[server] = self._reactor.seconds() + 2 * self.options.timeout
        if self._look is None:
            self._look_at_retiring()
        log.info(
            "the fleet has {count} servers: {names}",
            count=len(servers),
            names=", ".join(server.name for server in servers),
        )
        return True

    def _look_at_retiring(self) -> None:
        """Close connections to servers that are not needed any more, once they have answered."""
        self._look = None
        now = self._reactor.seconds()
        for server, until in list(self._retiring.items()):
            if not any(link.pending for link in server.links) or now >= until:
                del self._retiring[server]
                server.stop()
        if self._retiring and self._running:
            self._look = self._reactor.callLater(_RETIRING_LOOK_S, self._look_at_retiring)

    # requests

    def ask(self, request: FleetRequest, lane: int) -> Deferred[Any]:
        """Send a request to the server that has its key.

        Returns:
            Its result.  Fails with `StoreUnavailable` or `OutcomeUnknown`.
        """
        server = self._pool.server_of(request.key)
        if not server.up and self._gutter is not None and server.reason != "":
            self._use_gutter(request)
        self._send(request, lane, self._choose(request) if request.gutter else server)
        return request.deferred

    def ask_all(self, make: Callable[[], FleetRequest], lane: int) -> list[Deferred[Any]]:
        """Send a request to each server, those of the gutter included."""
        asked = []
        for server in self.servers:
            request = make()
            # It is about the server: nobody can answer in its place.
            self._send(request, lane, server)
            asked.append(request.deferred)
        return asked

    def _choose(self, request: FleetRequest) -> Server:
        pool = self._gutter if request.gutter and self._gutter is not None else self._pool
        return pool.server_of(request.key)

    def _use_gutter(self, request: FleetRequest) -> None:
        """Let a request go to the gutter, where nothing may live long."""
        request.gutter = True
        if request.opcode == META:
            request.value = request.gutter_value
        at = request.expiry_at
        if at is not None:
            extras = request.extras
            expiry = int.from_bytes(extras[at : at + 4])
            longest = int(self.options.gutter_expiry)
            # Above that it is a moment, which may be near or far: what was stored is old soon.
            if expiry == 0 or (longest < expiry != 0xFFFF_FFFF and expiry != _EXPIRED):
                request.extras = extras[:at] + longest.to_bytes(4) + extras[at + 4 :]

    def _send(self, request: FleetRequest, lane: int, server: Server) -> None:
        opaque = self.next_opaque
        self.next_opaque = (opaque + 1) & 0xFFFF_FFFF
        request.tries += 1
        call = FrameCall(
            _encode(request, opaque),
            self._answered,
            opaque,
            request.write,
            (request, lane, server.up),
        )
        if request.parse is statistics:
            call.items = []
        call.server = server
        key = request.key
        if request.opcode == META:
            server.meta_link.send(call)
        elif len(request.value) >= LARGE_VALUE or key in self._large:
            self.note_large(key)
            server.durable_link.send(call)
        else:
            server.link(lane).send(call)

    def _send_again(self, request: FleetRequest) -> None:
        _, lane, server = self._waiting.pop(request)
        self._send(request, lane, server)

    def note_large(self, key: bytes) -> None:
        """Have requests for a key use the connection beside the others from now on."""
        self.places.put(key, -1)
        large = self._large
        large[key] = None
        large.move_to_end(key)
        if len(large) > _LARGE_KEYS:
            forgotten, _ = large.popitem(last=False)
            self.places.forget(forgotten)

    # the short way, see `kvproto.upstream.pipe`

    def index_of(self, key: bytes) -> int:
        """Return the number of the server that has a key; -1 when a request is not ordinary."""
        index = self.places.get(key)
        if index is None:
            try:
                index = -1 if key in self._large else self._pool.index_of(key)
            except StoreUnavailable:
                return -1
            self.places.put(key, index)
        return index

    def plain_link(self, index: int, lane: int) -> Link | None:
        """Return the connection for ordinary requests; None when there are none now."""
        if index < 0 or self._gutter is not None:
            return None
        server = self._pool.servers[index]
        link = server.links[lane % len(server.links)]
        if link.ready is None:
            link = server.link(lane)
        return link if link.ready is not None else None

    def own_link(self, index: int, lane: int) -> Link | None:
        """Return the connection that `plain_link` prefers, as long as `places` is the same."""
        if index < 0 or self._gutter is not None:
            return None
        links = self._pool.servers[index].links
        return links[lane % len(links)]

    def again_after(self, tries: int, failure: EngineFailure) -> float | None:
        """Return the seconds after which what was not performed is sent again, None for never."""
        if failure.fate is not Fate.NOT_PERFORMED or tries >= _MOST_TRIES or not self._running:
            return None
        return _AGAIN_AFTER_S.get(failure.reason)

    def call_later(self, seconds: float, function: Callable[..., object], *args: Any) -> Any:
        """Call a function later."""
        return self._reactor.callLater(seconds, function, *args)

    # answers

    def _answered(self, reply: Any, call: Call) -> None:
        assert isinstance(call, FrameCall)
        request, lane, was_up = call.context
        if isinstance(reply, EngineFailure):
            self._failed(reply, request, lane, call.server, was_up)
            return
        if len(reply) >= LARGE_VALUE:
            self.note_large(request.key)
        elif self._large and request.key in self._large and not request.write:
            del self._large[request.key]
            self.places.forget(request.key)
        try:
            result = request.parse(reply, call)
        except StoreUnavailable as error:
            request.deferred.errback(error)
        else:
            request.deferred.callback(result)

    def _failed(
        self,
        failure: EngineFailure,
        request: FleetRequest,
        lane: int,
        server: Server,
        was_up: bool,
    ) -> None:
        server.count(failure)
        fate = failure.fate
        safe = fate is Fate.NOT_PERFORMED or fate is Fate.UNANSWERED
        if safe and request.key:
            wait = _AGAIN_AFTER_S.get(failure.reason)
            if wait is not None and was_up and request.tries < _MOST_TRIES and self._running:
                # Not now: this link does not know yet that its connection is lost.
                again: IDelayedCall = self._reactor.callLater(wait, self._send_again, request)
                self._waiting[request] = (again, lane, server)
                return
            if self._gutter is not None and not request.gutter and self._running:
                self._use_gutter(request)
                self._send(request, lane, self._choose(request))
                return
        text = f"{server.name}: {failure.text}"
        error = StoreUnavailable(text) if safe else OutcomeUnknown(text)
        request.deferred.errback(error)


def statistics(frame: Any, call: FrameCall) -> list[bytes]:
    """Return the frames of all items of a STAT."""
    return call.items or []


def _encode(request: FleetRequest, opaque: int) -> bytes:
    key, extras, value = request.key, request.extras, request.value
    head = _pack(
        0x80,
        request.opcode,
        len(key),
        len(extras),
        0,
        0,
        len(extras) + len(key) + len(value),
        opaque,
        request.cas,
    )
    return b"".join((head, extras, key, value))


def _ignore(server: Server) -> None:
    """Take no notice: what is asked of a server that is away is told so when it is asked."""
