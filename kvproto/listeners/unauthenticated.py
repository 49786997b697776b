"""The pool of connections that have not logged in, and which of them makes room for a newcomer.

A connection that has not said who it is costs an attacker one SYN.  It
therefore lives in a pool of its own, so that silent sockets never take the place of a
client.  When that pool is full a newcomer is *not* refused: the oldest of those that have
achieved least has to go (nothing but half a ClientHello; then a handshake under way; then
a finished handshake without a login).  A real client needs a round trip to get past the
first group, and is out of reach of any number of silent ones after that.  An address that
fills `SHARE` of the pool displaces its own connections first, so that one machine cannot
push out the others.

Source: other services let 64 silent sockets deny service for minutes, or for ever.
"""

from __future__ import annotations

from kvproto.listeners.entry import Entry, Rank

__all__ = ["SHARE", "UnauthenticatedPool"]

SHARE = 0.5
"""Part of the pool that one address may hold before it displaces only itself: half leaves
room for everybody else, and does not bind a single load balancer."""


class UnauthenticatedPool:
    """Connections that have not logged in, oldest first, all together and by address."""

    __slots__ = ("_by_host", "everybody")

    def __init__(self) -> None:
        self.everybody: dict[int, Entry] = {}
        self._by_host: dict[str, dict[int, Entry]] = {}

    def __len__(self) -> int:
        return len(self.everybody)

    def __contains__(self, entry: Entry) -> bool:
        return entry.id in self.everybody

    def add(self, entry: Entry) -> None:
        """Add a connection, as the youngest."""
        self.everybody[entry.id] = entry
        self._by_host.setdefault(entry.host, {})[entry.id] = entry

    def discard(self, entry: Entry) -> None:
        """Remove a connection, if it is here."""
        if self.everybody.pop(entry.id, None) is None:
            return
        neighbours = self._by_host[entry.host]
        del neighbours[entry.id]
        if not neighbours:
            del self._by_host[entry.host]

    def in_the_way(self, host: str, limit: int) -> Entry | None:
        """Return which connection has to go before another one can be added, None if none has.

        Args:
            host: Where the newcomer is from.
            limit: How many there may be, 0 for no limit.
        """
        if not limit or len(self.everybody) < limit:
            return None
        neighbours = self._by_host.get(host, {})
        crowded = bool(host) and len(neighbours) >= limit * SHARE
        return self._least_advanced(neighbours if crowded else self.everybody)

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
