"""What all sessions of a server share, and who the peer of one session is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.server.counters import Counters
from kvproto.server.settings import ServerSettings
from kvproto.server.users import UserTable
from kvproto.store import IStore

__all__ = ["Identify", "KVServer", "Peer"]

Identify = Callable[[tuple[bytes, ...]], str | None]
"""Maps a peer's certificates (DER, leaf first, never none) to the known user it is, or None."""


def _nobody(chain: tuple[bytes, ...]) -> str | None:
    return None


class KVServer:
    """What all sessions share: one store, one set of rules, one set of counters.

    Args:
        store: Where values live.
        settings: How sessions behave.
        users: Who may log in.
        identify: Who the bearer of a client certificate is.
        now: Returns unix time in seconds.
    """

    __slots__ = (
        "_baseline",
        "counters",
        "identify",
        "now",
        "settings",
        "started",
        "store",
        "users",
    )

    def __init__(
        self,
        store: Any,
        settings: ServerSettings | None = None,
        users: UserTable | None = None,
        identify: Identify = _nobody,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store: IStore = store
        self.settings = ServerSettings() if settings is None else settings
        self.users = UserTable() if users is None else users
        self.identify = identify
        self.now = now
        self.counters = Counters()
        self.started = now()
        self._baseline: dict[str, int] = {}

    @property
    def anonymous(self) -> bool:
        """Whether a peer that did not log in may work, defaults applied."""
        allowed = self.settings.anonymous
        return not self.users if allowed is None else allowed

    def reset_statistics(self, baseline: dict[str, int]) -> None:
        """Count from here on.

        Args:
            baseline: What has been counted so far, by name.
        """
        self._baseline = baseline

    def since_reset(self, name: str, value: int | str) -> int | str:
        """Return a statistic as counted since the last reset."""
        return value - self._baseline.get(name, 0) if isinstance(value, int) else value


class Peer:
    """Who the other side of one connection is.

    Args:
        server: Where its user would be known.
        connection: The `kvproto.interfaces.IVerifiedConnection` that hears of a login, or None.

    Attributes:
        user: Its name; ``""`` for an anonymous peer that may work; None for one that may not.
        refused: Its certificate names nobody, and anonymous access is off: it may not even log
            in, as kv_engine has it for peers whose certificate cannot be mapped.
    """

    __slots__ = ("_by_nature", "_connection", "_server", "refused", "user")

    def __init__(self, server: KVServer, connection: Any = None) -> None:
        self._server = server
        self._connection = connection
        self._by_nature: str | None = None
        self.user: str | None = None
        self.refused = False

    def recognise(self, chain: tuple[bytes, ...]) -> None:
        """Decide what the peer may do without a password.

        Args:
            chain: Its certificates, DER, leaf first; empty when it showed none.
        """
        user = self._server.identify(chain) if chain else None
        if user is None and self._server.anonymous:
            user = ""
        self.refused = bool(chain) and user is None
        self._by_nature = user
        self._become(user)

    def check(self, name: str, password: bytes) -> bool | Deferred[bool]:
        """Check a password, and log in if it is right.

        Where there are no users, everybody is anonymous whatever they say, so that clients which
        cannot be used without a password (Couchbase's SDKs) can use a server that needs none.

        Returns:
            Whether the login succeeded.  If not, the peer is again what it was without it.
        """
        self._become(self._by_nature)
        self._server.counters.auth_cmds += 1
        if not self._server.users:
            return self._finish(self._server.anonymous, "")
        right = self._server.users.check(name, password)
        if isinstance(right, Deferred):
            return right.addCallback(self._finish, name)
        return self._finish(right, name)

    def _finish(self, right: bool, name: str) -> bool:
        if right:
            self._become(name)
        else:
            self._server.counters.auth_errors += 1
        return right

    def _become(self, user: str | None) -> None:
        self.user = user
        if user is not None and self._connection is not None:
            self._connection.authenticated(user)
