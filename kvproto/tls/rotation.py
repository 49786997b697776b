"""Which generation serves: reload, roll back, and a verdict for whoever asked.

A job (one reload or one rollback) runs at a time.  Those who ask while one runs
share the next one: its reading begins after they asked, so the verdict is about the
files as they left them.  A job that fails changes nothing at all.

::

    ask → job: read, check, prove (may be in a thread) → swap (one assignment)
        → each subscriber is told (old, new), bounded in time → verdict to all who asked
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, execute, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.errors import CredentialError
from kvproto.tls.contexts import CurrentContext, ServerPolicy
from kvproto.tls.files import CredentialFiles
from kvproto.tls.generation import (
    Generation,
    GenerationError,
    Stage,
    build_generation,
    digest_on_disk,
    rebuild_generation,
)
from kvproto.tls.verdict import Action, ListenerResult, Verdict

__all__ = ["InThread", "Rotation", "Subscriber"]

log = make_logger()

RETRY_DELAY = 0.5
"""Seconds before files that look half written are read again."""

RETRIES = 4
"""How often; two seconds are long for a file to be written, and short for who waits."""

SUBSCRIBER_TIMEOUT = 5.0
"""Seconds that a verdict waits for one subscriber; its work goes on after that."""


Subscriber = Callable[[Generation, Generation], Any]
"""Called with (old, new) after a swap; returns what it did, or a Deferred of it."""


class InThread(Protocol):
    """`twisted.internet.threads.deferToThread`, or `twisted.internet.defer.execute`."""

    def __call__(self, function: Callable[[], Any], /) -> Deferred[Any]:
        """Call a function somewhere and return a Deferred of its result."""


@dataclass(slots=True, eq=False)
class _Job:
    """One reload or rollback, and all who wait for it."""

    action: Action
    allow_fewer_names: bool = False
    waiting: list[Deferred[Verdict]] = field(default_factory=list)

    def answers(self, action: Action, allow_fewer_names: bool) -> bool:
        return (self.action, self.allow_fewer_names) == (action, allow_fewer_names)

    def join(self) -> Deferred[Verdict]:
        """Return a Deferred for one caller; cancelling it ends that caller's waiting only."""
        waiter: Deferred[Verdict] = Deferred(self.waiting.remove)
        self.waiting.append(waiter)
        return waiter


