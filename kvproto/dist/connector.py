"""Keeps this node linked with another one, by calling it.

Owns: one name that is to be linked, the attempts to reach it, the waits between
them.  How a connection is secured is the endpoint's business.

::

    STOPPED ─start─> DIALLING ─up─> LINKED
                      ^    │fail      │down
                      │    v          │
                      └─ WAITING <────┘
    any ─suspend─> SUSPENDED ─resume─> DIALLING (or LINKED)

During a restart of TLS a connector is suspended: the attempt under way is
cancelled, the link is closed, and nothing dials with the old credentials.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure

from kvproto.base.backoff import Backoff
from kvproto.base.log import make_logger
from kvproto.dist.epmd import Locate
from kvproto.dist.link import NodeLink
from kvproto.dist.node import Node, NodeEvent
from kvproto.dist.quiet import QuietFactory
from kvproto.errors import ConfigError, UpstreamError

log = make_logger()

__all__ = ["Connector", "ConnectorState", "SecuredEndpoint"]

SecuredEndpoint = Callable[[str, int], IStreamClientEndpoint]
"""Called with host and port for each attempt: an endpoint that puts TLS on, with the credentials
of now, and verifies the server."""


class ConnectorState(Enum):
    """States of a connector; see the diagram of this module."""

    STOPPED = "stopped"
    SUSPENDED = "suspended"
    WAITING = "waiting"
    DIALLING = "dialling"
    LINKED = "linked"


class _Attempt:
    """One attempt to reach the node."""

    def __init__(self, connector: Connector, generation: int) -> None:
        self._connector = connector
        self.generation = generation
        self.step = "looking for its port"
        self.link: NodeLink | None = None
        self.reaching: Deferred[Any] | None = None
        self.over = False

    def superseded(self) -> None:
        """Give up: the peer's own attempt takes precedence or has succeeded."""
        self._connector._attempt_failed(self, "the node calls us")

    def end(self, reason: str) -> None:
        """Stop whatever it is doing."""
        self.over = True
        if self.reaching is not None:
            self.reaching.cancel()
        if self.link is not None:
            self.link.abort(reason)


