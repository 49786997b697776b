"""Errors of calls to other nodes, and the exception by which our processes refuse one."""

from __future__ import annotations

from kvproto.dist.display import display
from kvproto.dist.terms import Term
from kvproto.errors import KVProtoError, UpstreamError

__all__ = [
    "CallRefused",
    "CallTimeoutError",
    "NodeDownError",
    "OversizedAnswerError",
    "ProcessDownError",
    "RemoteCallError",
]


class NodeDownError(UpstreamError):
    """There is no link to a node, or it broke while an answer was awaited.

    Args:
        node: Its name.
    """

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node

    def __str__(self) -> str:
        return f"node {self.node} is not connected"


class ProcessDownError(UpstreamError):
    """The process that was called ended before it answered, or does not exist.

    Args:
        process: Its registered name, or its pid as text.
        reason: Erlang's exit reason, e.g. ``Atom("noproc")``.
    """

    def __init__(self, process: str, reason: Term) -> None:
        super().__init__(process, reason)
        self.process = process
        self.reason = reason

    def __str__(self) -> str:
        return f"process {self.process} is down: {display(self.reason)}"

    def __repr__(self) -> str:
        return f"ProcessDownError({self.process!r}, {display(self.reason)})"


class CallTimeoutError(UpstreamError):
    """A call was not answered in time.

    Args:
        process: Its registered name, or its pid as text.
        timeout_s: How long was waited, in seconds.
    """

    def __init__(self, process: str, timeout_s: float) -> None:
        super().__init__(process, timeout_s)
        self.process = process
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"process {self.process} did not answer within {self.timeout_s:g} s"


class OversizedAnswerError(UpstreamError):
    """The answer to a call is nested deeper, or has more elements, than is read here.

    Args:
        process: Its registered name, or its pid as text.
    """

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.process = process

    def __str__(self) -> str:
        return f"the answer of process {self.process} is larger than this node reads"


class RemoteCallError(UpstreamError):
    """A function called by `kvproto.dist.Node.rpc` failed on the other side.

    Args:
        reason: Erlang's reason, what stands in ``{badrpc, Reason}``.
    """

    def __init__(self, reason: Term) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"remote call failed: {display(self.reason)}"

    def __repr__(self) -> str:
        return f"RemoteCallError({display(self.reason)})"


class CallRefused(KVProtoError):
    """Raised by a process of ours to end a call without an answer.

    The caller's ``gen_server:call`` exits with the reason at once, as if the
    process had ended; it goes on all the same.

    Args:
        reason: The exit reason that the caller sees.
    """

    def __init__(self, reason: Term) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the call was refused: {display(self.reason)}"

    def __repr__(self) -> str:
        return f"CallRefused({display(self.reason)})"
