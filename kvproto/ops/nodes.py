"""Node links under the control vocabulary, and the vocabulary for nodes.

Knows of the node part of a service what `INodes` says.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from kvproto.config import OnRotate
from kvproto.dist import RestartReport
from kvproto.errors import CommandError
from kvproto.listeners import AcceptorService
from kvproto.ops.status import generation_report, verdict_report
from kvproto.tls.generation import Generation
from kvproto.tls.rotation import Rotation
from kvproto.tls.verdict import Verdict

__all__ = ["INodes", "NodeControl", "Outcome", "combined"]

Outcome = tuple[Verdict, RestartReport]
"""What became of the files, and of the links."""


class INodes(Protocol):
    """The node part of a service, as `kvproto.nodes.NodeService` is."""

    @property
    def rotation(self) -> Rotation:
        """The credentials that links are made with."""

    @property
    def acceptor(self) -> AcceptorService:
        """The listener."""

    @property
    def follows_data(self) -> bool:
        """Whether all credential files are the data listener's."""

    def before_restart(self, began: Callable[[Generation], None]) -> AbstractContextManager[None]:
        """Have somebody told when links are about to be closed, whoever asked for that."""

    def rotate(self, *, allow_fewer_names: bool = False) -> Deferred[Outcome]:
        """Read the credential files; if they are new and good, make every link again."""

    def restart_tls(self) -> Deferred[Outcome]:
        """Read the credential files; unless they are bad make every link again."""

    def rollback(self) -> Deferred[Outcome]:
        """Make every link again with the credentials before these."""

    def open(self) -> Deferred[bool]:
        """Take part in the cluster (again)."""

    def close(self) -> Deferred[None]:
        """Leave the cluster."""

    def status(self) -> dict[str, Any]:
        """Describe name, processes, links, connectors and epmd."""


class NodeControl:
    """What operators, and other nodes, can ask of the node part.

    Args:
        nodes: That part.
        now: Returns Unix seconds.
        status: Returns the status of the whole service.
        reload_data: Reloads the data listener's credentials.
    """

    def __init__(
        self,
        nodes: INodes,
        now: Callable[[], float],
        status: Callable[[], dict[str, Any]],
        reload_data: Callable[[], Deferred[dict[str, Any]]],
    ) -> None:
        self._nodes = nodes
        self._now = now
        self._reload_data = reload_data
        self._commands: dict[str, Callable[[], Any]] = {
            "status": status,
            "reload": self._reload_both,
            "restart_tls": self._restart_tls,
        }

    @property
    def acceptor(self) -> AcceptorService:
        """The listener."""
        return self._nodes.acceptor

    def listener_status(self) -> dict[str, Any]:
        """Return what ``status`` says of the listener: links are always made again."""
        return {
            **self.acceptor.status(),
            "on_rotate": OnRotate.DISCONNECT.value,
            "generation": self._nodes.rotation.current.number,
        }

    def status(self) -> dict[str, Any]:
        """Return what ``status`` says of nodes."""
        rotation = self._nodes.rotation
        return {
            **self._nodes.status(),
            "generation": generation_report(
                rotation.current,
                self._now(),
                since=rotation.served_since,
                disk_differs=rotation.differs_from_disk(),
                previous=rotation.previous,
                verdict=rotation.last_verdict,
                verdict_at=rotation.last_verdict_at,
            ),
        }

    def reload(self, allow_fewer_names: bool) -> Deferred[dict[str, Any]]:
        """Read the credential files of nodes; fires when all nodes are back, or 30 s later."""
        return self._nodes.rotate(allow_fewer_names=allow_fewer_names).addCallback(_outcome)

    def rollback(self) -> Deferred[dict[str, Any] | None]:
        """Roll node links back where their files are the data listener's; None where not."""
        if not self._nodes.follows_data:
            return succeed(None)
        return self._nodes.rollback().addCallback(_outcome)

    def from_node(self, command: str) -> Any:
        """Carry out a command of the built-in process.

        The answer is given before the links are closed, since it would be lost with them;
        who came back is in the ``status`` that the node can ask for then.
        """
        return self._commands[command]()

    def _reload_both(self) -> Deferred[dict[str, Any]]:
        data: dict[str, Any] = {}

        async def work() -> dict[str, Any]:
            # One after the other, so that the answer holds the data listener's verdict.
            data.update(await self._reload_data())
            return _ended(await self._nodes.rotate())

        def whole(nodes: dict[str, Any]) -> dict[str, Any]:
            if not data:  # somebody else's restart came before the data listener's verdict
                return {**nodes, "nodes": nodes}
            return {**combined(data, nodes), "restarting": nodes["restarting"]}

        return self._answered_in_time(work).addCallback(whole)

    def _restart_tls(self) -> Deferred[dict[str, Any]]:
        async def work() -> dict[str, Any]:
            return _ended(await self._nodes.restart_tls())

        return self._answered_in_time(work)

    def _answered_in_time(
        self, work: Callable[[], Coroutine[Deferred[Any], Any, dict[str, Any]]]
    ) -> Deferred[dict[str, Any]]:
        """Return a Deferred of what work returns, or of its beginning.

        The beginning comes first where links are about to be closed meanwhile, be it by this
        work or by somebody else's: an answer would be lost with them.
        """
        answer: Deferred[dict[str, Any]] = Deferred()

        def began(generation: Generation) -> None:
            if not answer.called:
                answer.callback(
                    {
                        "ok": True,
                        "restarting": True,
                        "generation": generation.number,
                        "fingerprint_sha256": generation.fingerprint,
                    }
                )

        def ended(outcome: dict[str, Any]) -> None:
            if not answer.called:
                answer.callback(outcome)

        def failed(failure: Failure) -> None:
            if not answer.called:
                answer.errback(failure)
            else:
                # Who asked has been answered, and the part that failed has logged why.
                failure.trap(CommandError)

        async def told() -> dict[str, Any]:
            with self._nodes.before_restart(began):
                return await work()

        Deferred.fromCoroutine(told()).addCallbacks(ended, failed)
        return answer


def _ended(outcome: Outcome) -> dict[str, Any]:
    return {"restarting": False, **_outcome(outcome)}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    verdict, report = outcome
    answer = {**verdict_report(verdict), "missing": list(report.nodes)}
    if verdict.ok and not report.ok:
        answer.update(ok=False, stage="nodes", reason=str(report))
    return answer


def combined(data: dict[str, Any], nodes: dict[str, Any] | None) -> dict[str, Any]:
    """Return one answer that names both parts.

    Args:
        data: The data listener's; its fields stay where they are.
        nodes: The node part's; None where there is none, or it was not concerned.
    """
    if nodes is None:
        return data
    answer = {**data, "nodes": nodes, "ok": data["ok"] and nodes["ok"]}
    if data["ok"] and not nodes["ok"]:
        answer.update(stage="nodes", reason=f"nodes: {nodes['reason']}")
    return answer
