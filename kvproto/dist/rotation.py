"""Restart of all node links when credentials change.

Owns: the order of a restart, who was linked before it, who came back.  Listeners
and contexts are restarted by a function that is passed in.

Source: the answers of ns_server's ``reload_tls`` (MB-36749 and its successors).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.interfaces import IDelayedCall

from kvproto.dist.connector import Connector
from kvproto.dist.node import Node, NodeEvent

__all__ = ["LinkRotation", "RestartReport", "wait_for_nodes"]

COME_BACK_WITHIN: Final = 30.0


@dataclass(frozen=True, slots=True)
class RestartReport:
    """The outcome of a restart of the node links.

    Args:
        listeners: Those that did not start.
        nodes: Those that were linked before and did not come back in time.
    """

    listeners: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything is as it was."""
        return not self.listeners and not self.nodes

    def __str__(self) -> str:
        parts = []
        if self.listeners:
            parts.append(f"could not start node listeners: {', '.join(self.listeners)}")
        if self.nodes:
            parts.append(f"could not connect to nodes: {', '.join(self.nodes)}")
        return "; ".join(parts) or "ok"


class LinkRotation:
    """Restarts node links.

    Args:
        node: Ours.
        connectors: Those that call other nodes; read at each restart.
        restart_listeners: Brings the new credentials into force and restarts the
            node listeners, which closes what they accepted; a Deferred or a coroutine
            of the names of those that did not start.
        within: Seconds that nodes have to come back.
    """

    def __init__(
        self,
        node: Node,
        connectors: Sequence[Connector],
        restart_listeners: Callable[[], Awaitable[Sequence[str]]],
        within: float = COME_BACK_WITHIN,
    ) -> None:
        self._node = node
        self._connectors = connectors
        self._restart_listeners = restart_listeners
        self._within = within
        self._lock = DeferredLock()
        self._awaited: list[str] = []

    def restart(self) -> Deferred[RestartReport]:
        """Close all links, with whatever they were doing, and make them again.

        Returns:
            Fires when all that were linked are back, or the time is over.
        """
        return self.relink().addCallback(self.wait_for_return)

    def relink(self) -> Deferred[tuple[str, ...]]:
        """Perform the first half of `restart`: close all links and begin to make them again.

        Returns:
            Fires with the listeners that did not start, some seconds later at most,
            whatever the peers do.  One that is asked for during another follows it; so
            credentials that were put right need not wait for nodes that the wrong ones lost.
        """
        return self._lock.run(lambda: Deferred.fromCoroutine(self._relink()))

    async def _relink(self) -> tuple[str, ...]:
        self._awaited = sorted({*self._awaited, *self._node.nodes()})
        connectors = list(self._connectors)
        # Side by side: a frozen peer costs its second once, not once per link.
        suspended = [connector.suspend() for connector in connectors]
        try:
            failed = await self._restart_listeners()
            await DeferredList(suspended)
        finally:
            for connector in connectors:
                connector.resume()
        return tuple(failed)

    def wait_for_return(self, listeners: tuple[str, ...]) -> Deferred[RestartReport]:
        """Perform the second half of `restart`: wait for those that were linked.

        Args:
            listeners: The result of `relink`.

        Returns:
            Fires when all are back, or the time is over; can be cancelled.
        """
        awaited = self._awaited

        def report(missing: list[str]) -> RestartReport:
            # A later restart waits for them, and for others, on its own.
            if self._awaited is awaited:
                self._awaited = []
            return RestartReport(listeners, tuple(missing))

        return wait_for_nodes(self._node, awaited, self._within).addCallback(report)


def wait_for_nodes(node: Node, names: Sequence[str], within: float) -> Deferred[list[str]]:
    """Wait until nodes are linked.

    Args:
        node: Ours.
        names: Which ones.
        within: Seconds to wait.

    Returns:
        The names that are not linked when the time is over, empty as soon as all
        are.  Can be cancelled.
    """
    timer: IDelayedCall | None = None

    def missing() -> list[str]:
        return [name for name in names if not node.is_connected(name)]

    def stop() -> None:
        unwatch()
        if timer is not None and timer.active():
            timer.cancel()

    def changed(_event: NodeEvent) -> None:
        if not missing():
            finish()

    def finish() -> None:
        stop()
        waiting.callback(missing())

    waiting: Deferred[list[str]] = Deferred(lambda _: stop())
    unwatch = node.watch(changed)
    if missing():
        timer = node.clock.callLater(within, finish)
    else:
        finish()
    return waiting
