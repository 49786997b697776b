"""Open files: as many as the connections need, or fewer connections.

Each connection is a file to the kernel.  A service that finds this out by EMFILE leaves
its clients in the queue behind silent sockets; one that knows it beforehand gives each
kind of connection its share.  Redis and memcached raise the limit at start as well.
"""

from __future__ import annotations

import resource
from dataclasses import replace

from kvproto.base.log import make_logger
from kvproto.listeners import Limits

__all__ = ["fit_open_files"]

log = make_logger()

RESERVED = 128
"""Files that are no connections: log, listeners, control connections, what is being read."""

SMALLEST = 16
"""Connections that are tried at least; below that EMFILE may tell the story."""


def fit_open_files(limits: Limits) -> Limits:
    """Raise this process' limit of open files, and cut connections down where it cannot be.

    Args:
        limits: What was asked for; ``total`` is what needs files.

    Returns:
        The same limits, or smaller ones in the same proportion, which is logged.
    """
    wanted = limits.total + RESERVED
    allowed = _raise_to(wanted)
    if allowed >= wanted:
        return limits
    total = max(2 * SMALLEST, allowed - RESERVED)
    unauthenticated = max(SMALLEST, limits.unauthenticated * total // limits.total)
    fitted = replace(
        limits,
        connections=total - unauthenticated,
        unauthenticated=unauthenticated,
        total=total,
    )
    log.warn(
        "{asked} connections need {wanted} open files and {allowed} are allowed: at most "
        "{connections} will be served (raise LimitNOFILE, or ulimit -Hn)",
        asked=limits.connections,
        wanted=wanted,
        allowed=allowed,
        connections=fitted.connections,
    )
    return fitted


def _raise_to(wanted: int) -> int:
    """Raise the soft limit as far as is allowed and wanted; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if best > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
    return best
