"""A cluster of servers: `ClusterEngine`.

Owns the map from slots to servers, and following redirections.

Theory.  The map is a guess that the servers correct: MOVED changes the place of one slot at once
and asks for the whole map again; ASK sends one command, with ASKING before it, to where its slot
is going.  All of these, and TRYAGAIN, are said before anything is performed, so the command can be
sent again; the first times at once, then with growing waits, as long as an operation may take.
While a primary is away its commands are refused as not performed, and another server is asked for
the map four times a second, until a replica has taken over.

When the map is asked for.  UNKNOWN is before the first map, RESTING with all slots and their
primaries there, TROUBLED without; the timer's time to the next question is in seconds:

| event                          | STOPPED   | UNKNOWN         | RESTING    | TROUBLED   |
|--------------------------------|-----------|-----------------|------------|------------|
| start                          | → UNKNOWN |                 |            |            |
| the timer's moment             |           | ask, 0.25       | ask, 10    | ask, 0.25  |
| a server has come or gone      | nothing   | ask now         | 0.05       | 0.05       |
| MOVED, CLUSTERDOWN, READONLY … | nothing   | ask now         | 0.05       | 0.05       |
| a command for a slot of nobody | refused   | kept            | 0.05 (1)   | 0.05 (1)   |
| told a whole map               | nothing   | → RESTING (2)   | used       | → RESTING  |
| told a map with holes          | nothing   | → TROUBLED (2)  | → TROUBLED | used       |
| told no slots, or an error     | nothing   | kept is refused | (3)        | (3)        |
| stop                           | nothing   | → STOPPED (4)   | → STOPPED  | → STOPPED  |

(1) It is refused.  (2) What was kept is sent.  (3) An error leaves the map as it was; a map
without any slots makes it TROUBLED.  (4) What was kept is refused.  While a question is unanswered
no other is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall

from kvproto.base.log import make_logger
from kvproto.errors import StoreUnavailable
from kvproto.upstream.connection import Call
from kvproto.upstream.engine import TAGS, Engine
from kvproto.upstream.link import LinkState
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.resp import EngineFailure, Fate, ReplyError, command
from kvproto.upstream.server import Server
from kvproto.upstream.slots import SLOTS, Node, Shard, parse_shards, parse_slots, slot_of, tags

__all__ = ["ASKING", "ClusterEngine"]

log = make_logger()

_REFRESH_S = 10.0
_REFRESH_IN_TROUBLE_S = 0.25
_MAX_KEPT = 10_000
_MAX_SERVERS = 1000

_AT_ONCE = 2
"""Redirections that are followed without waiting."""

ASKING = command(b"ASKING")
_SHARDS = command(b"CLUSTER", b"SHARDS")
_SLOTS = command(b"CLUSTER", b"SLOTS")


class ClusterEngine(Engine):
    """A cluster; the arguments are those of `Engine`."""

    def __init__(self, options: EngineOptions, reactor: Any, watch_interval: float = 2.0) -> None:
        super().__init__(options, reactor, watch_interval)
        self._servers: dict[Node, Server] = {}
        self._slots: list[Server | None] = [None] * SLOTS
        self._shards: list[Shard] = []
        self._primaries: list[Server] = []
        self._most_replicas: dict[Node, int] = {}
        self._shard_of: dict[Node, Shard] = {}
        self._tag_of: dict[Server, tuple[int, bytes]] = {}
        self._kept: list[Call] = []
        self._timer: IDelayedCall | None = None
        self._asking = False
        self._asked_last = 0
        self._running = False
        self._without_shards = False
        self._incomplete = "the cluster's map is not known yet"

    @property
    def servers(self) -> list[Server]:
        """All servers that are connected, or should be."""
        return list(self._servers.values())

    @property
    def primaries(self) -> list[Server]:
        """Those that have slots."""
        return self._primaries

    @property
    def unready(self) -> str:
        """Why not all of it can be used."""
        if self._incomplete:
            down = next((server for server in self.servers if not server.up), None)
            return self._incomplete + (f" ({down.name}: {down.text})" if down else "")
        for server in self._primaries:
            if not server.up:
                return f"engine {server.name}: {server.text}"
        return ""

    def start(self) -> None:
        """Connect to the first servers."""
        super().start()
        self._running = True
        for host, port in self.options.servers:
            self._server_of((host, port))
        self._schedule()

    def stop(self) -> None:
        """Close all connections."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().stop()
        self._refuse_kept("stopped")

    # commands

    def slot(self, key: bytes) -> int:
        """Return the slot of a key."""
        return slot_of(key)

    def send(self, call: Call) -> None:
        """Send a command to the server that has its slot."""
        server = self._slots[call.slot]
        if server is None:
            self._without_server(call)
        else:
            self._ride(call, server.link(call.slot))

    def server_of(self, slot: int) -> Server | None:
        """Return which server has a slot, None when that is not known."""
        return self._slots[slot]

    def _without_server(self, call: Call) -> None:
        if not self._primaries and len(self._kept) < _MAX_KEPT and self._may_be_found():
            self._kept.append(call)
            return
        text = self._incomplete or f"slot {call.slot} has no server"
        call.answered(EngineFailure(Fate.NOT_PERFORMED, "cluster-down", text), call)
        self._refresh_soon()

    def _may_be_found(self) -> bool:
        """Whether a first connection may still come up without another attempt."""
        states = {link.state for server in self.servers for link in server.links}
        return bool(states & {LinkState.CONNECTING, LinkState.GREETING, LinkState.READY})

    def _refuse_kept(self, text: str) -> None:
        kept, self._kept = self._kept, []
        for call in kept:
            call.answered(EngineFailure(Fate.NOT_PERFORMED, "unreachable", text), call)

    def redirect(self, error: ReplyError, call: Call) -> tuple[Server, bool] | None:
        """Return where MOVED or ASK sends a command, and whether ASKING must go before it."""
        text = str(error)
        word = text.partition(" ")[0]
        if word in {"CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING"}:
            self._refresh_soon()
        where = _address(text, call.server) if word in {"MOVED", "ASK"} else None
        if where is None or (where not in self._servers and len(self._servers) >= _MAX_SERVERS):
            return None
        server = self._server_of(where)
        if word == "MOVED":
            slot = int(text.split()[1])
            if 0 <= slot < SLOTS:
                self._slots[slot] = server
            self._refresh_soon()
        return server, word == "ASK"

    def _send_on(self, error: ReplyError, call: Call) -> bool:
        wait = 0.0 if call.tries <= _AT_ONCE else 0.01 * 2 ** (call.tries - _AT_ONCE)
        if str(error).startswith("TRYAGAIN"):
            self._later(max(wait, 0.01), self.send, call)
            return True
        target = self.redirect(error, call)
        if target is None:
            return False
        if wait:
            self._later(wait, self._send_to, call, *target)
        else:
            self._send_to(call, *target)
        return True

    def _send_to(self, call: Call, server: Server, asking: bool) -> None:
        link = server.link(call.slot)
        if asking:
            link.send(Call(ASKING, lambda reply, call: None))
            call.server = server
            link.send(call)
        else:
            self._ride(call, link)

    # what all servers must know, and durability

    @property
    def tags(self) -> Sequence[tuple[int, bytes]]:
        """Slots in all parts of the cluster, with texts."""
        return tags(TAGS)

    def tag_of(self, server: Server) -> tuple[int, bytes]:
        """Return a tag that a server has; where it has none, one of another."""
        return self._tag_of.get(server, self.tags[0])

    def replicas(self, slot: int) -> Deferred[tuple[int, int]]:
        """Find out how many replicas a slot should have, and how many are there.

        It should have as many as its primary has had, or most primaries have: after a failover
        nothing else tells that one is missing.  Where the map has none the primary is asked: in a
        new cluster, and when replicas were added, servers hear of them up to a second late.
        """
        server = self._slots[slot]
        shard = None if server is None else self._shard_of.get(_node_of(server))
        if shard is None:
            return fail(StoreUnavailable(f"nobody is known to have slot {slot}"))
        usual = Counter(len(other.replicas) for other in self._shards).most_common(1)[0][0]
        wanted = max(self._most_replicas.get(shard.primary, 0), usual)
        if shard.online < wanted:
            self._refresh_soon()
        if shard.replicas:
            return succeed((wanted, shard.online))
        return self.connected_replicas(slot).addCallback(self._told_replicas, shard, wanted)

    def _told_replicas(self, found: tuple[int, int], shard: Shard, wanted: int) -> tuple[int, int]:
        connected, online = found
        if connected:
            self._note_replicas(shard.primary, connected)
            self._refresh_soon()
        return max(wanted, connected), online

    def _note_replicas(self, primary: Node, count: int) -> None:
        """Remember the most replicas that a primary has had."""
        self._most_replicas[primary] = max(count, self._most_replicas.get(primary, 0))

    # the map

    def _server_of(self, node: Node) -> Server:
        server = self._servers.get(node)
        if server is None:
            server = self._servers[node] = self._server(*node)
            server.node = node
            if self._running:
                server.start()
        return server

    def _server_changed(self, server: Server) -> None:
        self._refresh_soon()
        super()._server_changed(server)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = _REFRESH_IN_TROUBLE_S if self.unready else _REFRESH_S
        self._timer = self.clock.callLater(wait, self._time_to_refresh)

    def _time_to_refresh(self) -> None:
        self._timer = None
        self._refresh()
        self._schedule()

    def _refresh_soon(self) -> None:
        """Ask for the map, but not more often than in trouble."""
        if not self._running or self._asking or self._timer is None:
            return
        if not self._primaries:
            self._refresh()
        elif self._timer.getTime() - self.clock.seconds() > 0.05:
            self._timer.reset(0.05)

    def _refresh(self) -> None:
        """Ask a server for the map, another one each time."""
        if self._asking or not self._running:
            return
        up = [server for server in self.servers if server.up]
        if not up:
            if not self._may_be_found():
                self._refuse_kept(self.unready)
            # None that we know of: those that were there once, replicas too, may still be.
            for node in [*self.options.servers, *(n for s in self._shards for n in s.replicas)]:
                self._server_of(node)
            return
        self._asked_last += 1
        server = up[self._asked_last % len(up)]
        self._asking = True
        data = _SLOTS if self._without_shards else _SHARDS
        call = Call(data, self._told, context=server)
        call.server = server
        server.link(0).send(call)

    def _told(self, reply: Any, call: Call) -> None:
        self._asking = False
        if not self._running:
            return
        server: Server = call.context
        if isinstance(reply, list):
            host = server.node[0]
            try:
                if call.data is _SLOTS:
                    shards = parse_slots(reply, host)
                else:
                    shards = parse_shards(reply, host, self.options.tls)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                log.failure("{server} gave a map that cannot be read", server=server.name)
                return
            self._use(shards)
        elif isinstance(reply, ReplyError) and "nknown" in str(reply) and call.data is _SHARDS:
            self._without_shards = True  # before 7.0
            self._refresh()
        else:
            if isinstance(reply, ReplyError) and not self._primaries:
                self._incomplete = f"{server.name}: {reply}"
                self._refuse_kept(self._incomplete)
            self.settle(reply, call)
        self.on_change()

    def _use(self, shards: list[Shard]) -> None:
        """Believe a map."""
        serving = [shard for shard in shards if shard.ranges]
        if not serving:
            self._incomplete = "the cluster has no slots assigned"
            self._refuse_kept(self._incomplete)
            return
        slots: list[Server | None] = [None] * SLOTS
        primaries = []
        for shard in serving:
            server = self._server_of(shard.primary)
            primaries.append(server)
            for first, last in shard.ranges:
                slots[first : last + 1] = [server] * (last + 1 - first)
            self._note_replicas(shard.primary, len(shard.replicas))
        self._slots, self._primaries, self._shards = slots, primaries, serving
        self._shard_of = {shard.primary: shard for shard in serving}
        self._tag_of = {}
        for slot, text in self.tags:
            owner = slots[slot]
            if owner is not None:
                self._tag_of.setdefault(owner, (slot, text))
        missing = slots.count(None)
        self._incomplete = f"{missing} slots have no server" if missing else ""
        self._retire_others()
        kept, self._kept = self._kept, []
        for call in kept:
            self.send(call)

    def _retire_others(self) -> None:
        """Close connections to servers that have no slots, once nothing waits for them."""
        for node, server in list(self._servers.items()):
            if server not in self._primaries and not any(link.pending for link in server.links):
                del self._servers[node]
                server.stop()


def _node_of(server: Server) -> Node:
    node: Node = server.node
    return node


def _address(text: str, server: Server | None) -> Node | None:
    """Read where MOVED or ASK sends to."""
    words = text.split()
    host, colon, port = words[2].rpartition(":") if len(words) == 3 else ("", "", "")
    if not colon or not port.isdecimal() or not words[1].isdecimal():
        return None
    if not host and server is not None:
        host = _node_of(server)[0]
    return host.strip("[]"), int(port)
