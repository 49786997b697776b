"""The one table of all accepted connections, from accept() until they are gone.

Owns which connections there are, in which state, until when, and which has to make room for
another.  It never touches a transport: it fires events at the connection (`IAccepted.fire`),
which answers by the table in `kvproto.listeners.states`.

Connections that have not said who they are live in a pool of their own, so that silent
sockets never take the place of a client; who of them makes room for whom is decided by
`kvproto.listeners.unauthenticated`.

Over the limit of verified connections a newcomer may displace one that never logged in;
where there is none it is refused *after* TLS, by its own protocol's words.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime

from kvproto.base.addresses import describe_peer, host_of
from kvproto.base.clock import WALL_CLOCK_CHECK
from kvproto.base.deadlines import Deadlines
from kvproto.base.histogram import Histogram
from kvproto.listeners.entry import NULL_CONNECTION, Entry, IAccepted, Rank
from kvproto.listeners.states import DEADLINE_OF, LIVE_STATES, Event, State, Timeouts
from kvproto.listeners.unauthenticated import UnauthenticatedPool

__all__ = ["Ledger", "Limits"]

_CLOSING = State.CLOSING

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
        total: Connections of any kind.  As long as there are fewer, those that have not
            logged in may be more than ``unauthenticated``: when a thousand clients come
            back at once, none has to go for the others.  0: nothing is lent.
    """

    connections: int = 10_000
    unauthenticated: int = 256
    per_peer: int = 0
    total: int = 0


