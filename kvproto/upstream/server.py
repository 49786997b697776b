"""One engine server: its connections, whether it answers, and what it costs.

Owns the log lines about a server (one when it goes, one when it is back, one when it refuses
commands for another reason than before) and what is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from kvproto.base.histogram import Histogram
from kvproto.base.log import make_logger
from kvproto.upstream.link import Link, LinkState
from kvproto.upstream.resp import EngineFailure

__all__ = ["Server"]

log = make_logger()

QUIET_S = 60.0
"""Seconds without a refusal for some reason after which the next one is told again."""


MakeLink: TypeAlias = Callable[[Callable[[Link], object], Callable[[float, int], object]], Link]


class Server:
    """A server and the connections to it.

    Args:
        name: ``HOST:PORT``, or the path of its socket.
        make_link: Makes a connection; called with ``changed`` and ``observe`` as `Link` has them.
        connections: How many.
        changed: Called with this server when it has begun, or ceased, to answer.
        make_meta_link: Makes `meta_link`, as ``make_link`` does; for memcached servers.

    Attributes:
        name: As given.
        links: The connections.
        up: Whether it answers.
        reason: Why not: a word of `kvproto.upstream.resp.REASONS`; ``""`` when it does.
        text: The same for people.
        errors: Failures by reason.
        seconds: How long its replies took.
        node: Host and port, where it is one of a cluster.
    """

    def __init__(
        self,
        name: str,
        make_link: MakeLink,
        connections: int,
        changed: Callable[[Server], object],
        make_meta_link: MakeLink | None = None,
    ) -> None:
        self.name = name
        self.up = False
        self.reason, self.text = "unreachable", "not connected yet"
        self.errors: Counter[str] = Counter()
        self.seconds = Histogram()
        self._make_link = make_link
        self._changed = changed
        self._said: str | None = None  # the reason in the last line about its absence
        self._refused: dict[str, float] = {}  # when it last refused something, by reason
        self._running = False
        self.node = ("", 0)
        self.links = [self._new_link() for _ in range(connections)]
        self._durable: Link | None = None
        self._make_meta_link = make_meta_link
        self._meta: Link | None = None

    @property
    def _all_links(self) -> list[Link]:
        return [*self.links, *filter(None, (self._durable, self._meta))]

    def _new_link(self, make: MakeLink | None = None) -> Link:
        link = (make or self._make_link)(self._link_changed, self.seconds.observe)
        link.server = self
        if self._running:
            link.start()
        return link

    def start(self) -> None:
        """Connect."""
        self._running = True
        for link in self.links:
            link.start()

    def stop(self) -> None:
        """Close all connections."""
        self._running = False
        self.up = False
        self.reason, self.text = "unreachable", "stopped"
        for link in self._all_links:
            link.stop()

    def renew(self) -> None:
        """Make new connections, with what is in the files now."""
        for link in self._all_links:
            link.renew()

    @property
    def durable_link(self) -> Link:
        """The connection for durable writes: WAIT holds up whatever comes after it."""
        if self._durable is None:
            self._durable = self._new_link()
        return self._durable

    @property
    def meta_link(self) -> Link:
        """The connection for what only meta commands can say."""
        if self._meta is None:
            self._meta = self._new_link(self._make_meta_link)
        return self._meta

    def link(self, lane: int) -> Link:
        """Return the connection for a lane: the same for the same number as long as it works."""
        links = self.links
        link = links[lane % len(links)]
        if link.state is LinkState.WAITING:
            for other in links:
                if other.state is LinkState.READY:
                    return other
        return link

    def count(self, failure: EngineFailure) -> None:
        """Count a command that has failed."""
        self.errors[failure.reason] += 1

    def refused(self, failure: EngineFailure, now: float) -> None:
        """Tell the operator why it does not do what it is asked, once in a while.

        Args:
            failure: What an error reply meant.
            now: Monotonic time in seconds.
        """
        last = self._refused.get(failure.reason)
        self._refused[failure.reason] = now
        if last is None or now - last > QUIET_S:
            log.warn(
                "engine {server} refuses commands: {reason}: {text}",
                server=self.name,
                reason=failure.reason,
                text=failure.text,
            )

    def _link_changed(self, link: Link) -> None:
        if not self._running:
            return
        if link.state is LinkState.WAITING:
            self.errors[link.reason] += 1
        ready = any(other.state is LinkState.READY for other in self.links)
        if ready:
            self.reason = self.text = ""
            if not self.up:
                self.up = True
                if self._said is not None:
                    log.info("engine {server} is back", server=self.name)
                else:
                    log.info("engine {server} answers", server=self.name)
                self._said = None
                self._changed(self)
        elif link.state is LinkState.WAITING:
            was_up, self.up = self.up, False
            self.reason, self.text = link.reason, link.text
            # A server that is gone first cuts connections and then refuses them: one line for both.
            refused = self._said == "disconnected" and link.reason == "unreachable"
            if self._said != link.reason and not refused:
                self._said = link.reason
                log.warn(
                    "engine {server} does not answer: {reason}: {text}",
                    server=self.name,
                    reason=link.reason,
                    text=link.text,
                )
            if was_up:
                self._changed(self)
