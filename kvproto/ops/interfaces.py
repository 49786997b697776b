"""What the control socket and the signals ask of the service that they steer."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Interface

__all__ = ["IControl"]


class IControl(Interface):
    """The verbs of the control vocabulary (`kvproto.ops.commands.COMMANDS`).

    Each returns a dict that JSON can say, or a Deferred of one; the contents are in
    ``docs/reference/control.md`` and made by `kvproto.ops.status`.  A dict with
    ``"ok": False`` says that the command was carried out and did not succeed; its
    ``"reason"`` says why.  A verb that cannot be carried out raises (or fails with) a
    `kvproto.errors.KVProtoError`; `CommandError` chooses the code for scripts.

    Returned Deferreds are never cancelled: a caller that left, or whose time is over, does
    not look at the result.  So a verb has to be bounded in time itself.  Several callers may
    ask at once; one Deferred for each, since each adds its own callbacks.
    """

    def status() -> dict[str, Any]:
        """Return `kvproto.ops.status.status_report`."""

    def connections(listener: str | None, limit: int) -> Any:
        """Return `kvproto.ops.status.connections_report`.

        Args:
            listener: Name of a listener; None for all.
            limit: How many to list at most, 0 for all.

        Raises:
            CommandError: ``unknown-listener``.
        """

    def top(milliseconds: int, sort: str, limit: int, listener: str | None) -> Any:
        """Measure what connections move; see `kvproto.ops.traffic.Traffic.measure`.

        Returns:
            A Deferred of the documented answer.

        Raises:
            CommandError: ``unknown-listener``, ``bad-argument``, ``not-possible``.
        """

    def reload(allow_fewer_names: bool) -> Deferred[dict[str, Any]]:
        """Read the credential files again and serve them if they are good.

        Args:
            allow_fewer_names: Whether the new certificate may lack names of the old one.

        Returns:
            A Deferred of `kvproto.ops.status.verdict_report`; it fires when the
            generation has been swapped or refused and the listeners' policies for live
            connections have been started.
        """

    def rollback() -> Deferred[dict[str, Any]]:
        """Serve the generation before the current one; returns what `reload` does.

        Raises:
            CommandError: ``nothing-to-roll-back-to``.
        """

    def restart(listener: str) -> Deferred[dict[str, Any]]:
        """Restart one listener, or all of them (``"all"``), and start those that were drained.

        Returns:
            A Deferred of ``{"ok": bool, "listeners": [{"name", "ok", "reason"}, ...]}``,
            in the order of the configuration.

        Raises:
            CommandError: ``unknown-listener``.
        """

    def drain() -> Deferred[dict[str, Any]]:
        """Close the listening ports, end every connection at a request boundary, go on running.

        ``restart("all")`` takes traffic again.

        Returns:
            A Deferred of ``{"ok": True, "drained": int, "aborted": int}``; it fires when
            no connection is left, which the drain timeout bounds.
        """

    def flush(bucket: str) -> Any:
        """Remove every document of a bucket, as FLUSH does.

        Returns:
            ``{"ok": True, "bucket": str}``, or a Deferred of it.

        Raises:
            CommandError: ``unknown-bucket``.
        """

    def backup(file: str) -> Any:
        """Write every document of every bucket into a file; mode 0600, whole or not there.

        Args:
            file: Absolute path, on the service's machine.

        Returns:
            A Deferred of ``{"file": str, "documents": int, "bytes": int}``.

        Raises:
            CommandError: ``busy``, ``file``, ``not-possible``.
        """

    def restore(file: str) -> Any:
        """Store every document of a backup; others stay as they are.

        Args:
            file: Absolute path, on the service's machine.

        Returns:
            A Deferred of ``{"file": str, "documents": int}``.

        Raises:
            CommandError: ``busy``, ``file``, ``not-possible``, ``not-a-backup``,
                ``unknown-bucket``, ``unknown-collection``; nothing has changed then.
        """

    def seed(file: str, create: bool) -> Any:
        """Store the documents of a file, one a line in JSON; others stay as they are.

        Args:
            file: Absolute path, on the service's machine.
            create: Whether buckets, scopes and collections that are not there are created.

        Returns:
            A Deferred of ``{"file": str, "documents": int}``.

        Raises:
            CommandError: ``file``, ``bad-seed``, ``unknown-bucket``, ``unknown-collection``,
                ``not-possible``: nothing is stored then.  ``refused``: documents of the lines
                before are.
        """

    def fault(
        kind: str,
        operation: str,
        key: str | None,
        status: int,
        milliseconds: int,
        times: int,
    ) -> dict[str, Any]:
        """Let requests fail, or time pass.

        Args:
            kind: ``status``, ``delay``, ``disconnect``, ``truncate`` or ``silence`` of requests
                (`kvproto.server.faults.FaultKind`); ``advance`` moves the clock of expiry and
                locks, ``clear`` forgets the faults that wait.
            operation: Which requests; ``""``: all that have a key.
            key: Only those for this key; None: any.
            status: For ``status``: what is answered.
            milliseconds: For ``delay`` and ``advance``.
            times: How many requests.

        Returns:
            ``{"ok": True, "kind": str}``.

        Raises:
            CommandError: ``no-faults`` without ``--faults``; ``bad-argument``.
        """

    def address() -> dict[str, Any]:
        """Return ``{"address": str, "ports": {...}}``, where the first listener listens.

        ``ports`` has the fields of `kvproto.server.topology.ServicePorts`: the TCP ports of all
        services.

        Raises:
            CommandError: ``not-listening``.
        """

    def config() -> dict[str, Any]:
        """Return ``{"options": [{"name", "value", "source"}, ...]}``, secrets hidden."""

    def stop() -> dict[str, Any]:
        """Begin to drain and end the process with status 0; return at once.

        Returns:
            ``{"ok": True, "pid": int}``; the answer is written before the control
            socket closes.
        """
