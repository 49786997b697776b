"""Processes of this node: what peers can call, cast and monitor.

Owns: the interface a program implements (`IGenServer`), the table of what is
registered, how an end is announced.  Knows nothing of links or bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zope.interface import Interface, implementer

from kvproto.dist.encoding import encode
from kvproto.dist.errors import CallRefused
from kvproto.dist.terms import Atom, Pid, Term
from kvproto.errors import LocalProtocolError

__all__ = ["Caller", "GenServer", "IGenServer", "Process", "ProcessTable"]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a ``gen_server:call``.

    Args:
        node: Name of the node whose link the request came by; it has shown
            that it knows the cookie.
        pid: The process that waits, by its own account.
    """

    node: str
    pid: Pid


class IGenServer(Interface):
    """A process as Erlang's ``gen_server`` callers see it."""

    def handle_call(request: Term, caller: Caller) -> Any:
        """Answer ``gen_server:call(Name, Request)``.

        Args:
            request: A term.
            caller: Who asks.

        Returns:
            The reply, or a Deferred of it.  The Deferred is cancelled when the
            caller's node is gone; work that must go on all the same is kept
            behind a Deferred of its own.

        Raises:
            CallRefused: The caller is to exit with that reason.  Any other
                exception is logged, and the caller exits with
                ``{failed, <<"NameOfTheException">>}``.
        """

    def handle_cast(message: Term) -> Any:
        """Take ``gen_server:cast(Name, Message)``; a Deferred is only watched for failure."""

    def handle_info(message: Term) -> Any:
        """Take any other message; a Deferred is only watched for failure."""


@implementer(IGenServer)
class GenServer:
    """A process that supports nothing; the base to build upon."""

    def handle_call(self, request: Term, caller: Caller) -> Any:
        """Refuse: the caller exits with ``notsup``."""
        raise CallRefused(Atom("notsup"))

    def handle_cast(self, message: Term) -> Any:
        """Ignore it, as Erlang ignores a message to nobody."""

    def handle_info(self, message: Term) -> Any:
        """Ignore it, as Erlang ignores a message to nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A registered process.

    Args:
        name: Its registered name.
        pid: Its pid, for as long as it is registered.
        server: Who answers.
    """

    name: str
    pid: Pid
    server: Any


class ProcessTable:
    """Registered processes by name and by pid.

    Args:
        new_pid: Makes a pid of this node.
        ended: Called with a process and its exit reason after it was removed.
    """

    def __init__(self, new_pid: Callable[[], Pid], ended: Callable[[Process, Term], None]) -> None:
        self._new_pid = new_pid
        self._ended = ended
        self._by_name: dict[str, Process] = {}
        self._by_pid: dict[Pid, Process] = {}

    def register(self, name: str, server: Any) -> Process:
        """Give a process a name.

        Args:
            name: At most 255 characters.
            server: Provides `IGenServer`.

        Raises:
            LocalProtocolError: The name is taken, or is none.
        """
        encode(Atom(name))
        if not name:
            raise LocalProtocolError("a process name has 1 to 255 characters")
        if name in self._by_name:
            raise LocalProtocolError(f"process {name!r} is registered already")
        process = Process(name, self._new_pid(), server)
        self._by_name[name] = process
        self._by_pid[process.pid] = process
        return process

    def unregister(self, name: str, reason: Term) -> None:
        """End a process: those who monitor it or are linked to it hear the reason.

        Raises:
            LocalProtocolError: There is none of that name, or the reason is no term.
        """
        process = self._by_name.get(name)
        if process is None:
            raise LocalProtocolError(f"process {name!r} is not registered")
        # As it will be sent, a level deeper: who is told must not depend on who watches.
        encode((reason,))
        del self._by_name[name]
        del self._by_pid[process.pid]
        self._ended(process, reason)

    def find(self, to: Pid | str) -> Process | None:
        """Return the process with that pid or name."""
        return self._by_pid.get(to) if isinstance(to, Pid) else self._by_name.get(to)

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted(self._by_name)
