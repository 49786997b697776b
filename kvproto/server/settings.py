"""What an operator decides about sessions, as one value.

It checks nothing: `kvproto.config.Config` has done so where the values come from an operator.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvproto.config import Mode
from kvproto.server.budget import DEFAULT_MAX_UNFINISHED

__all__ = ["DEFAULT_UNSENT_LIMIT", "MEMCACHED_VERSION", "ServerSettings"]

DEFAULT_UNSENT_LIMIT = 1024 * 1024
"""Bytes of replies that may wait for one client; memcached stops reading much earlier, kv_engine's
``max_send_queue_size`` is 40 MiB."""


MEMCACHED_VERSION = "1.6.45"
"""What VERSION answers: the memcached whose commands and grammar are spoken here.

Clients choose dialects by it (memccapable expects old memcached's errors below 1.6, libmemcached
refuses to ping a server of version 0), so it cannot be our own; ``stats`` has that as
``kvproto_version``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How sessions behave; the same value for all connections of a server.

    Attributes:
        mode: Whose habits to follow where memcached and Couchbase differ.
        max_value: Longest value in bytes, None for the mode's.
        allow_flush: Whether FLUSH works, None for "only in memcached mode".
        anonymous: Whether a peer that did not log in may work, None for "only when there are no
            users".
        unsent_limit: Bytes of replies that may wait for one client before its requests do.
        max_unfinished: Bytes that all connections together may hold of requests not yet complete
            and replies not yet sent.
        max_connections: What the statistics say; enforcing it is the listener's work.
        requests_per_event: Requests that a connection has served before others have their turn,
            0 for as many as it has sent.
        idle_timeout: What ``stats settings`` says, in seconds; the listener enforces it.
        memory_limit: What ``stats settings`` says, in bytes; the store enforces it.
        evict: What ``stats settings`` says; the store does it.
        lru_threads: Whether ``stats`` has the names of what memcached's LRU crawler and maintainer
            do, which is always 0 here; a memcached that was started without them has none.
        version: What VERSION answers.
        watchers: Users that may ``watch``; None: where there are no users, whoever comes from this
            machine.
        advertised_port: The port that clients are told to use for further connections, 0 for the
            one that they have come in by.
    """

    mode: Mode = Mode.COUCHBASE
    max_value: int | None = None
    allow_flush: bool | None = None
    anonymous: bool | None = None
    unsent_limit: int = DEFAULT_UNSENT_LIMIT
    max_unfinished: int = DEFAULT_MAX_UNFINISHED
    max_connections: int = 1024
    requests_per_event: int = 0
    idle_timeout: float = 0.0
    memory_limit: int = 64 * 1024 * 1024
    evict: bool = True
    lru_threads: bool = True
    version: str = MEMCACHED_VERSION
    watchers: frozenset[str] | None = None
    advertised_port: int = 0

    @property
    def value_limit(self) -> int:
        """The longest value in bytes, defaults applied."""
        return self.mode.max_value if self.max_value is None else self.max_value

    @property
    def flush_allowed(self) -> bool:
        """Whether FLUSH works, defaults applied."""
        return self.mode is Mode.MEMCACHED if self.allow_flush is None else self.allow_flush

    @property
    def oversized_set_deletes(self) -> bool:
        """Whether a SET that is too large removes the old value, so that no stale one is read."""
        return self.mode is Mode.MEMCACHED
