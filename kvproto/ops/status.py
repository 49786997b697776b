"""The documented values of the control vocabulary, made from what the rooms know of themselves.

Pure functions: no clock, no socket, no global state.  The names are stable and described in
``docs/reference/control.md``; new ones may be added.  Times are RFC 3339 in UTC, with
milliseconds; durations are seconds in fields that end in ``_s``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvproto.tls.generation import Generation
    from kvproto.tls.verdict import Verdict

__all__ = [
    "ServiceFacts",
    "ServiceState",
    "connection_report",
    "connections_report",
    "generation_report",
    "status_report",
    "timestamp",
    "verdict_report",
]


class ServiceState(enum.StrEnum):
    """Where the process is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """The process.

    Attributes:
        version: Of kvproto.
        pid: Process id.
        state: Where it is in its life.
        mode: Whose habits it follows, ``"couchbase"`` or ``"memcached"``.
        started: Unix seconds.
    """

    version: str
    pid: int
    state: ServiceState
    mode: str
    started: float


def timestamp(seconds: float) -> str:
    """Return Unix seconds as RFC 3339, e.g. ``2026-11-20T22:19:03.250Z``."""
    text = datetime.fromtimestamp(round(seconds, 3), UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _timestamp_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)


def status_report(
    service: ServiceFacts,
    generation: Mapping[str, Any] | None,
    listeners: Sequence[Mapping[str, Any]],
    ledger: Mapping[str, Any],
    now: float,
    counters: Mapping[str, int] | None = None,
    nodes: Mapping[str, Any] | None = None,
    buckets: Sequence[Mapping[str, Any]] = (),
    store: Mapping[str, Any] | None = None,
    not_ready: str = "",
) -> dict[str, Any]:
    """Return the answer to ``status``.

    Args:
        service: The process.
        generation: `generation_report`; None before anything is served.
        listeners: `kvproto.listeners.AcceptorService.status` of each listener, in the
            order of the configuration, with ``on_rotate`` added.
        ledger: `kvproto.listeners.Ledger.status`.
        now: Unix seconds.
        counters: Further totals since the start, e.g. requests.
        nodes: What there is to say of node links; None where there are none.
        buckets: What each holds.
        store: What there is to say of where values live.
        not_ready: Why clients are not served, ``""`` when they are.
    """
    limits = ledger["limits"]
    return {
        "service": {
            "version": service.version,
            "pid": service.pid,
            "state": service.state.value,
            "mode": service.mode,
            "ready": not not_ready,
            "reason": not_ready,
            "since": timestamp(service.started),
            "uptime_s": round(now - service.started, 3),
        },
        "generation": None if generation is None else dict(generation),
        "listeners": [_listener(listener, now) for listener in listeners],
        "limits": {
            "connections": {"used": ledger["verified"], "limit": limits["connections"]},
            "unauthenticated": {
                "used": ledger["unauthenticated"],
                "limit": limits["unauthenticated"],
            },
            "per_peer": {"limit": limits["per_peer"]},
        },
        "connections": {
            "total": ledger["connections"],
            "by_state": dict(ledger["states"]),
            "oldest_s": dict(ledger["oldest_s"]),
        },
        "counters": {
            "accepted": ledger["accepted_total"],
            "ended": dict(ledger["ended_total"]),
            "deadline_expired": dict(ledger["deadline_expired_total"]),
            **(counters or {}),
        },
        "buckets": [dict(bucket) for bucket in buckets],
        "store": None if store is None else dict(store),
        **({} if nodes is None else {"nodes": dict(nodes)}),
    }


def generation_report(
    generation: Generation,
    now: float,
    *,
    since: float,
    disk_differs: bool,
    previous: Generation | None = None,
    verdict: Verdict | None = None,
    verdict_at: float | None = None,
) -> dict[str, Any]:
    """Return what ``status`` says of the credentials that are served.

    Args:
        generation: What is served, `kvproto.tls.Rotation.current`.
        now: Unix seconds.
        since: When it was swapped in, in Unix seconds.
        disk_differs: Whether the files hold something else.
        previous: What a rollback returns to.
        verdict: How the last reload or rollback ended; None when there was none.
        verdict_at: When it did, in Unix seconds.
    """
    credentials = generation.credentials
    last = None
    if verdict is not None:
        last = {"at": _timestamp_or_none(verdict_at), **verdict_report(verdict)}
    return {
        "number": generation.number,
        "fingerprint_sha256": generation.fingerprint,
        "not_before": timestamp(credentials.chain[0].not_valid_before_utc.timestamp()),
        "not_after": timestamp(generation.not_after),
        "expires_in_s": round(generation.not_after - now, 3),
        "names": list(generation.names),
        "client_cas": len(credentials.client_cas),
        "crls": len(credentials.crls),
        "since": timestamp(since),
        "disk_differs": disk_differs,
        "rollback_to": None if previous is None else previous.number,
        "warnings": list(generation.warnings),
        "last_verdict": last,
    }


def _listener(status: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return one listener, from what its acceptor says."""
    retry_in = status["retry_in_s"]
    return {
        "name": status["listener"],
        "address": status["address"],
        "state": status["state"],
        "on_rotate": status.get("on_rotate", ""),
        "generation": status["generation"],
        "restarts": status["restarts"],
        "error": status["error"],
        "attempts": status["attempts"],
        "retry_at": _timestamp_or_none(None if retry_in is None else now + retry_in),
        "retry_in_s": retry_in,
        "connections": dict(status["connections"]),
    }


def verdict_report(verdict: Verdict) -> dict[str, Any]:
    """Return the answer to ``reload`` and ``rollback``."""
    return {
        "ok": verdict.ok,
        "action": verdict.action.value,
        "changed": verdict.changed,
        "generation": verdict.generation,
        "fingerprint_sha256": verdict.fingerprint,
        "not_after": timestamp(verdict.not_after),
        "stage": verdict.stage,
        "reason": verdict.reason,
        "warnings": list(verdict.warnings),
        "listeners": [
            {
                "name": result.name,
                "ok": result.ok,
                "done": result.done,
                "detail": _plain(result.detail),
            }
            for result in verdict.listeners
        ],
    }


def _plain(detail: Any) -> Any:
    """Return what a subscriber said, in a form that JSON can say."""
    return detail if isinstance(detail, (str, int, float, dict, type(None))) else str(detail)


def connections_report(
    rows: Iterable[Mapping[str, Any]], now: float, *, total: int, limit: int = 0
) -> dict[str, Any]:
    """Return the answer to ``connections``.

    Args:
        rows: `kvproto.listeners.Ledger.snapshot`, oldest first.  No more of it is read
            than is shown.
        now: Unix seconds.
        total: How many there are.
        limit: How many to list at most, 0 for all.
    """
    shown = [connection_report(row, now) for row in islice(rows, limit or None)]
    return {"total": total, "shown": len(shown), "connections": shown}


def connection_report(row: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return one connection as ``connections`` lists it, from its line in the ledger."""
    deadline_in = row["deadline_in_s"]
    return {
        "id": row["id"],
        "peer": row["peer"],
        "listener": row["listener"],
        "generation": row["generation"],
        "state": row["state"],
        "since": timestamp(now - row["since_s"]),
        "since_s": row["since_s"],
        "accepted": timestamp(now - row["age_s"]),
        "age_s": row["age_s"],
        "deadline": None if deadline_in is None else timestamp(now + deadline_in),
        "deadline_in_s": deadline_in,
        "user": row["user"],
        "tls": row["tls"],
        "owner": row["owner"],
        "reason": row["reason"],
    }