class Connector(Service):
    """Calls a node until it is linked, and again when the link is lost.

    Args:
        node: Ours.
        peer: Name of the other one, ``NAME@HOST``.
        locate: Finds its port: `kvproto.dist.epmd.EpmdClient.locate` or
            `kvproto.dist.epmd.FixedPorts.locate`.
        endpoint: See `SecuredEndpoint`.
        clock: The reactor, or a test's clock.
        generation: Returns the number of the credentials of now.
        backoff: How long to wait between attempts.

    Attributes:
        state: Where it stands.
        problem: At which step the last attempt failed and why, "" after one that did not.
    """

    def __init__(
        self,
        node: Node,
        peer: str,
        locate: Locate,
        endpoint: SecuredEndpoint,
        clock: IReactorTime,
        generation: Callable[[], int] = lambda: 0,
        backoff: Backoff | None = None,
    ) -> None:
        name, at, host = peer.partition("@")
        if not name or not at or not host or "@" in host:
            raise ConfigError("--node-connect", f"{peer!r} is not NAME@HOST")
        if peer == node.name:
            raise ConfigError("--node-connect", f"{peer!r} is this node itself")
        self.peer = peer
        self._short, self._host = name, host
        self._node = node
        self._locate = locate
        self._endpoint = endpoint
        self._clock = clock
        self._generation = generation
        self._backoff = backoff or Backoff()
        self._attempt: _Attempt | None = None
        self._timer: IDelayedCall | None = None
        self._unwatch: Callable[[], None] | None = None
        self._attempts = 0
        self.state = ConnectorState.STOPPED
        self.problem = ""

    # What the service says.

    def startService(self) -> None:
        """Begin to call."""
        super().startService()
        self._unwatch = self._node.watch(self._node_changed)
        self._proceed()

    def stopService(self) -> Deferred[None]:
        """Cancel the attempt, close the link; fires when the connection is gone."""
        super().stopService()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        return self._halt(ConnectorState.STOPPED, "this connector is stopping")

    def suspend(self, reason: str = "TLS restarts") -> Deferred[None]:
        """Cancel the attempt, close the link, call nobody until `resume`.

        Returns:
            Fires with None when the connection is gone, ``close_timeout`` later at most.
        """
        if self.state is ConnectorState.STOPPED:
            return succeed(None)
        return self._halt(ConnectorState.SUSPENDED, reason)

    def resume(self) -> None:
        """Call again, at once."""
        if self.state is ConnectorState.SUSPENDED:
            self._backoff.reset()
            self._proceed()

    def _halt(self, state: ConnectorState, reason: str) -> Deferred[None]:
        self.state = state
        self._stop_timer()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._node.end_dialling(self.peer, attempt)
            link = attempt.link
            if link is not None:
                # A link that is up gets a goodbye, any other is cut.
                link.close(reason)
            attempt.end(reason)
            if link is not None:
                return link.drain()
        return succeed(None)

    def _proceed(self) -> None:
        if self._node.is_connected(self.peer):
            self.state = ConnectorState.LINKED
        else:
            self._dial()

    # Attempts.

    def _dial(self) -> None:
        self._timer = None
        attempt = _Attempt(self, self._generation())
        if not self._node.begin_dialling(self.peer, attempt):
            self._wait()
            return
        self.state = ConnectorState.DIALLING
        self._attempt = attempt
        self._attempts += 1
        reaching = Deferred.fromCoroutine(self._reach(attempt))
        reaching.addTimeout(self._node.settings.setup_total, self._clock)
        attempt.reaching = reaching
        reaching.addCallbacks(self._reached, self._not_reached, (attempt,), {}, (attempt,))
        reaching.addErrback(lambda failure: log.failure("connector failed", failure))

    async def _reach(self, attempt: _Attempt) -> None:
        """Find the port and connect; from then on the link has deadlines of its own."""
        port = await self._locate(self._short, self._host)
        if port is None:
            raise UpstreamError(f"epmd on {self._host} knows no node {self._short}")
        attempt.step = f"connecting to {self._host}, port {port}"

        def build() -> NodeLink:
            attempt.link = NodeLink(
                self._node, dialled=self.peer, finished=lambda link: self._lost(attempt, link)
            )
            return attempt.link

        await self._endpoint(self._host, port).connect(QuietFactory.forProtocol(build))

    def _reached(self, _result: None, attempt: _Attempt) -> None:
        attempt.reaching = None
        if attempt.over and attempt.link is not None:
            attempt.link.abort("attempt was given up")

    def _not_reached(self, failure: Failure, attempt: _Attempt) -> None:
        attempt.reaching = None
        if attempt.over and failure.check(CancelledError):
            return
        if failure.check(TimeoutError):
            why = f"no answer within {self._node.settings.setup_total:g} s"
        else:
            why = failure.getErrorMessage() or type(failure.value).__name__
        self._attempt_failed(attempt, f"{attempt.step}: {why}")

    def _lost(self, attempt: _Attempt, link: NodeLink) -> None:
        self._attempt_failed(attempt, link.reason)

    def _attempt_failed(self, attempt: _Attempt, problem: str) -> None:
        self._node.end_dialling(self.peer, attempt)
        if attempt is not self._attempt:
            return
        self._attempt = None
        attempt.end(problem)
        news, self.problem = problem != self.problem, problem
        if self.state is ConnectorState.DIALLING:
            # Once for each problem: a node that is away for a day would fill the log.
            say = log.warn if news else log.debug
            say("no link with node {node}: {problem}", node=self.peer, problem=problem)
            self._wait()

    def _node_changed(self, event: NodeEvent) -> None:
        if event.name != self.peer or self.state is ConnectorState.SUSPENDED:
            return
        if event.up:
            self._linked()
        else:
            self.problem = event.reason
            self._wait()

    def _linked(self) -> None:
        """The link is up, whoever called."""
        self._stop_timer()
        self.state = ConnectorState.LINKED
        attempt = self._attempt
        if attempt is None:
            self._backoff.reset()
            return
        self._node.end_dialling(self.peer, attempt)
        link = attempt.link
        # Its TLS handshake may have begun before the credentials changed.
        if link is not None and 0 < link.generation < self._generation():
            link.close("credentials were replaced meanwhile")
            return
        self._backoff.reset()
        self.problem = ""

    def _wait(self) -> None:
        self._stop_timer()
        self.state = ConnectorState.WAITING
        self._timer = self._clock.callLater(self._backoff.next_wait(), self._waited)

    def _waited(self) -> None:
        self._timer = None
        self._proceed()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def status(self) -> dict[str, Any]:
        """Describe it; JSON can hold it."""
        attempt = self._attempt
        return {
            "node": self.peer,
            "state": self.state.value,
            "attempts": self._attempts,
            "generation": None if attempt is None else attempt.generation,
            "problem": self.problem,
        }
