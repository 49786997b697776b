"""What a service says of itself, for tests of everything that shows or carries it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from kvproto.errors import CommandError
from kvproto.ops.interfaces import IControl
from kvproto.ops.status import ServiceFacts, ServiceState, connections_report, status_report
from kvproto.testing.certificates import root_authority
from kvproto.tls.contexts import ServerPolicy
from kvproto.tls.credentials import Credentials
from kvproto.tls.generation import Generation

__all__ = [
    "NOW",
    "FakeControl",
    "facts",
    "generation",
    "ledger",
    "listener",
    "row",
    "served_generation",
    "status",
    "verdict",
]

NOW = 1_795_000_000.25
"""2026-11-18T11:06:40.250Z"""

FINGERPRINT = "0123456789abcdef" * 4


def listener(name: str = "data-0", **changes: Any) -> dict[str, Any]:
    """What an acceptor says of itself."""
    return {
        "listener": name,
        "address": "127.0.0.1:11207",
        "state": "listening",
        "error": "",
        "attempts": 0,
        "retry_in_s": None,
        "restarts": 0,
        "generation": 3,
        "connections": {"handshaking": 1, "offered": 0, "owned": 2, "closing": 0, "cancelled": 0},
        "on_rotate": "recheck",
        **changes,
    }


def ledger(**changes: Any) -> dict[str, Any]:
    """What the ledger says of itself."""
    return {
        "connections": 3,
        "verified": 2,
        "unauthenticated": 1,
        "limits": {"connections": 10_000, "unauthenticated": 256, "per_peer": 0},
        "states": {"handshaking": 1, "offered": 0, "owned": 2, "closing": 0, "cancelled": 0},
        "oldest_s": {"handshaking": 0.25, "owned": 42.5},
        "accepted_total": 17,
        "ended_total": {"peer lost": 14},
        "deadline_expired_total": {},
        **changes,
    }


def generation(**changes: Any) -> dict[str, Any]:
    """The report on a generation."""
    return {
        "number": 3,
        "fingerprint_sha256": FINGERPRINT,
        "not_before": "2026-11-01T00:00:00.000Z",
        "not_after": "2027-02-01T00:00:00.000Z",
        "expires_in_s": 6_400_000.0,
        "names": ["kv.example.com", "127.0.0.1", "::1"],
        "client_cas": 2,
        "crls": 1,
        "since": "2026-11-18T10:00:00.000Z",
        "disk_differs": False,
        "rollback_to": 2,
        "warnings": [],
        "last_verdict": {"at": "2026-11-18T10:00:00.000Z", **verdict()},
        **changes,
    }


def verdict(**changes: Any) -> dict[str, Any]:
    """The report on a reload."""
    return {
        "ok": True,
        "action": "reload",
        "changed": True,
        "generation": 3,
        "fingerprint_sha256": FINGERPRINT,
        "not_after": "2027-02-01T00:00:00.000Z",
        "stage": "",
        "reason": "",
        "warnings": [],
        "listeners": [],
        **changes,
    }


def row(number: int = 7, **changes: Any) -> dict[str, Any]:
    """One line of the ledger."""
    return {
        "id": number,
        "listener": "data-0",
        "direction": "in",
        "peer": "192.0.2.1:40000",
        "generation": 3,
        "state": "owned",
        "since_s": 42.5,
        "age_s": 43.0,
        "deadline_in_s": None,
        "user": "alice",
        "owner": "KVServerProtocol",
        "reason": "",
        "tls": "TLSv1.3",
        **changes,
    }


def facts(state: ServiceState = ServiceState.READY) -> ServiceFacts:
    """A process."""
    return ServiceFacts("0.1.0", 4242, state, "couchbase", NOW - 7500)


def status(
    *,
    served: dict[str, Any] | None = None,
    listeners: tuple[dict[str, Any], ...] = (),
    state: ServiceState = ServiceState.READY,
) -> dict[str, Any]:
    """A whole status report."""
    return status_report(
        facts(state),
        served or generation(),
        listeners or (listener(),),
        ledger(),
        NOW,
        {"requests": 99},
    )


def served_generation(number: int = 3) -> Generation:
    """A generation with a real certificate, which nobody can be served with."""
    identity = root_authority().issue("kv", names=["kv.example.com", "127.0.0.1"])
    credentials = Credentials(
        (identity.certificate,), identity.key, client_cas=(root_authority().certificate,)
    )
    nothing: Any = None
    return Generation(
        number, credentials, ServerPolicy(), nothing, credentials.fingerprint, nothing
    )


@implementer(IControl)
class FakeControl:
    """A service that does what a test tells it.

    Attributes:
        asked: Every command with its arguments.
        pending: When true, slow commands return a Deferred that the test fires.
        waiting: These Deferreds.
        reply: What slow commands return when they are not pending.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.pending = False
        self.waiting: list[Deferred[Any]] = []
        self.reply: Any = verdict()

    def _slow(self, command: str, **arguments: Any) -> Any:
        self.asked.append((command, arguments))
        if isinstance(self.reply, Exception):
            raise self.reply
        if not self.pending:
            return self.reply
        waiting: Deferred[Any] = Deferred()
        self.waiting.append(waiting)
        return waiting

    def status(self) -> dict[str, Any]:
        self.asked.append(("status", {}))
        return status()

    def connections(self, listener: str | None, limit: int) -> dict[str, Any]:
        self.asked.append(("connections", {"listener": listener, "limit": limit}))
        if listener not in {None, "data-0"}:
            raise CommandError("unknown-listener", f"there is no listener {listener!r}")
        rows = [row(number) for number in range(1, 4)]
        return connections_report(rows, NOW, total=3, limit=limit)

    def top(self, milliseconds: int, sort: str, limit: int, listener: str | None) -> Any:
        return self._slow("top", sort=sort, limit=limit)

    def reload(self, allow_fewer_names: bool) -> Any:
        return self._slow("reload", allow_fewer_names=allow_fewer_names)

    def rollback(self) -> Any:
        return self._slow("rollback")

    def restart(self, listener: str) -> Any:
        return self._slow("restart", listener=listener)

    def drain(self) -> Any:
        return self._slow("drain")

    def fault(
        self,
        kind: str,
        operation: str,
        key: str | None,
        status: int,
        milliseconds: int,
        times: int,
    ) -> dict[str, Any]:
        self.asked.append(("fault", {"kind": kind, "operation": operation, "times": times}))
        return {"ok": True, "kind": kind}

    def flush(self, bucket: str) -> Any:
        return self._slow("flush", bucket=bucket)

    def backup(self, file: str) -> Any:
        return self._slow("backup", file=file)

    def restore(self, file: str) -> Any:
        return self._slow("restore", file=file)

    def seed(self, file: str, create: bool) -> Any:
        return self._slow("seed", file=file, create=create)

    def address(self) -> dict[str, Any]:
        self.asked.append(("address", {}))
        return {"address": "127.0.0.1:11207"}

    def config(self) -> dict[str, Any]:
        self.asked.append(("config", {}))
        return {"options": [{"name": "mode", "value": "couchbase", "source": "default"}]}

    def stop(self) -> Any:
        return self._slow("stop")
