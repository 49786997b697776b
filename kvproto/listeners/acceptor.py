"""The running service of one listener: it starts, restarts and stops as often as asked.

::

    Stopped ─> Starting ─> Listening ─> Stopping ─> Stopped
                  ^  (bind fails: wait, try again)     │
                  └────────────── restart ─────────────┘

Starting, restarting and stopping are serialised, and equal requests that still wait are
one (`kvproto.listeners.serial`).  Each is bounded: what it waits for has a deadline in the
ledger or here.  The events of connections go on being answered meanwhile.

`AcceptorService.restart` keeps the listening socket open and unaccepted: clients wait in
the kernel's queue for some milliseconds, and nobody refuses them.
"""

from __future__ import annotations

import enum
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import txaio
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from kvproto.config import OnRotate
from kvproto.errors import ConfigError
from kvproto.interfaces import IController
from kvproto.listeners import drain as closing
from kvproto.listeners.handoff import Handoff, HandoffFactory
from kvproto.listeners.ledger import Entry, Ledger
from kvproto.listeners.ports import describe_address
from kvproto.listeners.proxy import ProxyFactory
from kvproto.listeners.serial import Serial
from kvproto.listeners.states import Event, State

__all__ = ["AcceptorService", "AcceptorState", "Rebind", "why_not_listening"]

txaio.use_twisted()
log = txaio.make_logger()  # type: ignore[attr-defined]

PORT_CLOSE_TIMEOUT = 2.0
"""Seconds that a port of somebody else's making may take to close."""

Wrap = Callable[[IProtocolFactory], IProtocolFactory]


