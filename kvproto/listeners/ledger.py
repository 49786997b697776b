"""The one table of all accepted connections, from accept() until they are gone.

Owns who is here, in which state, until when, and who has to make room for whom.  It
never touches a transport: what has to happen to a connection it says to the connection
(`IAccepted.fire`), which answers by the table in `kvproto.listeners.states`.

**Making room.**  A connection that has not said who it is costs an attacker one SYN.  It
therefore lives in a pool of its own, so that silent sockets never take the place of a
client.  When that pool is full a newcomer is *not* refused: the oldest of those that have
achieved least has to go (nothing but half a ClientHello; then a handshake under way; then
a finished handshake without a login).  A real client needs a round trip to get past the
first group, and is out of reach of any number of silent ones after that.  An address that
fills `SHARE` of the pool displaces its own connections first, so that one machine cannot
push out the others.

Over the limit of verified connections a newcomer may displace one that never logged in;
where there is none it is refused *after* TLS, by its own protocol's words.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime

from kvproto.listeners.deadlines import Deadlines
from kvproto.listeners.states import DEADLINE_OF, LIVE_STATES, Event, State, Timeouts

__all__ = ["Entry", "IAccepted", "Ledger", "Limits", "describe_peer", "host_of"]

SHARE = 0.5
"""Part of the pool of the unauthenticated that one address may hold before it displaces
only itself: half leaves room for everybody else, and does not bind a single load balancer."""

_DEADLINE_REASONS = {
    State.HANDSHAKING: "no handshake within {0.handshake:g} s",
    State.OFFERED: "the controller did not answer within {0.claim:g} s",
    State.OWNED: "the peer's certificate expired",
    State.CLOSING: "the peer did not close in time",
    State.CANCELLED: "the transport did not close within {0.vanish:g} s",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be; 0 means no limit.

    Attributes:
        connections: Verified ones, on all listeners together.
        unauthenticated: Those that have not logged in, handshaking ones included, on
            all listeners together.  They come on top of ``connections`` as long as
            they are handshaking: plan file descriptors for the sum.
        per_peer: Verified ones from one address; peers without an address (Unix
            sockets) are not counted.
    """

    connections: int = 10_000
    unauthenticated: int = 256
    per_peer: int = 0


class IAccepted(Protocol):
    """What the ledger says to a connection."""

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's DER certificates, leaf first."""

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Let an event happen to it."""

    def progressed(self) -> bool:
        """Tell whether the peer has sent more than the beginning of a handshake."""


class _Gone:
    """Whom events are said to once a connection is gone: nobody.

    It takes the place of the connection, so that what still holds an entry (a drain, a
    status page) does not hold protocol, transport and owner with it.
    """

    peer_chain: tuple[bytes, ...] = ()

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Do nothing."""

    def progressed(self) -> bool:
        """Say that there is nothing to wait for."""
        return True


_GONE = _Gone()


class Rank(enum.IntEnum):
    """How much a connection that has not logged in has achieved."""

    SILENT = 0
    ADVANCED = 1
    VERIFIED = 2


@dataclass(slots=True, eq=False)
class Entry:
    """One accepted connection.

    Attributes:
        id: Unique in this process, from 1 in the order of accept().
        listener: Name of the listener that accepted it.
        peer: Where it comes from; the PROXY header's word once that is known.
        accepted: What to say events to.
        since: When it entered its state, in seconds of the ledger's clock.
        born: When it was accepted.
        state: Where it is; changed by `Ledger.enter` only.
        stage: The last state in which nobody had begun to end it: how far it came.
        deadline: When its state ends of itself; None only for an owned connection
            whose peer showed no certificate that expires.
        generation: Credential generation of its handshake, 0 when not known.
        user: Who it logged in as, ``""`` for anonymous, None before that.
        owner: Class name of the protocol that owns it, ``""`` before that.
        reason: Why it ends, ``""`` as long as nobody knows.
        host: The peer's address without its port, ``""`` when it has none.
        direction: ``"in"`` for accepted ones; links that we dial will say ``"out"``.
        rank: How far it came, for choosing who makes room.
        counted: Whether it takes one of the places of verified connections.
    """

    id: int
    listener: str
    peer: IAddress | None
    accepted: IAccepted
    since: float
    born: float
    state: State = State.HANDSHAKING
    stage: State = State.HANDSHAKING
    deadline: float | None = None
    generation: int = 0
    user: str | None = None
    owner: str = ""
    reason: str = ""
    host: str = ""
    direction: str = "in"
    rank: Rank = Rank.SILENT
    counted: bool = False


