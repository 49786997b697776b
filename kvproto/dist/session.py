"""The conversation on one established node link.

Owns: dispatch of control messages, monitors and links in both directions, calls
that wait for an answer in both directions.  Given whole frames, it writes whole
frames; it knows no transport.  Everything that waits here ends when the link
does, and says so.

Source: Erlang, "Distribution Protocol"; OTP's ``gen.erl`` for the shape of calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger
from kvproto.dist import control
from kvproto.dist.control import Control, Op, decode_control
from kvproto.dist.errors import (
    CallRefused,
    CallTimeoutError,
    NodeDownError,
    OversizedAnswerError,
    ProcessDownError,
)
from kvproto.dist.flags import Flag
from kvproto.dist.handshake import Peer
from kvproto.dist.processes import Caller, Process, ProcessTable
from kvproto.dist.terms import Atom, ImproperList, Pid, Port, Reference, Term
from kvproto.errors import LocalProtocolError

log = make_logger()
peer_log = LimitedLog(log)

__all__ = ["HANDLED", "Session", "SessionHost", "SessionLimits"]

ALIAS: Final = Atom("alias")
NOPROC: Final = Atom("noproc")
NOCONNECTION: Final = Atom("noconnection")
SYSTEM_LIMIT: Final = Atom("system_limit")


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds on what is kept for one peer.

    Args:
        calls: Calls of the peer that wait for an answer; further ones are refused
            with ``system_limit``.
        watches: Monitors and links of the peer; further ones end at once with
            ``system_limit``.
    """

    calls: int = 10_000
    watches: int = 100_000


class SessionHost(Protocol):
    """What a session needs from its node."""

    pid: Pid
    processes: ProcessTable
    clock: IReactorTime

    def new_reference(self) -> Reference:
        """Make a reference."""

    def session_of(self, node: str) -> Session | None:
        """Find the session with a node."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call of ours that waits for an answer."""

    to: Pid | Atom
    answer: Deferred[Term]
    timer: IDelayedCall | None = None


