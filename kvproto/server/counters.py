"""Counters of a whole server, for the statistics."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURED_READS", "Counters"]

MEASURED_READS = 128
"""One read of plain requests in so many is timed, if it holds one request."""


@dataclass(slots=True)
class Counters:
    """What sessions count as they go; plain numbers, so that counting costs next to nothing.

    Attributes:
        curr_connections: Sessions now.
        total_connections: Sessions since the start.
        rejected_connections: Connections that were answered "busy".
        auth_cmds: Logins tried.
        auth_errors: Logins that failed.
        meta_cmds: Meta commands.
        too_large: Values that were thrown away because they are too large.
        bytes_read: Bytes of requests.
        bytes_written: Bytes of replies.
        conn_yields: Times that a connection let others have their turn.
        idle_kicks: Connections that were closed because they asked nothing.
        recently: Unix time in seconds when somebody looked last, 0 where nobody does.
        unmeasured: Reads to answer in place up to the next that is timed, itself included.
    """

    curr_connections: int = 0
    total_connections: int = 0
    rejected_connections: int = 0
    auth_cmds: int = 0
    auth_errors: int = 0
    meta_cmds: int = 0
    too_large: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    conn_yields: int = 0
    idle_kicks: int = 0
    recently: float = 0.0
    unmeasured: int = MEASURED_READS