class AcceptorState(enum.StrEnum):
    """Where a listener is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    LISTENING = "listening"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Rebind:
    """How a port that cannot be bound is tried again.

    Attributes:
        first: Seconds until the second attempt.
        longest: Seconds between attempts at most (ns_server: 10, before that 60).
    """

    first: float = 0.5
    longest: float = 10.0


class _Door(Factory):
    """What a port knows: it stays the same while what is behind it is rebuilt."""

    noisy = False

    def __init__(self, name: str, behind: IProtocolFactory) -> None:
        self.name = name
        self.behind = behind

    def logPrefix(self) -> str:
        """Name the listener where Twisted logs about its port."""
        return self.name

    def buildProtocol(self, addr: Any) -> Any:
        return self.behind.buildProtocol(addr)

    def doStart(self) -> None:
        super().doStart()
        self.behind.doStart()

    def doStop(self) -> None:
        super().doStop()
        self.behind.doStop()

    def replace(self, behind: IProtocolFactory) -> None:
        """Put something else behind the door; who is inside stays inside."""
        before, self.behind = self.behind, behind
        if self.numPorts:
            behind.doStart()
            before.doStop()


class AcceptorService(Service):
    """Accepts connections of one listener and hands each to its controller.

    Args:
        name: The listener's name, for logs and status.
        endpoint: Where to listen.  `kvproto.listeners.server_endpoint` makes one whose
            port can pause; with any other endpoint a restart closes the port for a moment.
        controller: Whom verified connections are offered to.
        ledger: The table they are written down in; shared by all listeners of a process.
        clock: The reactor, or a test's clock.
        wrap: Puts TLS on: given the factory of handoffs, returns the one that speaks to
            sockets.  Called again at each restart.  None: connections are verified as
            they are.
        proxy: Whether every connection begins with a PROXY header.
        limit: Verified connections on this listener, 0 for no limit of its own.
        required: Whether a port that cannot be bound the first time is an error
            (`ConfigError`, raised by `privilegedStartService`) or tried again.
        option: What the operator calls this listener, for that error.
        drain_timeout: Seconds that owners have, at a stop, to answer what they were asked.
        rebind: How to try again.
        jitter: Returns numbers from 0 to 1.
        expires: When a peer's chain ends, see `HandoffFactory`; None: its certificate's
            not-after.
    """

    name: str

    def __init__(
        self,
        name: str,
        endpoint: IStreamServerEndpoint,
        controller: IController,
        ledger: Ledger,
        clock: IReactorTime,
        *,
        wrap: Wrap | None = None,
        proxy: bool = False,
        limit: int = 0,
        required: bool = False,
        option: str = "--listen",
        drain_timeout: float = 10.0,
        rebind: Rebind | None = None,
        jitter: Callable[[], float] = random.random,
        expires: Callable[[tuple[bytes, ...]], float | None] | None = None,
    ) -> None:
        self.setName(name)
        self._endpoint = endpoint
        self._ledger = ledger
        self._clock = clock
        self._wrap = wrap
        self._proxy = proxy
        self._required = required
        self._option = option
        self._drain_timeout = drain_timeout
        self._rebind = rebind or Rebind()
        self._jitter = jitter
        self._handoffs = HandoffFactory(
            name, controller, ledger, handshake=wrap is not None or proxy, limit=limit
        )
        self._handoffs.objection = self._objection
        if expires is not None:
            self._handoffs.expires = expires
        self._verify: closing.Verify | None = None
        self._generation = 0
        self._door = _Door(name, self._stack())
        self._serial = Serial()
        self._port: Any = None
        self._binding: Deferred[None] | None = None
        self._state = AcceptorState.STOPPED
        self._attempts = 0
        self._listened = False
        self._error = ""
        self._retry: IDelayedCall | None = None
        self._waiting: list[Deferred[bool]] = []
        self._restarts = 0

    def _stack(self) -> IProtocolFactory:
        """Build what speaks to sockets, anew."""
        factory: IProtocolFactory = self._handoffs
        if self._wrap is not None:
            factory = self._wrap(factory)
        return ProxyFactory(factory) if self._proxy else factory

    # starting

    def privilegedStartService(self) -> None:
        """Bind, without accepting yet: before privileges are dropped, before anything runs.

        Raises:
            ConfigError: The port cannot be bound, and the listener is required.
        """
        super().privilegedStartService()
        failures: list[Failure] = []
        self._binding = Deferred.fromCoroutine(self._bind())
        self._binding.addErrback(failures.append)  # startService tries again, and tells
        if failures and self._required:
            raise self._config_error(failures[0])

    def startService(self) -> Deferred[bool]:
        """Begin to accept.

        Returns:
            A Deferred of True once the listener listens, of False if it was stopped before
            that.  It fails with `ConfigError` if the listener is required and could not be
            bound.
        """
        super().startService()
        started: Deferred[bool] = Deferred(self._forget)
        self._waiting.append(started)
        self._begin()
        return started

    def _begin(self) -> None:
        """Ask for an attempt to listen."""
        self._serial.run("start", self._start).addErrback(self._start_broke)

    def _forget(self, started: Deferred[bool]) -> None:
        """Owe no answer to somebody who has given up."""
        if started in self._waiting:
            self._waiting.remove(started)

    def _start_broke(self, failure: Failure) -> None:
        """Report what is a fault of ours or of the endpoint's."""
        log.failure("{listener} could not start", failure=failure, listener=self.name)
        self._answer_waiting(failure)

    async def _start(self) -> None:
        """Listen, or arrange for the next attempt."""
        self._cancel_retry()
        if not self.running:
            return
        if self._state is not AcceptorState.LISTENING:
            self._state = AcceptorState.STARTING
            try:
                await self._bind()
            except Exception:
                self._bind_failed(Failure())
                return
            if not self.running:
                return  # stopped meanwhile; the stop waits in the queue
            self._resume()
        self._answer_waiting(True)

    async def _bind(self) -> None:
        """Open the port without accepting from it; nothing to do if it is open."""
        binding, self._binding = self._binding, None
        if binding is not None:
            await binding
        if self._port is None:
            self._port = await self._endpoint.listen(self._door)
            self._pause()

    def _bind_failed(self, failure: Failure) -> None:
        """Give up where that was asked for, else wait and try again."""
        self._attempts += 1
        self._error = why_not_listening(failure)
        if (self._required and not self._listened) or _is_hopeless(failure):
            self._state = AcceptorState.STOPPED
            self._answer_waiting(Failure(self._config_error(failure)))
            return
        delay = min(self._rebind.longest, self._rebind.first * 2 ** (self._attempts - 1))
        log.warn(
            "{listener} cannot listen: {error}; next attempt in {delay} s",
            listener=self.name,
            error=self._error,
            delay=delay,
        )
        self._retry = self._clock.callLater(delay, self._try_again)

    def _try_again(self) -> None:
        """Make the attempt that was waited for."""
        self._retry = None
        self._begin()

    def _config_error(self, failure: Failure) -> ConfigError:
        """Say to the operator why the listener cannot be."""
        return ConfigError(self._option, why_not_listening(failure))

    def _answer_waiting(self, answer: bool | Failure) -> None:
        """Tell everybody who waits for the listener to listen."""
        waiting, self._waiting[:] = list(self._waiting), []
        for started in waiting:
            started.callback(answer)

    def _cancel_retry(self) -> None:
        """Forget the next attempt to bind."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _pause(self) -> None:
        """Let newcomers wait in the kernel's queue, if the port can do that."""
        pause = getattr(self._port, "pause_accepting", None)
        pause = pause or getattr(self._port, "stopReading", None)
        if pause is not None:
            pause()

    def _resume(self) -> None:
        """Accept."""
        resume = getattr(self._port, "resume_accepting", None)
        resume = resume or getattr(self._port, "startReading", None)
        if resume is not None:
            resume()
        self._state = AcceptorState.LISTENING
        self._attempts = 0
        self._error = ""
        if not self._listened:
            self._listened = True
            log.info("{listener} listens on {address}", listener=self.name, address=self.address)

    # stopping

    def stopService(self) -> Deferred[None]:
        """Refuse newcomers, answer what was asked, close.

        What only handshakes is dropped at once: it has asked nothing.  The time is bounded
        by the drain timeout and the close of what outlives it.

        Returns:
            A Deferred that fires once the port is closed and no connection is left.
        """
        super().stopService()
        self._cancel_retry()
        self._answer_waiting(False)
        if self._port is not None:
            self._pause()
        self._settle_live()
        stopped: Deferred[None] = self._serial.run("stop", self._stop)
        return stopped

    def _settle_live(self) -> None:
        """Let every live connection know that this listener ends."""
        for entry in self._ledger.entries(self.name):
            owned = entry.state in (State.OWNED, State.CLOSING)
            if owned and self._drain_timeout > 0:
                entry.accepted.fire(Event.DRAIN, "the listener stopped", within=self._drain_timeout)
            else:
                entry.accepted.fire(Event.ACCEPTOR_STOPPING, "the listener stopped")

    async def _stop(self) -> None:
        """Close the port and wait for the connections."""
        self._state = AcceptorState.STOPPING
        if not isinstance(self._endpoint, AdoptedStreamServerEndpoint):
            # A socket that was passed to us can be listened on only once: it stays open and
            # paused, as it is open for whoever passed it.
            await self._close_port()
        self._settle_live()
        await self._ledger.when_gone(self._ledger.entries(self.name))
        self._state = AcceptorState.STOPPED
        self._listened = False

    async def _close_port(self) -> None:
        """Close the listening socket, whatever its port says to that."""
        port, self._port = self._port, None
        if port is None:
            return
        closed = maybeDeferred(port.stopListening)
        closed.addTimeout(PORT_CLOSE_TIMEOUT, self._clock)
        try:
            await closed
        except Exception:
            log.failure("{listener} could not close its port", listener=self.name)

    # restarting and rotating

    def restart(
        self,
        policy: OnRotate = OnRotate.KEEP,
        *,
        verify: closing.Verify | None = None,
        window: float = 10.0,
    ) -> Deferred[dict[str, Any]]:
        """Build what speaks to sockets anew, without refusing anybody.

        The listening socket stays open and unaccepted meanwhile (a port that cannot pause is
        closed and opened again).  Where the next attempt to bind is pending, it is made now.

        Args:
            policy: What becomes of live connections.  With ``DISCONNECT`` newcomers wait
                until the last old one is gone: a second or two at most.
            verify: For ``RECHECK``.
            window: Seconds over which ``DRAIN`` spreads its beginnings.

        Returns:
            A Deferred of a plain dict: ``listener``, ``state``, ``policy``, and
            ``ended``, the number of connections that were ended.
        """
        job = partial(self._restart, policy, verify, window)
        restarted: Deferred[dict[str, Any]] = self._serial.run(("restart", policy, verify), job)
        return restarted

    async def _restart(
        self, policy: OnRotate, verify: closing.Verify | None, window: float
    ) -> dict[str, Any]:
        ended = 0
        if self.running and self._state is AcceptorState.LISTENING:
            stack = self._stack()  # what cannot be built changes nothing
            self._state = AcceptorState.STOPPING
            self._pause()
            entries = self._ledger.entries(self.name)
            ending = partial(self._end_live, entries, Event.ACCEPTOR_STOPPING, verify, window)
            if policy is not OnRotate.DRAIN:
                ended = await ending(policy)
            if not _can_pause(self._port):
                await self._close_port()
            self._door.replace(stack)
            self._restarts += 1
            await self._start()
            if policy is OnRotate.DRAIN:
                ended = await ending(policy)
        elif self.running:
            await self._start()
        return {
            "listener": self.name,
            "state": self._state.value,
            "policy": policy.value,
            "ended": ended,
        }

    def retire(
        self,
        policy: OnRotate,
        generation: int,
        *,
        verify: closing.Verify | None = None,
        window: float = 10.0,
    ) -> Deferred[dict[str, Any]]:
        """Apply a policy to the connections of older credential generations.

        Not queued behind restarts and stops: it leaves the port alone, and a revocation
        does not wait for a drain.  Handshakes under way finish (except with
        ``DISCONNECT``); with any policy but ``KEEP`` their peers are then verified by
        ``verify`` before they are offered.

        Args:
            policy: What becomes of them.
            generation: Number of the generation that serves now.
            verify: Its opinion of a peer's chain.
            window: Seconds over which ``DRAIN`` spreads its beginnings.

        Returns:
            A Deferred of a plain dict: ``listener``, ``policy``, ``generation``,
            ``connections`` (of older generations) and ``ended``, when those are gone.
        """
        if policy is not OnRotate.KEEP:
            self._verify, self._generation = verify, generation
        older = [e for e in self._ledger.entries(self.name) if e.generation < generation]
        report = {
            "listener": self.name,
            "policy": policy.value,
            "generation": generation,
            "connections": len(older),
        }
        ending = Deferred.fromCoroutine(
            self._end_live(older, Event.GENERATION_RETIRED, verify, window, policy)
        )
        return ending.addCallback(lambda ended: {**report, "ended": ended})

    async def _end_live(
        self,
        entries: list[Entry],
        event: Event,
        verify: closing.Verify | None,
        window: float,
        policy: OnRotate,
    ) -> int:
        """Apply a policy; return how many connections it ended."""
        if policy is OnRotate.DISCONNECT:
            return await closing.disconnect(self._ledger, entries, event, event.value)
        if policy is OnRotate.RECHECK and verify is not None:
            return await closing.recheck(self._ledger, entries, verify)
        if policy is OnRotate.DRAIN:
            return await closing.drain(
                self._ledger,
                entries,
                window=window,
                within=self._drain_timeout,
                reason=event.value,
                jitter=self._jitter,
            )
        return 0

    def _objection(self, connection: Handoff) -> str:
        """Say why a peer whose handshake began before a rotation may not stay."""
        if self._verify is None or connection.generation >= self._generation:
            return ""
        return closing.objection(self._verify, connection.entry)

    # seeing

    @property
    def state(self) -> AcceptorState:
        """Where the listener is in its life."""
        return self._state

    @property
    def address(self) -> str:
        """Where it listens, ``""`` as long as it does not."""
        return "" if self._port is None else describe_address(self._port.getHost())

    def status(self) -> dict[str, Any]:
        """Return what there is to know, ready for JSON; the names are documented and stable."""
        retry_in = None if self._retry is None else self._retry.getTime() - self._clock.seconds()
        return {
            "listener": self.name,
            "state": self._state.value,
            "address": self.address,
            "error": self._error,
            "attempts": self._attempts,
            "retry_in_s": None if retry_in is None else round(retry_in, 3),
            "limit": self._handoffs.limit,
            "restarts": self._restarts,
            "generation": self._generation,
            "connections": self._ledger.counts(self.name),
        }


def _can_pause(port: Any) -> bool:
    """Tell whether a port's socket can stay open unaccepted."""
    return hasattr(port, "pause_accepting") or hasattr(port, "stopReading")


_BIND_ERRORS = {
    errno.EADDRINUSE: "the address is in use: another server listens there",
    errno.EACCES: "not permitted to listen there",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


_HOPELESS = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
"""What no waiting will change: this machine does not speak the address family."""


def _is_hopeless(failure: Failure) -> bool:
    """Tell whether trying again is pointless."""
    cause = getattr(failure.value, "socketError", failure.value)
    return getattr(cause, "errno", None) in _HOPELESS


def why_not_listening(failure: Failure) -> str:
    """Say why a port could not be bound, in an operator's words."""
    error = failure.value
    if isinstance(error, CannotListenError):
        interface = f"[{error.interface}]" if ":" in str(error.interface) else error.interface
        where = ":".join(str(part) for part in (interface, error.port) if part)
        cause = error.socketError
        text = _BIND_ERRORS.get(getattr(cause, "errno", None) or 0, str(cause))
        return f"cannot listen on {where}: {text}"
    return f"cannot listen: {error}"