class Session:
    """One established link, from handshake to loss.

    Args:
        host: Our node.
        peer: The other one.
        write: Sends one frame, given without its length.
        limits: See `SessionLimits`.
    """

    def __init__(
        self,
        host: SessionHost,
        peer: Peer,
        write: Callable[[bytes], None],
        limits: SessionLimits,
    ) -> None:
        self._host = host
        self.peer = peer
        self._write = write
        self._limits = limits
        self._over = False
        self._calls: dict[Reference, _Call] = {}
        self._monitors: dict[Reference, _Call] = {}
        self._answering: set[Deferred[Any]] = set()
        self._watched: dict[Reference, tuple[Pid, Pid | Atom, Process]] = {}
        self._linked: set[tuple[Pid, Pid | Port]] = set()

    # What the peer says.

    def receive(self, frame: bytes) -> None:
        """Take one frame, without its length, not empty.

        Raises:
            RemoteProtocolError: The link must end.
        """
        message = decode_control(frame)
        _HANDLERS[message.op](self, message)

    def _on_send(self, message: Control) -> None:
        if message.to == self._host.pid:
            self._on_answer(message.message, message.oversized)
        else:
            self._deliver(message)

    def _deliver(self, message: Control) -> None:
        process = self._host.processes.find(message.to)
        # A message to nobody is dropped, as in Erlang.
        if process is None:
            return
        term = message.message
        if message.oversized:
            self._on_oversized(process, term)
            return
        if type(term) is tuple and term and type(term[0]) is Atom:
            caller = _caller_of(term)
            if caller is not None:
                self._on_gen_call(process, *caller, term[2])
                return
            if term[0] == "$gen_cast" and len(term) == 2:
                self._run_handler(process, process.server.handle_cast, term[1])
                return
        self._run_handler(process, process.server.handle_info, term)

    def _on_oversized(self, process: Process, head: Term) -> None:
        """Drop a message that is larger than we read; one who waits for an answer is told."""
        peer_log.warn(
            "a message from {peer} to process {process} was dropped: it is nested too deep, or "
            "has too many elements",
            peer=self.peer.name,
            process=process.name,
        )
        caller = _caller_of(head)
        if caller is not None:
            self._end_call(process, caller[1], SYSTEM_LIMIT)

    def _run_handler(self, process: Process, handler: Callable[[Term], Any], term: Term) -> None:
        try:
            result = handler(term)
        except Exception:
            self._report(Failure(), process)
        else:
            if isinstance(result, Deferred):
                result.addErrback(self._report, process)

    def _report(self, failure: Failure, process: Process) -> None:
        peer_log.failure(
            "process {process} failed on a message from {peer}",
            failure,
            process=process.name,
            peer=self.peer.name,
        )

    def _on_answer(self, term: Term, oversized: bool) -> None:
        """Match ``{Ref, Reply}`` with the call that waits for it; late ones are dropped."""
        if type(term) is not tuple or len(term) != 2 or type(term[0]) is not Reference:
            return
        call = self._calls.pop(term[0], None)
        if call is not None:
            _stop(call)
            self._write(control.demonitor(self._host.pid, call.to, term[0]))
            if oversized:
                call.answer.errback(OversizedAnswerError(_text(call.to)))
            else:
                call.answer.callback(term[1])

    def _on_monitor(self, message: Control) -> None:
        sender, to, reference = message.sender, message.to, message.reference
        process = self._host.processes.find(to)
        if process is not None:
            if self._has_room():
                self._watched[reference] = (sender, to, process)
            else:
                self._write(control.monitor_exit(to, sender, reference, SYSTEM_LIMIT))
        elif to != self._host.pid:
            self._write(control.monitor_exit(to, sender, reference, NOPROC))

    def _on_demonitor(self, message: Control) -> None:
        self._watched.pop(message.reference, None)

    def _on_monitor_exit(self, message: Control) -> None:
        reference = message.reference
        call = self._calls.pop(reference, None)
        if call is not None:
            _stop(call)
            call.answer.errback(ProcessDownError(_text(call.to), message.reason))
            return
        monitor = self._monitors.pop(reference, None)
        if monitor is not None:
            monitor.answer.callback(message.reason)

    def _on_link(self, message: Control) -> None:
        sender, to = message.sender, message.to
        if to == self._host.pid or self._host.processes.find(to) is not None:
            if self._has_room():
                self._linked.add((to, sender))
            else:
                self._write(control.exit_signal(to, sender, SYSTEM_LIMIT))
        else:
            self._write(control.exit_signal(to, sender, NOPROC))

    def _on_unlink(self, message: Control) -> None:
        self._linked.discard((message.to, message.sender))
        if message.op is Op.UNLINK_ID:
            self._write(control.unlink_ack(message.id, message.to, message.sender))

    def _ignore(self, message: Control) -> None:
        """Take no notice: no process here changes its group leader, has aliases or links out."""

    def _has_room(self) -> bool:
        return len(self._watched) + len(self._linked) < self._limits.watches

    # Calls of the peer.

    def _on_gen_call(self, process: Process, pid: Pid, tag: Term, request: Term) -> None:
        if len(self._answering) >= self._limits.calls:
            self._end_call(process, tag, SYSTEM_LIMIT)
            return
        try:
            reply = process.server.handle_call(request, Caller(self.peer.name, pid))
        except Exception:
            self._call_failed(Failure(), process, tag)
            return
        if not isinstance(reply, Deferred):
            self._reply(reply, process, pid, tag)
            return
        self._answering.add(reply)
        reply.addBoth(self._answered, reply)
        reply.addCallbacks(
            self._reply,
            self._call_failed,
            callbackArgs=(process, pid, tag),
            errbackArgs=(process, tag),
        )
        reply.addErrback(self._report, process)

    def _answered(self, result: Any, waiting: Deferred[Any]) -> Any:
        self._answering.discard(waiting)
        return result

    def _reply(self, reply: Term, process: Process, pid: Pid, tag: Term) -> None:
        # The caller may live on a third node that passed our name on.
        session = self if pid.node == self.peer.name else self._host.session_of(pid.node)
        if session is not None and not session._over:
            try:
                frame = session._reply_frame(reply, process, pid, tag)
            except LocalProtocolError:
                self._call_failed(Failure(), process, tag)
            else:
                session._write(frame)

    def _reply_frame(self, reply: Term, process: Process, pid: Pid, tag: Term) -> bytes:
        # An alias keeps a late reply out of the mailbox of a caller that gave up.
        if (
            type(tag) is ImproperList
            and tag.elements == (ALIAS,)
            and type(tag.tail) is Reference
            and self.peer.flags & Flag.ALIAS
        ):
            return control.alias_send(process.pid, tag.tail, (tag, reply))
        return control.send(pid, (tag, reply))

    def _call_failed(self, failure: Failure, process: Process, tag: Term) -> None:
        error = failure.value
        if isinstance(error, CallRefused):
            reason = error.reason
        else:
            # A call that was cancelled because its node is gone is no news.
            if not (self._over and failure.check(CancelledError)):
                self._report(failure, process)
            reason = (Atom("failed"), type(error).__name__)
        try:
            self._end_call(process, tag, reason)
        except LocalProtocolError as unsendable:
            self._report(Failure(), process)
            self._end_call(process, tag, (Atom("failed"), type(unsendable).__name__))

    def _end_call(self, process: Process, tag: Term, reason: Term) -> None:
        """End a call without a reply, by way of the monitor that the caller made."""
        reference = tag.tail if type(tag) is ImproperList else tag
        watch = self._watched.get(reference) if type(reference) is Reference else None
        if watch is not None and not self._over:
            sender, to, _ = watch
            down = control.monitor_exit(to, sender, reference, reason)
            del self._watched[reference]
            self._write(down)

    # What we say.

    def send(self, to: Pid | str, message: Term) -> None:
        """Send a message to a process or a registered name; no word if there is none."""
        target = _target(to)
        if isinstance(target, Pid):
            self._write(control.send(target, message))
        else:
            self._write(control.reg_send(self._host.pid, target, message))

    def call(self, to: Pid | str, request: Term, timeout_s: float | None) -> Deferred[Term]:
        """Call a process, as ``gen_server:call``.

        Args:
            to: A process or a registered name.
            request: A term.
            timeout_s: Seconds to wait, None for as long as the link lasts.

        Returns:
            The reply.  Fails with `NodeDownError`, `ProcessDownError` or
            `CallTimeoutError`; can be cancelled.

        Raises:
            LocalProtocolError: The request is no term.
        """
        host = self._host
        reference = host.new_reference()
        target = _target(to)
        message = (Atom("$gen_call"), (host.pid, reference), request)
        frame = (
            control.send(target, message)
            if isinstance(target, Pid)
            else control.reg_send(host.pid, target, message)
        )

        def give_up(_answer: Deferred[Term]) -> None:
            self._forget(reference)

        call = _Call(target, Deferred(give_up))
        if self._over:
            call.answer.errback(NodeDownError(self.peer.name))
            return call.answer
        self._calls[reference] = call
        if timeout_s is not None:
            call.timer = host.clock.callLater(timeout_s, self._timed_out, reference, timeout_s)
        # The monitor goes first: whoever is not there says so at once.
        self._write(control.monitor(host.pid, target, reference))
        self._write(frame)
        return call.answer

    def _timed_out(self, reference: Reference, timeout_s: float) -> None:
        call = self._forget(reference)
        if call is not None:
            call.answer.errback(CallTimeoutError(_text(call.to), timeout_s))

    def _forget(self, reference: Reference) -> _Call | None:
        call = self._calls.pop(reference, None) or self._monitors.pop(reference, None)
        if call is not None:
            _stop(call)
            if not self._over:
                self._write(control.demonitor(self._host.pid, call.to, reference))
        return call

    def monitor(self, to: Pid | str) -> Deferred[Term]:
        """Wait for the end of a process.

        Returns:
            Its exit reason; ``noproc`` when there is none, ``noconnection`` when
            the link breaks first.  Cancelling it ends the monitor.
        """
        reference = self._host.new_reference()
        target = _target(to)
        frame = control.monitor(self._host.pid, target, reference)

        def give_up(_answer: Deferred[Term]) -> None:
            self._forget(reference)

        call = _Call(target, Deferred(give_up))
        if self._over:
            call.answer.callback(NOCONNECTION)
            return call.answer
        self._monitors[reference] = call
        self._write(frame)
        return call.answer

    # Ends.

    def process_ended(self, process: Process, reason: Term) -> None:
        """Notify the peer's processes that monitor, or are linked to, one of ours."""
        for reference, (sender, to, watched) in list(self._watched.items()):
            if watched is process:
                del self._watched[reference]
                self._write(control.monitor_exit(to, sender, reference, reason))
        for ours, theirs in [link for link in self._linked if link[0] == process.pid]:
            self._linked.discard((ours, theirs))
            self._write(control.exit_signal(ours, theirs, reason))

    def closed(self) -> None:
        """End everything that waits for the link: it is gone."""
        self._over = True
        self._watched.clear()
        self._linked.clear()
        for answering in list(self._answering):
            answering.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            _stop(call)
            call.answer.errback(NodeDownError(self.peer.name))
        monitors, self._monitors = self._monitors, {}
        for monitor in monitors.values():
            monitor.answer.callback(NOCONNECTION)


