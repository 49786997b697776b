"""The control vocabulary, carried out over listeners, ledger and rotation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from kvproto import __version__
from kvproto.base.escape import printable
from kvproto.base.log import make_logger
from kvproto.config import Config, OnRotate
from kvproto.config.settings import Settings, describe
from kvproto.dataplane import Backups, IStores, Seeds
from kvproto.errors import CommandError, ConfigError
from kvproto.listeners import AcceptorService, Ledger
from kvproto.ops.commands import PIECE
from kvproto.ops.interfaces import IControl
from kvproto.ops.nodes import INodes, NodeControl, combined
from kvproto.ops.status import (
    ServiceFacts,
    ServiceState,
    connection_report,
    generation_report,
    status_report,
    verdict_report,
)
from kvproto.ops.traffic import Traffic
from kvproto.server import KVServer
from kvproto.server.faults import Fault, FaultKind, FaultPlan
from kvproto.server.topology import ServicePorts
from kvproto.tls.rotation import Rotation

__all__ = ["ServiceControl"]

ALL = "all"
"""What ``restart`` calls every listener together; no listener is named so."""


log = make_logger()

_STATES = {
    ServiceState.STARTING: "the service is starting",
    ServiceState.DRAINING: "the service is draining",
    ServiceState.DRAINED: "the service was drained: 'kvtls restart all' takes clients again",
    ServiceState.STOPPING: "the service is stopping",
}


@implementer(IControl)
class ServiceControl:
    """What an operator can see and do, whichever door is used: socket, signal, file watch.

    Args:
        config: For what the operator decided.
        ledger: All accepted connections.
        acceptors: The listeners, in the order of the configuration, those without TLS last.
        rotation: Who owns the serving generation.
        clock: Its seconds are Unix time.
        begin_stop: Begins to end the process; returns at once.
        nodes: The node part, None where there is none.
        settings: Where the values of the configuration come from; None: from a program.
        server: The buckets; None where none are to be shown.
        stores: Where their values live.
        faults: What shall go wrong with requests; None: nothing may be made to.
        seeds: Stores documents that people have written down.
        traffic: Measures what connections move.

    Attributes:
        state: Where the process is in its life; the service moves it.
        reload_config: Reads users and configuration again; returns a Deferred of what
            `kvproto.ops.config_reload.ConfigReload.reload` says.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        acceptors: Sequence[AcceptorService],
        rotation: Rotation,
        clock: IReactorTime,
        begin_stop: Callable[[], object],
        nodes: INodes | None = None,
        settings: Settings | None = None,
        server: KVServer | None = None,
        stores: IStores | None = None,
        backups: Backups | None = None,
        faults: FaultPlan | None = None,
        seeds: Seeds | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.state = ServiceState.STARTING
        self._config = config
        self._ledger = ledger
        self._acceptors = [*acceptors]
        self._plain = {acceptor.name for acceptor in acceptors[len(config.listen) :]}
        self._rotation = rotation
        self._clock = clock
        self._begin_stop = begin_stop
        self.reload_config: Callable[[], Deferred[dict[str, Any]]] | None = None
        self._settings = settings
        self._server = server
        self._stores = stores
        self._backups = backups
        self._faults = faults
        self._now = time.time if faults is None else faults.wall
        self._seeds = seeds
        self._traffic = traffic
        self._numbers: dict[str, dict[str, Any]] = {}
        self._started = clock.seconds()
        self.nodes: NodeControl | None = None
        self._open = {acceptor.name: acceptor.startService for acceptor in acceptors}
        self._close: list[Callable[[], Any]] = [acceptor.stopService for acceptor in acceptors]
        if nodes is not None:
            self.nodes = NodeControl(nodes, self._now, self.status, self._reload_data)
            self._acceptors.append(nodes.acceptor)
            self._open[nodes.acceptor.name] = nodes.open
            self._close.append(nodes.close)

    # seeing

    def status(self) -> dict[str, Any]:
        """Return the documented status."""
        now = self._now()
        # Ages go by the clock that nobody sets; what is shown as a time of day by the wall's.
        started = now - (self._clock.seconds() - self._started)
        rotation = self._rotation
        return status_report(
            ServiceFacts(__version__, os.getpid(), self.state, self._config.mode.value, started),
            generation_report(
                rotation.current,
                now,
                since=rotation.served_since,
                disk_differs=rotation.differs_from_disk(),
                previous=rotation.previous,
                verdict=rotation.last_verdict,
                verdict_at=rotation.last_verdict_at,
            ),
            [self._listener_status(acceptor) for acceptor in self._acceptors],
            self._ledger.status(),
            now,
            nodes=None if self.nodes is None else self.nodes.status(),
            buckets=self._bucket_statuses(),
            store=None if self._stores is None else self._stores.status(),
            not_ready=self.not_ready(),
        )

    def _bucket_statuses(self) -> list[dict[str, Any]]:
        """Return what each bucket holds."""
        if self._server is None:
            return []
        rows = []
        for bucket in self._server.buckets.values():
            found = self.numbers_of(bucket.name, bucket.store)
            rows.append(
                {
                    "name": bucket.name,
                    # None where the servers that know have not said yet.
                    "items": _number(found, "curr_items"),
                    "bytes": _number(found, "bytes"),
                    "limit_bytes": _number(found, "limit_maxbytes"),
                    "evictions": int(found.get("evictions", 0)),
                }
            )
        return rows

    def numbers_of(self, name: str, store: Any) -> dict[str, Any]:
        """Return a store's numbers; of one that answers later those of the last time."""
        found = store.stats()
        if not isinstance(found, Deferred):
            numbers: dict[str, Any] = found
            return numbers
        found.addCallbacks(
            lambda numbers: self._numbers.__setitem__(name, numbers),
            lambda failure: log.debug(
                "the store gave no numbers: {reason}", reason=failure.getErrorMessage()
            ),
        )
        return self._numbers.get(name, {})

    def not_ready(self) -> str:
        """Return why clients are not served, in one line; ``""`` when they are."""
        if self.state is not ServiceState.READY:
            reason = None
            if self._stores is not None and self.state is ServiceState.STARTING:
                reason = self._stores.ready()
            return printable(reason or _STATES[self.state])
        listening = [acceptor.status() for acceptor in self._acceptors]
        if not any(status["state"] == "listening" for status in listening):
            errors = [status["error"] for status in listening if status["error"]]
            return "; ".join(["no listener listens", *errors])
        reason = None if self._stores is None else self._stores.ready()
        return printable(reason or "")

    def _listener_status(self, acceptor: AcceptorService) -> dict[str, Any]:
        """Return what one listener says, and what becomes of its connections on rotation."""
        if self.nodes is not None and acceptor is self.nodes.acceptor:
            return self.nodes.listener_status()
        secured = acceptor.name not in self._plain
        policy = self._config.on_rotate if secured else OnRotate.KEEP
        return {**acceptor.status(), "on_rotate": policy.value}

    def connections(self, listener: str | None, limit: int) -> Deferred[dict[str, Any]]:
        """Return a Deferred of the documented list of connections, oldest first."""
        if listener is not None:
            self._named(listener)
        return Deferred.fromCoroutine(self._list_connections(listener, limit))

    async def _list_connections(self, listener: str | None, limit: int) -> dict[str, Any]:
        """List connections, so many in a turn; who leaves meanwhile may not be there."""
        total = len(self._ledger.entries(listener))
        rows = islice(self._ledger.snapshot(listener), limit or None)
        shown: list[dict[str, Any]] = []
        while piece := [connection_report(row, self._now()) for row in islice(rows, PIECE)]:
            shown += piece
            if len(piece) == PIECE:
                await deferLater(self._clock, 0)
        return {"total": total, "shown": len(shown), "connections": shown}

    def top(self, milliseconds: int, sort: str, limit: int, listener: str | None) -> Any:
        """Measure what connections move."""
        if listener is not None:
            self._named(listener)
        if self._traffic is None:
            raise CommandError("not-possible", "this service does not measure traffic")
        return self._traffic.measure(milliseconds, sort, limit, listener)

    def flush(self, bucket: str) -> Any:
        """Remove every document of a bucket."""
        buckets = {} if self._server is None else self._server.buckets
        if bucket not in buckets:
            known = ", ".join(buckets)
            raise CommandError("unknown-bucket", f"no bucket {bucket!r}: there is {known}")
        done = maybeDeferred(buckets[bucket].store.flush)
        return done.addCallback(lambda _: {"ok": True, "bucket": bucket})

    def backup(self, file: str) -> Any:
        """Write every document into a file."""
        return self._with_backups().backup(Path(file))

    def restore(self, file: str) -> Any:
        """Store every document of a backup."""
        return self._with_backups().restore(Path(file))

    def _with_backups(self) -> Backups:
        if self._backups is None or self.state in {ServiceState.STARTING, ServiceState.STOPPING}:
            raise CommandError("not-possible", f"the service is {self.state.value}")
        return self._backups

    def seed(self, file: str, create: bool) -> Any:
        """Store the documents of a file."""
        self._with_backups()
        if self._seeds is None:
            raise CommandError("not-possible", "this service takes no seeds")
        return self._seeds.seed(Path(file), create)

    def fault(
        self,
        kind: str,
        operation: str,
        key: str | None,
        status: int,
        milliseconds: int,
        times: int,
    ) -> dict[str, Any]:
        """Let requests fail, or time pass."""
        plan = self._faults
        if plan is None:
            raise CommandError("no-faults", "start the service with --faults for this")
        kinds = [one.value for one in FaultKind]
        if kind == "clear":
            plan.clear()
        elif kind == "advance":
            plan.advance(milliseconds / 1000)
        elif kind not in kinds:
            known = ", ".join([*kinds, "advance", "clear"])
            raise CommandError("bad-argument", f"no kind of fault {kind!r}: there is {known}")
        elif not times or (kind == "status" and not 0 < status < 0x10000):
            raise CommandError(
                "bad-argument", "times must be at least 1, and a status from 1 to 65535"
            )
        else:
            wanted = None if key is None else key.encode("utf-8", "surrogateescape")
            fault = Fault(FaultKind(kind), operation, wanted, status, milliseconds / 1000, times)
            try:
                plan.add(fault)
            except ValueError as error:
                raise CommandError("bad-argument", str(error)) from error
        return {"ok": True, "kind": kind}

    def address(self) -> dict[str, Any]:
        """Return where the first listener listens."""
        first = self._acceptors[0]
        if not first.address:
            error = first.status()["error"] or "it has not begun to listen"
            raise CommandError("not-listening", f"{first.name} does not listen: {error}")
        ports = ServicePorts() if self._server is None else self._server.ports
        return {"address": first.address, "ports": asdict(ports)}

    def config(self) -> dict[str, Any]:
        """Return what is in force, and where each value comes from."""
        return {"options": describe(self._config, self._settings)}

    def _named(self, name: str) -> AcceptorService:
        for acceptor in self._acceptors:
            if acceptor.name == name:
                return acceptor
        known = ", ".join(acceptor.name for acceptor in self._acceptors)
        raise CommandError("unknown-listener", f"no listener {name!r}: there is {known}")

    def change(self, config: Config, settings: Settings | None) -> None:
        """Show another configuration from now on."""
        self._config, self._settings = config, settings

    # credentials

    def reload(self, allow_fewer_names: bool = False) -> Deferred[dict[str, Any]]:
        """Read the credential files again and serve them if they are good.

        The configuration, the users, and what the store's URL names, are read again as well.
        """
        configuration = None if self.reload_config is None else self.reload_config()
        data = self._reload_data(allow_fewer_names)
        data.addCallback(_with, "store", self._reload_store())
        if self.nodes is not None:
            data = _both(data, self.nodes.reload(allow_fewer_names))
        if configuration is None:
            return data

        def with_configuration(answer: dict[str, Any]) -> Deferred[dict[str, Any]]:
            return configuration.addCallback(lambda found: _with(answer, "configuration", found))

        return data.addCallback(with_configuration)

    def _reload_data(self, allow_fewer_names: bool = False) -> Deferred[dict[str, Any]]:
        verdict = self._rotation.reload(allow_fewer_names=allow_fewer_names)
        return verdict.addCallback(verdict_report)

    def _reload_store(self) -> dict[str, Any] | None:
        """Have the store read its files again; return what came of it, None where it has none."""
        reload = getattr(self._stores, "reload", None)
        if reload is None:
            return None
        try:
            changed = reload()
        except ConfigError as error:
            log.warn("the store stays as it is: {reason}", reason=str(error))
            return {"ok": False, "changed": False, "reason": str(error)}
        return {"ok": True, "changed": bool(changed), "reason": changed}

    def rollback(self) -> Deferred[dict[str, Any]]:
        """Serve the generation before the current one."""
        if self._rotation.previous is None:
            raise CommandError(
                "nothing-to-roll-back-to", "nothing was rotated since the service started"
            )
        data = self._rotation.rollback().addCallback(verdict_report)
        return data if self.nodes is None else _both(data, self.nodes.rollback())

    # listeners

    def restart(self, listener: str) -> Deferred[dict[str, Any]]:
        """Restart one listener or all, and start those that were drained."""
        chosen = self._acceptors if listener == ALL else [self._named(listener)]
        results = DeferredList(
            [maybeDeferred(self._restart_one, acceptor) for acceptor in chosen], consumeErrors=True
        )

        def report(outcomes: list[tuple[bool, Any]]) -> dict[str, Any]:
            rows = []
            for acceptor, (good, outcome) in zip(chosen, outcomes, strict=True):
                status = acceptor.status()
                listening = good and status["state"] == "listening"
                reason = status["error"] if good else outcome.getErrorMessage()
                rows.append({"name": acceptor.name, "ok": listening, "reason": reason})
            if any(row["ok"] for row in rows) and self.state is ServiceState.DRAINED:
                self.state = ServiceState.READY
            return {"ok": all(row["ok"] for row in rows), "listeners": rows}

        return results.addCallback(report)

    def _restart_one(self, acceptor: AcceptorService) -> Deferred[Any]:
        if not acceptor.running:
            return self._open[acceptor.name]()
        return acceptor.restart(OnRotate.KEEP)

    # ends

    def drain(self) -> Deferred[dict[str, Any]]:
        """Close the ports and end every connection at a request boundary; go on running."""
        self.state = ServiceState.DRAINING
        states = self._ledger.counts()
        # Those in their handshake have asked nothing: they are neither drained nor cut off.
        living = states["owned"] + states["closing"]
        before = self._ledger.expired["closing"]
        stopped = DeferredList(
            [maybeDeferred(close) for close in self._close],
            consumeErrors=True,
        )

        def report(_: object) -> dict[str, Any]:
            if self.state is ServiceState.DRAINING:
                self.state = ServiceState.DRAINED
            aborted = min(living, self._ledger.expired["closing"] - before)
            return {"ok": True, "drained": living - aborted, "aborted": aborted}

        return stopped.addCallback(report)

    def stop(self) -> dict[str, Any]:
        """Begin to drain and end the process; return at once."""
        self._begin_stop()
        return {"ok": True, "pid": os.getpid()}


def _with(data: dict[str, Any], name: str, part: dict[str, Any] | None) -> dict[str, Any]:
    """Return an answer that says what became of one more part as well."""
    if part is None:
        return data
    answer = {**data, name: part, "ok": data["ok"] and part["ok"]}
    if data["ok"] and not part["ok"]:
        answer.update(stage=name, reason=part["reason"])
    return answer


def _both(data: Deferred[dict[str, Any]], nodes: Deferred[Any]) -> Deferred[dict[str, Any]]:
    """Return a Deferred of one answer for both parts, which work side by side."""

    def joined(results: list[tuple[bool, Any]]) -> dict[str, Any]:
        for good, result in results:
            if not good:
                result.raiseException()
        return combined(*(result for _, result in results))

    return DeferredList([data, nodes], consumeErrors=True).addCallback(joined)


def _number(found: dict[str, Any], name: str) -> int | None:
    return int(found[name]) if name in found else None
