"""This node: its name, who it is linked with, and what programs do with it.

Owns: names (one link per name, ``alive``, simultaneous connects), nodeup and
nodedown (each once), pids and references, the registered processes.  Never
accepts or dials: accepted connections come from a listener by
`kvproto.dist.controller.NodeController`, our own from
`kvproto.dist.connector.Connector`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorTime

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger
from kvproto.dist.errors import NodeDownError, RemoteCallError
from kvproto.dist.flags import OURS
from kvproto.dist.handshake import NodeIdentity, Status
from kvproto.dist.link import NodeLink
from kvproto.dist.processes import Caller, GenServer, Process, ProcessTable
from kvproto.dist.session import Session
from kvproto.dist.settings import Admit, NodeSettings
from kvproto.dist.terms import Atom, Pid, Reference, Term
from kvproto.errors import UpstreamError

log = make_logger()
peer_log = LimitedLog(log)

__all__ = ["Admit", "Dialling", "Node", "NodeEvent", "NodeSettings"]

CALL_TIMEOUT: Final = 5.0
"""Seconds; ``gen_server:call``'s default."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """A node came or went.

    Args:
        name: Which one.
        up: Whether it came.
        reason: Why it went, "" when it came.
    """

    name: str
    up: bool
    reason: str = ""


class Dialling(Protocol):
    """An attempt to reach a node."""

    def superseded(self) -> None:
        """Give up: the peer's own attempt has succeeded first."""


class _NetKernel(GenServer):
    """Answers ``net_adm:ping``."""

    def handle_call(self, request: Term, caller: Caller) -> Any:
        if type(request) is tuple and len(request) == 2 and request[0] == "is_auth":
            return Atom("yes")
        return super().handle_call(request, caller)