def _caller_of(term: Term) -> tuple[Pid, Term] | None:
    """Return who waits for an answer to a message, None where it is no call."""
    if type(term) is tuple and len(term) == 3 and term[0] == "$gen_call":
        sender = term[1]
        if type(sender) is tuple and len(sender) == 2 and type(sender[0]) is Pid:
            return sender
    return None


def _target(to: Pid | str) -> Pid | Atom:
    if isinstance(to, Pid):
        return to
    if not isinstance(to, str):
        raise LocalProtocolError(f"a process is a Pid or a name, not a {type(to).__name__}")
    return Atom(to)


def _stop(call: _Call) -> None:
    timer, call.timer = call.timer, None
    if timer is not None and timer.active():
        timer.cancel()


def _text(process: Pid | Atom) -> str:
    return f"<{process.id}.{process.serial}>" if isinstance(process, Pid) else str(process)


_HANDLERS: Final[dict[Op, Callable[[Session, Any], None]]] = {
    Op.LINK: Session._on_link,
    Op.SEND: Session._on_send,
    Op.EXIT: Session._on_unlink,
    Op.UNLINK: Session._on_unlink,
    Op.REG_SEND: Session._deliver,
    Op.GROUP_LEADER: Session._ignore,
    Op.MONITOR: Session._on_monitor,
    Op.DEMONITOR: Session._on_demonitor,
    Op.MONITOR_EXIT: Session._on_monitor_exit,
    Op.ALIAS_SEND: Session._ignore,
    Op.UNLINK_ID: Session._on_unlink,
    Op.UNLINK_ID_ACK: Session._ignore,
}
"""Handlers of control messages."""

HANDLED: Final = frozenset(_HANDLERS)
"""For the test that none is missing."""
