"""The process that every kvproto node has, by default registered as ``kvtls``.

==================  =========================================================
call                answer
==================  =========================================================
``ping``            ``pong``
``{echo, T}``       ``T``
``{sleep, Ms}``     ``ok``, that much later; others are answered meanwhile
``status``          what the service says of itself
``reload``          the service's verdict
``restart_tls``     the service's verdict
anything else       ``{error, unknown_request}``
==================  =========================================================

Casts of ``reload`` and ``restart_tls`` do the same and answer nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from kvproto.dist.processes import Caller, GenServer
from kvproto.dist.terms import Atom, Term

__all__ = ["DEFAULT_NAME", "BuiltinProcess", "ControlCommand"]

DEFAULT_NAME: Final = "kvtls"

ControlCommand = Callable[[str], Any]
"""Called with ``"status"``, ``"reload"`` or ``"restart_tls"``; a term or a Deferred of one.

Plain values will do: dictionaries, lists, text (a binary on the other side),
numbers, booleans, None (``undefined``).
"""

COMMANDS: Final = frozenset({"status", "reload", "restart_tls"})
STEERING: Final = COMMANDS - {"status"}

LONGEST_SLEEP_MS: Final = 0xFFFFFFFF
"""Erlang's own timers go no further."""


class BuiltinProcess(GenServer):
    """Answers the table above.

    Args:
        clock: For ``sleep``.
        control: The service; None refuses its commands with ``{error, not_available}``.
    """

    def __init__(self, clock: IReactorTime, control: ControlCommand | None = None) -> None:
        self._clock = clock
        self._control = control

    def handle_call(self, request: Term, caller: Caller) -> Any:
        """Answer one request."""
        if type(request) is Atom:
            if request == "ping":
                return Atom("pong")
            if request in COMMANDS:
                return self._command(request)
        elif type(request) is tuple and len(request) == 2:
            if request[0] == "echo":
                return request[1]
            if request[0] == "sleep" and _is_milliseconds(request[1]):
                return deferLater(self._clock, request[1] / 1000, lambda: Atom("ok"))
        return (Atom("error"), Atom("unknown_request"))

    def handle_cast(self, message: Term) -> Any:
        """Steer without waiting for the answer."""
        if type(message) is Atom and message in STEERING:
            return self._command(message)
        return None

    def _command(self, name: str) -> Any:
        if self._control is None:
            return (Atom("error"), Atom("not_available"))
        return _shielded(maybeDeferred(self._control, str(name)))


def _is_milliseconds(term: Term) -> bool:
    return type(term) is int and 0 <= term <= LONGEST_SLEEP_MS


def _shielded(work: Deferred[Any]) -> Deferred[Any]:
    """Let work go on although the one who asked is gone: a reload drops the caller's link."""
    answer: Deferred[Any] = Deferred()
    work.addCallbacks(answer.callback, answer.errback)
    return answer