class Ledger:
    """Every accepted connection of a process.

    Args:
        clock: For deadlines and ages.
        limits: How many there may be.
        timeouts: How long each state may last.
        now: The time of day, in Unix seconds, by which certificates expire.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.now = now
        self.limits = limits or Limits()
        self.timeouts = timeouts or Timeouts()
        self.accepted = 0
        self.endings: Counter[str] = Counter()
        self.accepted_by: Counter[str] = Counter()  # listener
        self.ended_by: Counter[tuple[str, str]] = Counter()  # listener and ending
        self.failed_handshakes: Counter[tuple[str, str]] = Counter()  # listener and fault
        self.handshakes = Histogram()  # seconds
        self.logins: Counter[tuple[str, str]] = Counter()  # by mechanism and result
        self.expired: Counter[str] = Counter()
        self._entries: dict[int, Entry] = {}
        # Kept rather than found when asked for: a scrape must not take longer for ten thousand.
        self._by_state: Counter[tuple[str, State]] = Counter()  # listener and state
        self._unauthenticated = UnauthenticatedPool()
        self._verified = 0
        self._verified_on: dict[str, int] = {}
        self._verified_from: dict[str, int] = {}
        self._deadlines: Deadlines[Entry] = Deadlines(clock, self._expire)
        self._watchers: list[tuple[set[int], Deferred[None]]] = []

    # who is here

    def __len__(self) -> int:
        return len(self._entries)

    def steps(self) -> int:
        """Return how many connections there are, those that are verified counted twice."""
        return len(self._entries) + self._verified

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
        self.accepted_by[listener] += 1
        entry = Entry(self.accepted, listener, peer, accepted, since=now, born=now)
        entry.host = host_of(peer)
        # Up to the pool's own size nobody has to go, however much is lent to it.
        if len(self._unauthenticated.everybody) >= self.limits.unauthenticated:
            self._make_room(entry.host)
        self._entries[entry.id] = entry
        self._by_state[listener, entry.state] += 1
        self._unauthenticated.add(entry)
        self._deadlines.set(entry, now + self.timeouts.handshake)
        return entry

    def moved_behind_proxy(self, entry: Entry, peer: IAddress | None) -> None:
        """Note where a connection really comes from."""
        pooled = entry in self._unauthenticated
        self._unauthenticated.discard(entry)
        entry.peer, entry.host = peer, host_of(peer)
        if pooled:
            self._unauthenticated.add(entry)

    def over_limit(self, entry: Entry, listener_limit: int = 0) -> str:
        """Take a place among the verified connections, or say which limit forbids it.

        Args:
            entry: Its handshake has just ended well.
            listener_limit: Limit of its listener, 0 for none.

        Returns:
            ``""`` when it has a place now, else the reason for the peer.
        """
        limits, listener, host = self.limits, entry.listener, entry.host
        if (
            limits.connections
            and self._verified >= limits.connections
            and not self._displace_idler(lambda other: True)
        ):
            return "too many connections"
        if (
            listener_limit
            and self._verified_on.get(listener, 0) >= listener_limit
            and not self._displace_idler(lambda other: other.listener == listener)
        ):
            return "too many connections on this listener"
        if (
            limits.per_peer
            and host
            and self._verified_from.get(host, 0) >= limits.per_peer
            and not self._displace_idler(lambda other: other.host == host)
        ):
            return "too many connections from this address"
        entry.rank = Rank.VERIFIED
        entry.counted = True
        self._count(entry, 1)
        return ""

    def authenticated(self, entry: Entry, user: str) -> None:
        """Take a connection out of the pool of those that have not logged in."""
        entry.user = user
        self._unauthenticated.discard(entry)

    def login_ended(self, mechanism: str, fault: str) -> None:
        """Count an attempt to log in; ``fault`` is empty where it succeeded."""
        self.logins[mechanism, "failure" if fault else "success"] += 1

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
        self._by_state[entry.listener, entry.state] -= 1
        self._by_state[entry.listener, state] += 1
        entry.state = state
        entry.since = now
        if state in LIVE_STATES:
            entry.stage = state
        elif state is not _CLOSING:
            self._give_up_place(entry)
        self._deadlines.set(entry, when)

    def remove(self, entry: Entry, ending: str) -> None:
        """Strike out a connection that is gone.

        Args:
            entry: It must be in the ledger; leaving twice is a bug, and raises KeyError.
            ending: One word for the statistics.
        """
        del self._entries[entry.id]
        self._by_state[entry.listener, entry.state] -= 1
        self._give_up_place(entry)
        self._deadlines.set(entry, None)
        self.endings[ending] += 1
        self.ended_by[entry.listener, ending] += 1
        entry.accepted = NULL_CONNECTION
        if not self._watchers:
            return
        for watcher in [w for w in self._watchers if entry.id in w[0]]:
            remaining, done = watcher
            remaining.discard(entry.id)
            if not remaining:
                self._watchers.remove(watcher)
                done.callback(None)

    # making room

    def _make_room(self, host: str) -> None:
        """Displace somebody who has not logged in, if there are too many with the next one."""
        displaced = self._unauthenticated.in_the_way(host, self._pool_limit())
        if displaced is not None:
            displaced.accepted.fire(Event.DISPLACED, "made room for a newcomer")

    def _pool_limit(self) -> int:
        """Return how large the pool may be now: its own size, and what nobody else uses."""
        limit = self.limits.unauthenticated
        if not limit:
            return 0
        known = len(self._entries) - len(self._unauthenticated)
        return max(limit, self.limits.total - known)

    def _displace_idler(self, alike: Callable[[Entry], bool]) -> bool:
        """Displace the oldest verified connection that never logged in, if there is one."""
        for entry in self._unauthenticated.everybody.values():
            if entry.counted and alike(entry):
                entry.accepted.fire(Event.DISPLACED, "never logged in, made room for a newcomer")
                return True
        return False

    def _give_up_place(self, entry: Entry) -> None:
        """Stop counting a connection that is as good as gone."""
        self._unauthenticated.discard(entry)
        if entry.counted:
            entry.counted = False
            self._count(entry, -1)

    def _count(self, entry: Entry, change: int) -> None:
        """Change the numbers of verified connections."""
        self._verified += change
        for counts, key in (
            (self._verified_on, entry.listener),
            (self._verified_from, entry.host),
        ):
            count = counts.get(key, 0) + change
            if count:
                counts[key] = count
            else:
                del counts[key]

    # deadlines

    def ends_at(self, entry: Entry, when: float) -> None:
        """Let an owned connection end when its peer's certificate does.

        Args:
            entry: Which connection.
            when: In Unix seconds.  The clock on the wall may be set meanwhile, so it is looked at
                now and then.
        """
        entry.expires = when
        left = max(0.0, when - self.now())
        self._deadlines.set(entry, self.clock.seconds() + min(left, WALL_CLOCK_CHECK))

    def time_moved(self) -> None:
        """Look at once whose certificate has ended, after the time of day was moved."""
        for entry in list(self._entries.values()):
            if entry.state is State.OWNED and entry.expires is not None:
                self.ends_at(entry, entry.expires)

    def _expire(self, entry: Entry) -> None:
        """Fire the event of a deadline that has come."""
        if entry.state is State.OWNED and entry.expires is not None:
            if entry.expires > self.now():
                self.ends_at(entry, entry.expires)
                return
            entry.expires = None
        self.expired[entry.state.value] += 1
        if entry.state is State.HANDSHAKING:
            self.failed_handshakes[entry.listener, "timeout"] += 1
        reason = _DEADLINE_REASONS[entry.state].format(self.timeouts)
        entry.accepted.fire(Event.DEADLINE, reason)

    # for people and programs

    @staticmethod
    def states() -> list[str]:
        """Return the names of the states that a connection in the ledger can have."""
        return [state.value for state in State if state is not State.CLOSED]

    def counts_by_listener(self) -> Counter[tuple[str, str]]:
        """Return how many connections there are by listener and state."""
        return Counter(
            {(name, state.value): number for (name, state), number in self._by_state.items()}
        )

    def counts(self, listener: str | None = None) -> dict[str, int]:
        """Return how many connections are in each state, all states named."""
        found = dict.fromkeys(self.states(), 0)
        for (name, state), number in self._by_state.items():
            if state is not State.CLOSED and listener in {None, name}:
                found[state.value] += number
        return found

    def status(self) -> dict[str, Any]:
        """Return the totals, ready for JSON; the names are documented and stable."""
        return {
            "connections": len(self._entries),
            "verified": self._verified,
            "unauthenticated": len(self._unauthenticated),
            "limits": {
                "connections": self.limits.connections,
                "unauthenticated": self._pool_limit(),
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
            age, state = now - entry.since, entry.state._value_
            if age > oldest.get(state, -1.0):
                oldest[state] = age
        return {state: round(age, 3) for state, age in oldest.items()}

    def _time_left(self, entry: Entry, now: float) -> float | None:
        """Return the seconds until a connection's deadline, None where it has none."""
        if entry.deadline is None:
            return None
        if entry.state is State.OWNED and entry.expires is not None:
            return round(entry.expires - self.now(), 3)
        return round(entry.deadline - now, 3)

    def snapshot(self, listener: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield one plain dict for each connection, ready for JSON, oldest first."""
        for entry in self.entries(listener):
            if entry.state is State.CLOSED:
                continue  # gone since the caller has begun
            now = self.clock.seconds()
            yield {
                "id": entry.id,
                "listener": entry.listener,
                "direction": entry.direction,
                "peer": describe_peer(entry.peer),
                "generation": entry.generation,
                "state": entry.state.value,
                "since_s": round(now - entry.since, 3),
                "age_s": round(now - entry.born, 3),
                "deadline_in_s": self._time_left(entry, now),
                "tls": entry.tls,
                "user": entry.user,
                "owner": entry.owner,
                "reason": entry.reason,
            }
