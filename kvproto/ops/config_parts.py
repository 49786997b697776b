"""Who takes over what of a configuration that changes while the service serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred

from kvproto.config import Config
from kvproto.dataplane import (
    Administration,
    IStores,
    PeerWatch,
    UsersReload,
    identifier,
    server_settings,
)
from kvproto.listeners import AcceptorService, Ledger, Limits, Timeouts
from kvproto.listeners.ages import AgeLimits
from kvproto.ops.config_reload import Part
from kvproto.ops.logs import set_log_level
from kvproto.server import KVServer

__all__ = ["ConfigParts", "timeouts"]

_OF_SESSIONS = (
    *("anonymous", "allow-flush", "no-flush", "watcher", "memcached-version", "memory-limit"),
    *("refuse-when-full", "max-value", "max-unfinished", "max-connections", "requests-per-event"),
    "idle-timeout",
)
_OF_CONNECTIONS = (
    *("max-connections", "max-connections-per-peer", "handshake-timeout", "close-timeout"),
    *("drain-timeout", "idle-timeout", "max-lifetime"),
)
_OF_USERS = ("user", "users", "user-buckets", "watcher")
_LOOKED_UP = ("on-rotate", "drain-window")
"""Whoever needs these looks at the configuration that is in force."""


def timeouts(config: Config) -> Timeouts:
    """Return how long connections may take for what."""
    return Timeouts(
        handshake=config.handshake_timeout,
        drain=config.drain_timeout,
        close=config.close_timeout,
    )


@dataclass(frozen=True, slots=True)
class ConfigParts:
    """The parts of a service that can change.

    Attributes:
        server: What sessions share.
        stores: Where values live.
        users: Who may log in.
        administration: Who divides memory.
        peers: Which other services clients are told of.
        ledger: All connections.
        acceptors: The listeners.
        ages: Who ends connections for their age.
        limits: Returns how many connections there may be.
    """

    server: KVServer
    stores: IStores
    users: UsersReload
    administration: Administration
    peers: PeerWatch
    ledger: Ledger
    acceptors: Sequence[AcceptorService]
    ages: AgeLimits
    limits: Callable[[Config], Limits]

    def parts(self, config: Config) -> list[Part]:
        """Return who takes over what.

        Args:
            config: What the service is started with.
        """
        return [
            Part(
                ("log-level", "log-levels"),
                lambda config, _: set_log_level(config.log_level, config.log_levels),
            ),
            Part(
                ("cert-user",),
                lambda _, identify: setattr(self.server, "identify", identify),
                lambda config: identifier(config, self.server),
                lambda: self.server.identify,
            ),
            Part(_OF_SESSIONS, lambda config, _: self._change_sessions(config)),
            Part(_OF_CONNECTIONS, lambda config, _: self._change_connections(config)),
            Part(("peer",), lambda config, _: self.peers.change(config.peers)),
            Part(("store",), lambda config, _: self.stores.change(config)),
            Part(
                _OF_USERS,
                self.users.replace,
                self.users.read,
                lambda: self.administration.users.listed,
                lambda config: config.users_file is not None,
            ),
            Part(_LOOKED_UP, lambda _config, _: None),
        ]

    def _change_sessions(self, config: Config) -> Deferred[None]:
        self.server.change_settings(server_settings(config))
        self.stores.change(config)
        return self.administration.change(config)

    def _change_connections(self, config: Config) -> None:
        self.ledger.limits = self.limits(config)
        self.ledger.timeouts = timeouts(config)
        for acceptor in self.acceptors:
            acceptor.change(config.drain_timeout, watch_idle=config.idle_timeout > 0)
        self.ages.change(config.idle_timeout, config.max_lifetime)
