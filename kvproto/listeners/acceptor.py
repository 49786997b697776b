"""The running service of one listener: it starts, restarts and stops as often as asked.

::

    Stopped ─> Starting ─> Listening ─> Stopping ─> Stopped
                  ^  (bind fails: wait, try again)     │
                  └────────────── restart ─────────────┘
                     (fails: serve on as before, or wait and try again)

Starting, restarting and stopping are serialised, and equal requests that still wait are
one (`kvproto.base.serial`).  Each is bounded: what it waits for has a deadline in the
ledger or here.  The events of connections go on being answered meanwhile.

`AcceptorService.restart` keeps the listening socket open and unaccepted: clients wait in
the kernel's queue for some milliseconds, and nobody refuses them.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.python.failure import Failure

from kvproto.base.backoff import Backoff
from kvproto.base.log import make_logger
from kvproto.base.serial import Serial
from kvproto.config import OnRotate
from kvproto.errors import ConfigError
from kvproto.interfaces import IController
from kvproto.listeners import policies
from kvproto.listeners.binding import (
    Binding,
    Rebind,
    SwappableFactory,
    is_hopeless,
    why_not_listening,
)
from kvproto.listeners.handoff import Handoff, HandoffFactory
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.proxy import ProxyFactory
from kvproto.listeners.states import Event, State

__all__ = ["AcceptorService", "AcceptorState"]

log = make_logger()

Wrap = Callable[[IProtocolFactory], IProtocolFactory]


class AcceptorState(enum.StrEnum):
    """Where a listener is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    LISTENING = "listening"
    STOPPING = "stopping"


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
        watch_idle: Whether it is noted when connections last asked something.
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
        watch_idle: bool = False,
    ) -> None:
        self.setName(name)
        self._ledger = ledger
        self._clock = clock
        self._wrap = wrap
        self._proxy = proxy
        self._required = required
        self._option = option
        self._drain_timeout = drain_timeout
        rebind = rebind or Rebind()
        # Every attempt at the time that the status and the documentation say: without jitter.
        self._backoff = Backoff(rebind.first, rebind.longest, jitter=lambda: 0.0)
        self._jitter = jitter
        self._handoffs = HandoffFactory(
            name, controller, ledger, handshake=wrap is not None or proxy, limit=limit
        )
        self._handoffs.objection = self._objection
        self._handoffs.watch_idle = watch_idle
        if expires is not None:
            self._handoffs.expires = expires
        self._verify: policies.Verify | None = None
        self._generation = 0
        self._factory = SwappableFactory(name, self._build_factory())
        self._binding = Binding(name, endpoint, self._factory, clock)
        self._serial = Serial()
        self._state = AcceptorState.STOPPED
        self._listened = False
        self._retry: IDelayedCall | None = None
        self._waiting: list[Deferred[bool]] = []
        self._restarts = 0

    def _build_factory(self) -> IProtocolFactory:
        """Build the factory of what speaks to sockets, TLS and PROXY header included."""
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
        failure = self._binding.open_early()
        if failure is not None and self._required:
            raise self._config_error(failure)

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
        """Queue an attempt to listen."""
        self._serial.run("start", self._start).addErrback(self._start_broke)

    def _forget(self, started: Deferred[bool]) -> None:
        """Stop owing an answer to a caller that has cancelled its Deferred."""
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
                await self._binding.open()
            except Exception:
                self._bind_failed(Failure())
                return
            if not self.running:
                return  # stopped meanwhile; the stop waits in the queue
            try:
                self._resume()
            except Exception:
                if not self._listened:
                    raise
                self._bind_failed(Failure())
                return
        self._answer_waiting(True)

    def _bind_failed(self, failure: Failure) -> None:
        """Give up where that was asked for, else wait and try again."""
        self._binding.failed(failure)
        if (self._required and not self._listened) or is_hopeless(failure):
            self._state = AcceptorState.STOPPED
            self._answer_waiting(Failure(self._config_error(failure)))
            return
        delay = self._backoff.next_wait()
        log.warn(
            "{listener} cannot listen: {error}; next attempt in {delay} s",
            listener=self.name,
            error=self._binding.error,
            delay=delay,
        )
        self._retry = self._clock.callLater(delay, self._try_again)

    def _try_again(self) -> None:
        """Make the attempt that was waited for."""
        self._retry = None
        self._begin()

    def change(self, drain_timeout: float, *, watch_idle: bool) -> None:
        """Have other settings from now on; the arguments are those of the class.

        ``wrap`` is called again: what it makes of settings may be different, too.
        """
        self._drain_timeout = drain_timeout
        self._handoffs.watch_idle = watch_idle
        self._factory.replace(self._build_factory())

    def _config_error(self, failure: Failure) -> ConfigError:
        """Return the operator's error for a port that cannot be bound."""
        return ConfigError(self._option, why_not_listening(failure))

    def _answer_waiting(self, answer: bool | Failure) -> None:
        """Fire the Deferreds of all calls of `startService` that wait."""
        waiting, self._waiting[:] = list(self._waiting), []
        for started in waiting:
            started.callback(answer)

    def _cancel_retry(self) -> None:
        """Cancel the next attempt to bind."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _resume(self) -> None:
        """Accept."""
        self._binding.resume()
        self._backoff.reset()
        self._state = AcceptorState.LISTENING
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
        self._binding.pause()
        # In the queue before anybody hears of it: what they ask for then comes after the end.
        stopped: Deferred[None] = self._serial.run("stop", self._stop)
        self._settle_live()
        return stopped

    def _settle_live(self) -> None:
        """Fire the event of a stopping listener at every live connection."""
        for entry in self._ledger.entries(self.name):
            owned = entry.state in (State.OWNED, State.CLOSING)
            if owned and self._drain_timeout > 0:
                entry.accepted.fire(Event.DRAIN, "the listener stopped", within=self._drain_timeout)
            else:
                entry.accepted.fire(Event.ACCEPTOR_STOPPING, "the listener stopped")

    async def _stop(self) -> None:
        """Close the port and wait for the connections."""
        self._state = AcceptorState.STOPPING
        if not self._binding.is_passed_on:
            # Such a socket stays open and paused, as it is open for whoever passed it.
            await self._binding.close()
        self._settle_live()
        await self._ledger.when_gone(self._ledger.entries(self.name))
        self._state = AcceptorState.STOPPED
        self._listened = False

    # restarting and rotating

    def restart(
        self,
        policy: OnRotate = OnRotate.KEEP,
        *,
        verify: policies.Verify | None = None,
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
        self, policy: OnRotate, verify: policies.Verify | None, window: float
    ) -> dict[str, Any]:
        ended = 0
        if self.running and self._state is AcceptorState.LISTENING:
            entries = self._ledger.entries(self.name)
            terms = self._terms(Event.ACCEPTOR_STOPPING, verify, window)
            factory = self._build_factory()  # what cannot be built changes nothing
            try:
                if policy is not OnRotate.DRAIN:
                    self._pause()
                    ended = await policies.apply(policy, self._ledger, entries, terms)
                await self._replace(factory)
            except Exception:
                self._serve_on()
                raise
            if policy is OnRotate.DRAIN:
                ended = await policies.apply(policy, self._ledger, entries, terms)
        elif self.running:
            await self._start()
        return {
            "listener": self.name,
            "state": self._state.value,
            "policy": policy.value,
            "ended": ended,
        }

    def _pause(self) -> None:
        """Stop accepting; newcomers wait in the kernel's queue."""
        self._state = AcceptorState.STOPPING
        self._binding.pause()

    async def _replace(self, factory: IProtocolFactory) -> None:
        """Give the port a new factory, and accept again."""
        self._pause()
        if not self._binding.can_pause:
            await self._binding.close()
        self._factory.replace(factory)
        self._restarts += 1
        await self._start()

    def _serve_on(self) -> None:
        """Accept again after a restart that failed: as before it, or else after a while."""
        failure = Failure()
        log.failure("{listener} could not restart", failure=failure, listener=self.name)
        if not self.running or self._state is AcceptorState.LISTENING:
            return
        self._state = AcceptorState.STARTING
        if not self._binding.is_open:
            self._bind_failed(failure)
            return
        try:
            self._resume()
        except Exception:
            self._bind_failed(Failure())

    def retire(
        self,
        policy: OnRotate,
        generation: int,
        *,
        verify: policies.Verify | None = None,
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
        terms = self._terms(Event.GENERATION_RETIRED, verify, window)
        ending = Deferred.fromCoroutine(policies.apply(policy, self._ledger, older, terms))
        return ending.addCallback(lambda ended: {**report, "ended": ended})

    def _terms(self, event: Event, verify: policies.Verify | None, window: float) -> policies.Terms:
        """Return what a policy needs to know."""
        return policies.Terms(event, verify, window, self._drain_timeout, self._jitter)

    def _objection(self, connection: Handoff) -> str:
        """Return why a peer of an older handshake may not stay, ``""`` if it may."""
        if self._verify is None or connection.generation >= self._generation:
            return ""
        return policies.objection(self._verify, connection.entry)

    # seeing

    @property
    def state(self) -> AcceptorState:
        """Where the listener is in its life."""
        return self._state

    @property
    def host(self) -> Any:
        """The `IAddress` that it listens on, None as long as it does not."""
        return self._binding.host

    @property
    def address(self) -> str:
        """Where it listens, ``""`` as long as it does not."""
        return self._binding.address

    def status(self) -> dict[str, Any]:
        """Return what there is to know, ready for JSON; the names are documented and stable."""
        retry_in = None if self._retry is None else self._retry.getTime() - self._clock.seconds()
        return {
            "listener": self.name,
            "state": self._state.value,
            "address": self.address,
            "error": self._binding.error,
            "attempts": self._binding.attempts,
            "retry_in_s": None if retry_in is None else round(retry_in, 3),
            "limit": self._handoffs.limit,
            "restarts": self._restarts,
            "generation": self._generation,
            "connections": self._ledger.counts(self.name),
        }