@dataclass(slots=True, eq=False)
class _Pool:
    """Connections that have not logged in, oldest first, all together and by address."""

    everybody: dict[int, Entry] = field(default_factory=dict)
    by_host: dict[str, dict[int, Entry]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        self.everybody[entry.id] = entry
        self.by_host.setdefault(entry.host, {})[entry.id] = entry

    def discard(self, entry: Entry) -> None:
        if self.everybody.pop(entry.id, None) is None:
            return
        neighbours = self.by_host[entry.host]
        del neighbours[entry.id]
        if not neighbours:
            del self.by_host[entry.host]


def host_of(peer: IAddress | None) -> str:
    """Return the peer's address without its port, ``""`` when it has none."""
    return getattr(peer, "host", None) or ""


def describe_peer(peer: IAddress | None) -> str:
    """Return the peer for logs and status: ``192.0.2.1:4711``, ``[2001:db8::1]:4711``, ``unix``."""
    host = host_of(peer)
    if not host:
        return "unknown" if peer is None else "unix"
    port = getattr(peer, "port", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Ledger:
    """Every accepted connection of a process.

    Args:
        clock: For deadlines and ages.
        limits: How many there may be.
        timeouts: How long each state may last.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.clock = clock
        self.limits = limits or Limits()
        self.timeouts = timeouts or Timeouts()
        self.accepted = 0
        self.endings: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        self._entries: dict[int, Entry] = {}
        self._pool = _Pool()
        self._verified = 0
        self._verified_on: Counter[str] = Counter()
        self._verified_from: Counter[str] = Counter()
        self._deadlines: Deadlines[Entry] = Deadlines(clock, self._expire)
        self._watchers: list[tuple[set[int], Deferred[None]]] = []

    # who is here

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self, listener: str | None = None) -> list[Entry]:
        """Return the connections of one listener, or of all, oldest first."""
        if listener is None:
            return list(self._entries.values())
        return [entry for entry in self._entries.values() if entry.listener == listener]

    def when_gone(self, entries: Iterable[Entry]) -> Deferred[None]:
        """Return a Deferred that fires once none of these is in the ledger any more.

        Cancelling it is safe: it only stops this wait.
        """
        remaining = {entry.id for entry in entries if entry.id in self._entries}
        if not remaining:
            return succeed(None)
        done: Deferred[None] = Deferred(lambda waiting: self._watchers.remove((remaining, waiting)))
        self._watchers.append((remaining, done))
        return done

    # the life of an entry

    def admit(self, listener: str, peer: IAddress | None, accepted: IAccepted) -> Entry:
        """Write down a connection that has just been accepted; somebody may have to make room."""
        now = self.clock.seconds()
        self.accepted += 1
        entry = Entry(self.accepted, listener, peer, accepted, since=now, born=now)
        entry.host = host_of(peer)
        self._make_room(entry.host)
        self._entries[entry.id] = entry
        self._pool.add(entry)
        self._deadlines.set(entry, now + self.timeouts.handshake)
        return entry

    def moved_behind_proxy(self, entry: Entry, peer: IAddress | None) -> None:
        """Note where a connection really comes from."""
        pooled = entry.id in self._pool.everybody
        self._pool.discard(entry)
        entry.peer, entry.host = peer, host_of(peer)
        if pooled:
            self._pool.add(entry)

    def over_limit(self, entry: Entry, listener_limit: int = 0) -> str:
        """Take a place among the verified connections, or say which limit forbids it.

        Args:
            entry: Its handshake has just ended well.
            listener_limit: Limit of its listener, 0 for none.

        Returns:
            ``""`` when it has a place now, else the reason for the peer.
        """
        checks: tuple[tuple[int, int, str, Callable[[Entry], bool]], ...] = (
            (
                self.limits.connections,
                self._verified,
                "too many connections",
                lambda other: True,
            ),
            (
                listener_limit,
                self._verified_on[entry.listener],
                "too many connections on this listener",
                lambda other: other.listener == entry.listener,
            ),
            (
                self.limits.per_peer if entry.host else 0,
                self._verified_from[entry.host],
                "too many connections from this address",
                lambda other: other.host == entry.host,
            ),
        )
        for limit, taken, reason, alike in checks:
            if limit and taken >= limit and not self._displace_idler(alike):
                return reason
        entry.rank = Rank.VERIFIED
        entry.counted = True
        self._count(entry, 1)
        return ""

    def authenticated(self, entry: Entry, user: str) -> None:
        """Let a connection leave the pool of those that have not logged in."""
        entry.user = user
        self._pool.discard(entry)

    def enter(
        self, entry: Entry, state: State, deadline: str | None = None, within: float | None = None
    ) -> None:
        """Write down a new state and its deadline.

        Args:
            entry: Which connection.
            state: Its new state; entering the same one again can only shorten it.
            deadline: Name of the timeout to use in place of the state's own.
            within: Seconds to use in place of any timeout.
        """
        now = self.clock.seconds()
        name = deadline or DEADLINE_OF[state]
        if within is None and name is not None:
            within = float(getattr(self.timeouts, name))
        when = None if within is None else now + within
        if entry.state is state:
            if when is not None and (entry.deadline is None or when < entry.deadline):
                self._deadlines.set(entry, when)
            return
        entry.state = state
        entry.since = now
        if state in LIVE_STATES:
            entry.stage = state
        elif state is not State.CLOSING:
            self._give_up_place(entry)
        self._deadlines.set(entry, when)

    def remove(self, entry: Entry, ending: str) -> None:
        """Strike out a connection that is gone.

        Args:
            entry: It must be in the ledger; leaving twice is a bug, and raises KeyError.
            ending: One word for the statistics.
        """
        del self._entries[entry.id]
        self._give_up_place(entry)
        self._deadlines.set(entry, None)
        self.endings[ending] += 1
        entry.accepted = _GONE
        for watcher in [w for w in self._watchers if entry.id in w[0]]:
            remaining, done = watcher
            remaining.discard(entry.id)
            if not remaining:
                self._watchers.remove(watcher)
                done.callback(None)

    # making room

    def _make_room(self, host: str) -> None:
        """Displace one connection if a newcomer from ``host`` would make the pool too large."""
        limit = self.limits.unauthenticated
        if not limit or len(self._pool.everybody) < limit:
            return
        neighbours = self._pool.by_host.get(host, {})
        crowded = bool(host) and len(neighbours) >= limit * SHARE
        victim = self._least_advanced(neighbours if crowded else self._pool.everybody)
        victim.accepted.fire(Event.DISPLACED, "made room for a newcomer")

    @staticmethod
    def _least_advanced(candidates: dict[int, Entry]) -> Entry:
        """Return the oldest of those that have achieved least.

        Ranks are looked up again only where they can have changed, and a silent one ends
        the search at once: in a flood of silent sockets the first is the one.
        """
        best: Entry | None = None
        for entry in candidates.values():
            if entry.rank is Rank.SILENT:
                if not entry.accepted.progressed():
                    return entry
                entry.rank = Rank.ADVANCED
            if best is None or entry.rank < best.rank:
                best = entry
        assert best is not None, "a full pool has members"
        return best

    def _displace_idler(self, alike: Callable[[Entry], bool]) -> bool:
        """Displace the oldest verified connection that never logged in, if there is one."""
        for entry in self._pool.everybody.values():
            if entry.counted and alike(entry):
                entry.accepted.fire(Event.DISPLACED, "never logged in, made room for a newcomer")
                return True
        return False

    def _give_up_place(self, entry: Entry) -> None:
        """Stop counting a connection that is as good as gone."""
        self._pool.discard(entry)
        if entry.counted:
            entry.counted = False
            self._count(entry, -1)

    def _count(self, entry: Entry, change: int) -> None:
        """Change the numbers of verified connections."""
        self._verified += change
        for counter, key in (
            (self._verified_on, entry.listener),
            (self._verified_from, entry.host),
        ):
            counter[key] += change
            if not counter[key]:
                del counter[key]

    # deadlines

    def _expire(self, entry: Entry) -> None:
        """Tell a connection that its time is over."""
        self.expired[entry.state.value] += 1
        reason = _DEADLINE_REASONS[entry.state].format(self.timeouts)
        entry.accepted.fire(Event.DEADLINE, reason)

    # for people and programs

    def counts(self, listener: str | None = None) -> dict[str, int]:
        """Return how many connections are in each state, all states named."""
        found = Counter(
            entry.state.value
            for entry in self._entries.values()
            if listener is None or entry.listener == listener
        )
        return {state.value: found[state.value] for state in State if state is not State.CLOSED}

    def status(self) -> dict[str, Any]:
        """Return the totals, ready for JSON; the names are documented and stable."""
        return {
            "connections": len(self._entries),
            "verified": self._verified,
            "unauthenticated": len(self._pool.everybody),
            "limits": {
                "connections": self.limits.connections,
                "unauthenticated": self.limits.unauthenticated,
                "per_peer": self.limits.per_peer,
            },
            "states": self.counts(),
            "oldest_s": self._oldest(),
            "accepted_total": self.accepted,
            "ended_total": dict(sorted(self.endings.items())),
            "deadline_expired_total": dict(sorted(self.expired.items())),
        }

    def _oldest(self) -> dict[str, float]:
        """Return how long the oldest connection of each state has been in it."""
        now = self.clock.seconds()
        oldest: dict[str, float] = {}
        for entry in self._entries.values():
            age = round(now - entry.since, 3)
            oldest[entry.state.value] = max(age, oldest.get(entry.state.value, 0.0))
        return oldest

    def snapshot(self, listener: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield one plain dict for each connection, ready for JSON, oldest first."""
        now = self.clock.seconds()
        for entry in self.entries(listener):
            yield {
                "id": entry.id,
                "listener": entry.listener,
                "direction": entry.direction,
                "peer": describe_peer(entry.peer),
                "generation": entry.generation,
                "state": entry.state.value,
                "since_s": round(now - entry.since, 3),
                "age_s": round(now - entry.born, 3),
                "deadline_in_s": (
                    None if entry.deadline is None else round(entry.deadline - now, 3)
                ),
                "user": entry.user,
                "owner": entry.owner,
                "reason": entry.reason,
            }