class Node:
    """A hidden node of an Erlang cluster.

    Args:
        settings: See `NodeSettings`.
        clock: The reactor, or a test's clock.
        admit: Asked for each accepted node by name and connection whether it may
            come in, before it is challenged for the cookie.
        creation: Which incarnation of the name this is, 32 bits, not 0.

    Attributes:
        processes: What is registered.
        pid: The sender of what the node itself says.
    """

    def __init__(
        self,
        settings: NodeSettings,
        clock: IReactorTime,
        admit: Admit | None = None,
        creation: int | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.admit = admit
        # Above 3, so that no peer takes it for the two bits of old.
        self._creation = creation or 4 + secrets.randbelow(2**32 - 4)
        self.identity = NodeIdentity(settings.name, settings.cookie, self._creation, OURS)
        self._atom = Atom(settings.name)
        self._last_pid = self._last_reference = 0
        self._links: dict[str, NodeLink] = {}
        self._live: set[NodeLink] = set()
        self._dialling: dict[str, Dialling] = {}
        self._watchers: list[Callable[[NodeEvent], None]] = []
        self._stopping = False
        self.pid = self._new_pid()
        self.processes = ProcessTable(self._new_pid, self._process_ended)
        self.processes.register("net_kernel", _NetKernel())

    @property
    def name(self) -> str:
        """``NAME@HOST``."""
        return self.settings.name

    # Processes.

    def register(self, name: str, server: Any) -> Process:
        """Let peers reach a process by name.

        Args:
            name: At most 255 characters.
            server: Provides `kvproto.dist.processes.IGenServer`.

        Raises:
            LocalProtocolError: The name is taken.
        """
        return self.processes.register(name, server)

    def unregister(self, name: str, reason: Term = Atom("normal")) -> None:  # noqa: B008
        """End a process; those who watch it hear the reason.

        Raises:
            LocalProtocolError: There is none of that name.
        """
        self.processes.unregister(name, reason)

    def _process_ended(self, process: Process, reason: Term) -> None:
        for link in list(self._links.values()):
            if link.session is not None:
                link.session.process_ended(process, reason)

    def _new_pid(self) -> Pid:
        # 15 bits of id and the rest in the serial: peers without V4_NC take no more.
        self._last_pid += 1
        return Pid(self._atom, self._last_pid & 0x7FFF, self._last_pid >> 15, self._creation)

    def new_reference(self) -> Reference:
        """Make a reference that this node never made before."""
        self._last_reference += 1
        number = self._last_reference
        words = (number & 0x3FFFF, (number >> 18) & 0xFFFFFFFF, 0)
        return Reference(self._atom, self._creation, words)

    # What programs say to other nodes.

    def nodes(self) -> list[str]:
        """Return the names of the nodes that are linked, sorted."""
        return sorted(self._links)

    def is_connected(self, name: str) -> bool:
        """Return whether a link with that node is up."""
        return name in self._links

    def watch(self, watcher: Callable[[NodeEvent], None]) -> Callable[[], None]:
        """Call a function for each node that comes or goes, exactly once each.

        Returns:
            A function that ends this.
        """
        self._watchers.append(watcher)

        def unwatch() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return unwatch

    def call(
        self, node: str, process: Pid | str, request: Term, timeout_s: float | None = CALL_TIMEOUT
    ) -> Deferred[Term]:
        """Call a process, as ``gen_server:call({Process, Node}, Request, Timeout)``.

        Returns:
            The reply.  Fails with `NodeDownError`, `ProcessDownError` or
            `CallTimeoutError`; can be cancelled.

        Raises:
            LocalProtocolError: The request is no term.
        """
        session = self.session_of(node)
        if session is None:
            return fail(NodeDownError(node))
        return session.call(process, request, timeout_s)

    def cast(self, node: str, process: Pid | str, message: Term) -> None:
        """Cast to a process, as ``gen_server:cast({Process, Node}, Message)``.

        Raises:
            NodeDownError: There is no link with that node.
            LocalProtocolError: The message is no term.
        """
        self.send(node, process, (Atom("$gen_cast"), message))

    def send(self, node: str, process: Pid | str, message: Term) -> None:
        """Send a message, as ``{Process, Node} ! Message``.

        Raises:
            NodeDownError: There is no link with that node.
            LocalProtocolError: The message is no term.
        """
        session = self.session_of(node)
        if session is None:
            raise NodeDownError(node)
        session.send(process, message)

    def monitor(self, node: str, process: Pid | str) -> Deferred[Term]:
        """Wait for the end of a process.

        Returns:
            Its exit reason; ``noproc`` when there is none, ``noconnection`` when
            the link breaks first.  Fails with `NodeDownError` without a link.
            Cancelling it ends the monitor.
        """
        session = self.session_of(node)
        return fail(NodeDownError(node)) if session is None else session.monitor(process)

    def rpc(
        self,
        node: str,
        module: str,
        function: str,
        arguments: list[Term],
        timeout_s: float | None = CALL_TIMEOUT,
    ) -> Deferred[Term]:
        """Call a function by a peer's ``rex``, as ``rpc:call(Node, Module, Function, Arguments)``.

        Returns:
            What the function returned.  Fails with `RemoteCallError` where Erlang
            says ``{badrpc, Reason}``, and as `call` does.
        """
        request = (Atom("call"), Atom(module), Atom(function), arguments, Atom("user"))
        return self.call(node, "rex", request, timeout_s).addCallback(_rpc_result)

    def ping(self, node: str, timeout_s: float | None = CALL_TIMEOUT) -> Deferred[bool]:
        """Return whether a node answers, as ``net_adm:ping(Node)``."""
        asked = self.call(node, "net_kernel", (Atom("is_auth"), self._atom), timeout_s)
        return asked.addCallbacks(_is_yes, _is_no)

    def session_of(self, node: str) -> Session | None:
        """Return the conversation with a linked node."""
        link = self._links.get(node)
        return None if link is None else link.session

    # What links and connectors say.

    def decide(self, name: str) -> tuple[Status, str]:
        """Answer a node that calls us, by Erlang's rules.

        Returns:
            The status, and for the log why it is refused.
        """
        if self._stopping:
            return Status.NOT_ALLOWED, "this node is stopping"
        if name == self.name:
            return Status.NOT_ALLOWED, "it has this node's own name"
        if name in self._links:
            return Status.ALIVE, ""
        ours = self._dialling.get(name)
        if ours is None:
            return Status.OK, ""
        # Both call at once: the greater name's attempt is the one that counts.
        if self.name > name:
            return Status.NOK, "our own attempt goes first"
        ours.superseded()
        return Status.OK_SIMULTANEOUS, ""

    def begin_dialling(self, name: str, attempt: Dialling) -> bool:
        """Announce an attempt to reach a node.

        Returns:
            Whether it is to be made: not when the node is linked, called already, or
            this node is stopping.
        """
        if self._stopping or name in self._links or name in self._dialling:
            return False
        self._dialling[name] = attempt
        return True

    def end_dialling(self, name: str, attempt: Dialling) -> None:
        """Forget an attempt that has ended, however it went."""
        if self._dialling.get(name) is attempt:
            del self._dialling[name]

    def link_made(self, link: NodeLink) -> None:
        """Register a link that has a connection."""
        self._live.add(link)
        if self._stopping:
            link.abort("this node is stopping")

    def link_up(self, link: NodeLink) -> None:
        """Register a link whose handshake has succeeded; it replaces an older one."""
        name = link.name
        older = self._links.get(name)
        if older is not None:
            older.close("replaced by a newer connection")
        attempt = self._dialling.get(name)
        if attempt is not None and not link.outbound:
            attempt.superseded()
        self._links[name] = link
        self._notify_watchers(NodeEvent(name, up=True))

    def link_down(self, link: NodeLink) -> None:
        """Forget a link that was up."""
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._notify_watchers(NodeEvent(link.name, up=False, reason=link.reason))

    def link_gone(self, link: NodeLink) -> None:
        """Forget a link whose connection is lost."""
        self._live.discard(link)
        log.debug("link with {node} ended: {reason}", node=link.name or "?", reason=link.reason)

    def _notify_watchers(self, event: NodeEvent) -> None:
        if event.up:
            peer_log.info("node {peer} is up", peer=event.name)
        else:
            peer_log.info("node {peer} is down: {reason}", peer=event.name, reason=event.reason)
        for watcher in list(self._watchers):
            try:
                watcher(event)
            except Exception:
                log.failure("a watcher of nodes failed")

    # The end.

    def disconnect(self, name: str, reason: str = "disconnected") -> Deferred[None]:
        """Close the link with a node.

        Returns:
            Fires with None when the connection is gone, at once when there is none.
        """
        return _all([link for link in self._live if link.name == name], reason)

    def stop(self) -> Deferred[None]:
        """Close everything and let nobody in again.

        Returns:
            Fires with None when the last connection is gone, ``close_timeout`` after
            this at most.
        """
        self._stopping = True
        for attempt in list(self._dialling.values()):
            attempt.superseded()
        return _all(list(self._live), "this node is stopping")

    def status(self) -> dict[str, Any]:
        """Describe the node: no secrets, JSON can hold it."""
        return {
            "name": self.name,
            "processes": self.processes.names(),
            "dialling": sorted(self._dialling),
            "links": [
                link.status() for link in sorted(self._live, key=lambda link: (link.name, id(link)))
            ],
        }


def _all(links: list[NodeLink], reason: str) -> Deferred[None]:
    gone = []
    for link in links:
        link.close(reason)
        gone.append(link.drain())
    return DeferredList(gone).addCallback(lambda _results: None)


def _rpc_result(result: Term) -> Term:
    if type(result) is tuple and len(result) == 2 and result[0] == "badrpc":
        raise RemoteCallError(result[1])
    return result


def _is_yes(answer: Term) -> bool:
    return bool(answer == "yes")


def _is_no(failure: Any) -> bool:
    failure.trap(UpstreamError)
    return False