class Rotation(Service):
    """Owns the serving generation.

    Args:
        files: Where credentials are read from.
        policy: How contexts treat peers.
        clock: For retries and deadlines.
        in_thread: Where generations are built; by default in place, which holds up the
            reactor for some milliseconds, or more with large RSA keys.
        part: Of what these are the credentials, for the log of a process with several.
        now: The time of day in Unix seconds, by which certificates are judged.

    Attributes:
        contexts: What `KVTLSFactory` is given; always the serving generation's.
        served_since: When the current generation was swapped in, in Unix seconds.
        verdicts: How many reloads and rollbacks ended how, by "served", "unchanged", "refused".
        last_verdict: How the last reload or rollback ended; None when there was none.
        last_verdict_at: When it did, in Unix seconds.

    Raises:
        CredentialError: The first generation cannot be served.
    """

    name = "rotation"

    def __init__(
        self,
        files: CredentialFiles,
        policy: ServerPolicy,
        clock: IReactorTime,
        in_thread: InThread = execute,
        part: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._policy = policy
        self._clock = clock
        self._in_thread = in_thread
        self._part = f"{part}: " if part else ""
        self._now = now
        first = self._first()
        self._current = first
        self._previous: Generation | None = None
        self.contexts = CurrentContext(first)
        self._subscribers: dict[str, Subscriber] = {}
        self._jobs: list[_Job] = []
        self._running: _Job | None = None
        self._pause: Deferred[None] | None = None
        self._stopped = False
        self._idle: list[Deferred[None]] = []
        self.served_since = now()
        self.verdicts: Counter[str] = Counter()  # "served", "unchanged", "refused"
        self.last_verdict: Verdict | None = None
        self.last_verdict_at: float | None = None
        self._warn(first)

    def _first(self) -> Generation:
        try:
            first = build_generation(1, self._files, self._policy, self._now())
        except GenerationError as error:
            if isinstance(error.__cause__, CredentialError):
                raise error.__cause__ from None
            option = self._files.options.certificate
            raise CredentialError(option, self._files.certificate, str(error)) from error
        assert first is not None, "there is none before it that it could equal"
        return first

    # seeing

    @property
    def current(self) -> Generation:
        """The generation that new connections are served with."""
        return self._current

    @property
    def previous(self) -> Generation | None:
        """What `rollback` returns to; None when there is nothing."""
        return self._previous

    @property
    def files(self) -> CredentialFiles:
        """Where credentials are read from."""
        return self._files

    def differs_from_disk(self) -> bool:
        """Read the files and say whether they hold something else than is served."""
        return digest_on_disk(self._files) != self._current.credentials.digest

    # asking

    def subscribe(self, name: str, subscriber: Subscriber) -> Callable[[], None]:
        """Have a subscriber told of each swap; return a function that ends this.

        Args:
            name: Unique, as in the verdict; a later subscriber of a name replaces the earlier.
            subscriber: See `Subscriber`; it must not raise, and if it does the verdict says so.
        """
        self._subscribers[name] = subscriber

        def unsubscribe() -> None:
            if self._subscribers.get(name) is subscriber:
                del self._subscribers[name]

        return unsubscribe

    def reload(self, *, allow_fewer_names: bool = False) -> Deferred[Verdict]:
        """Read the files and serve what they hold, if it is good.

        Args:
            allow_fewer_names: Whether the new certificate may lack names of the served one.

        Returns:
            A Deferred of the verdict; it never fails.  Cancelling it ends only this caller's
            waiting.
        """
        return self._ask(Action.RELOAD, allow_fewer_names)

    def rollback(self) -> Deferred[Verdict]:
        """Serve the credentials of the generation before this one, under a new number.

        Asked twice, it comes back to where it was.

        Returns:
            As `reload`.
        """
        return self._ask(Action.ROLLBACK, allow_fewer_names=False)

    def stopService(self) -> Deferred[None]:
        """Answer everybody who waits; what is being built is dropped, not swapped in."""
        super().stopService()
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
        idle: Deferred[None] = Deferred()
        if self._running is None:
            idle.callback(None)
        else:
            self._idle.append(idle)
        return idle

    def startService(self) -> None:
        """Take requests (again)."""
        super().startService()
        self._stopped = False

    # one job at a time

    def _ask(self, action: Action, allow_fewer_names: bool) -> Deferred[Verdict]:
        # Only the last one: a job that overtook a rollback would undo it.
        job = self._jobs[-1] if self._jobs else None
        if job is None or not job.answers(action, allow_fewer_names):
            job = _Job(action, allow_fewer_names)
            self._jobs.append(job)
        waiter = job.join()
        if self._running is None:
            self._next()
        return waiter

    def _next(self) -> None:
        if not self._jobs:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)
            return
        self._running = job = self._jobs.pop(0)
        done = Deferred.fromCoroutine(self._run(job))
        done.addErrback(partial(self._verdict_of_defect, job))
        done.addCallback(partial(self._answer, job))

    def _answer(self, job: _Job, verdict: Verdict) -> None:
        self.last_verdict = verdict
        self.verdicts[
            "refused" if not verdict.ok else "served" if verdict.changed else "unchanged"
        ] += 1
        self.last_verdict_at = self._now()
        self._running = None
        # One by one from the list itself: a waiter may cancel another, or ask again.
        while job.waiting:
            job.waiting.pop(0).callback(verdict)
        if self._running is None:
            # A waiter that asked again has begun the next one already.
            self._next()

    async def _run(self, job: _Job) -> Verdict:
        try:
            new = await self._build(job)
        except GenerationError as error:
            return self._refused(job, error)
        if new is None:
            log.info(
                "{action}: the files hold what generation {number} serves",
                action=self._name_of(job),
                number=self._current.number,
            )
            return self._verdict(job)
        old, self._current, self._previous = self._current, new, self._current
        self.served_since = self._now()
        self.contexts.current = new
        log.info(
            "{action}: generation {number} serves, certificate {fingerprint}",
            action=self._name_of(job),
            number=new.number,
            fingerprint=new.fingerprint,
        )
        self._warn(new)
        results = await self._notify_subscribers(old, new)
        failed = [result for result in results if not result.ok]
        return self._verdict(
            job,
            ok=not failed,
            changed=True,
            stage="listeners" if failed else "",
            reason="; ".join(f"{result.name}: {result.detail}" for result in failed),
            listeners=results,
        )

    async def _build(self, job: _Job) -> Generation | None:
        """Build in the thread; where files look half written, again after a while."""
        for attempt in range(RETRIES + 1):
            self._check_stopped()
            try:
                new: Generation | None = await self._in_thread(self._builder(job))
            except GenerationError as error:
                if not error.unfinished or attempt == RETRIES:
                    raise
            else:
                self._check_stopped()
                return new
            self._pause = deferLater(self._clock, RETRY_DELAY)
            # Cancelled by stopService only; the next turn says so.
            self._pause.addErrback(lambda _failure: None)
            await self._pause
            self._pause = None
        raise AssertionError("the last attempt returns or raises")

    def _check_stopped(self) -> None:
        if self._stopped:
            raise GenerationError(Stage.STOPPED, "the service is stopping")

    def _builder(self, job: _Job) -> Callable[[], Generation | None]:
        """Return what builds a job's generation, without a reference to anything that moves."""
        number, now = self._current.number + 1, self._now()
        if job.action is Action.RELOAD:
            return partial(
                build_generation,
                number,
                self._files,
                self._policy,
                now,
                previous=self._current,
                allow_fewer_names=job.allow_fewer_names,
            )
        if self._previous is None:
            raise GenerationError(
                Stage.HISTORY, f"there is no generation before {self._current.number}"
            )
        return partial(rebuild_generation, number, self._previous, now)

    async def _notify_subscribers(
        self, old: Generation, new: Generation
    ) -> tuple[ListenerResult, ...]:
        """Call all subscribers at once; wait for each, but not for long."""
        results = await DeferredList(
            [
                self._bounded(name, maybeDeferred(subscriber, old, new))
                for name, subscriber in list(self._subscribers.items())
            ]
        )
        return tuple(result for _, result in results)

    def _bounded(self, name: str, work: Deferred[Any]) -> Deferred[ListenerResult]:
        """Return a Deferred that fires with the result of some work or when time is over."""
        bounded: Deferred[ListenerResult] = Deferred()
        over = self._clock.callLater(
            SUBSCRIBER_TIMEOUT,
            lambda: bounded.callback(
                ListenerResult(name, ok=True, done=False, detail="still at work")
            ),
        )

        def finish(result: ListenerResult) -> None:
            if over.active():
                over.cancel()
                bounded.callback(result)

        def succeeded(detail: Any) -> None:
            finish(ListenerResult(name, ok=True, done=True, detail=detail))

        def failed(failure: Failure) -> None:
            log.failure("{name} failed at a new generation", name=name, failure=failure)
            finish(ListenerResult(name, ok=False, done=True, detail=failure.getErrorMessage()))

        work.addCallbacks(succeeded, failed)
        return bounded

    # verdicts

    def _refused(self, job: _Job, error: GenerationError) -> Verdict:
        log.error(
            "{action} refused, generation {number} serves on: {stage}: {reason}",
            action=self._name_of(job),
            number=self._current.number,
            stage=error.stage.value,
            reason=error.reason,
        )
        return self._verdict(job, ok=False, stage=error.stage.value, reason=error.reason)

    def _verdict(
        self,
        job: _Job,
        *,
        ok: bool = True,
        changed: bool = False,
        stage: str = "",
        reason: str = "",
        listeners: tuple[ListenerResult, ...] = (),
    ) -> Verdict:
        current = self._current
        return Verdict(
            job.action,
            ok,
            changed,
            current.number,
            current.fingerprint,
            current.not_after,
            stage,
            reason,
            current.warnings,
            listeners,
        )

    def _verdict_of_defect(self, job: _Job, failure: Failure) -> Verdict:
        """Answer those who wait even when we are at fault ourselves."""
        log.failure("{action} failed", action=self._name_of(job), failure=failure)
        return self._verdict(
            job, ok=False, stage=Stage.INTERNAL.value, reason=failure.getErrorMessage()
        )

    def _name_of(self, job: _Job) -> str:
        """Return what a job is called in the log."""
        return f"{self._part}{job.action.value}"

    def _warn(self, generation: Generation) -> None:
        for text in generation.warnings:
            # Not named "warning": trial takes such an event for one of Python's warnings.
            log.warn(
                "{part}generation {number}: {text}",
                part=self._part,
                number=generation.number,
                text=text,
            )
