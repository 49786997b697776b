"""What all sessions of a server share, and who the peer of one session is."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from kvproto.base.turn import Turn
from kvproto.server.buckets import Bucket
from kvproto.server.budget import Budget
from kvproto.server.counters import Counters
from kvproto.server.features import FEATURES
from kvproto.server.passwords import Run
from kvproto.server.prefixes import Prefixes
from kvproto.server.requests import RequestCounts
from kvproto.server.settings import ServerSettings
from kvproto.server.topology import DEFAULT_PORT, ServicePorts, cluster_config
from kvproto.server.users import UserTable
from kvproto.server.watch import Stream, WatchLog, conn_close, conn_new, eviction
from kvproto.store import Document, IStore, Key
from kvproto.wire.constants import Feature
from kvproto.wire.scram import ScramKeys

__all__ = ["DEFAULT_BUCKET", "Identify", "KVServer", "Peer"]

DEFAULT_BUCKET = "default"

CERTIFICATE = "certificate"
"""What a login by client certificate is called beside SASL's mechanisms."""

WRONG = "wrong user or password"
"""The one reason that says nothing about who exists."""

Identify = Callable[[tuple[bytes, ...]], str | None]
"""Maps a peer's certificates (DER, leaf first, never none) to the known user it is, or None."""


def _nobody(chain: tuple[bytes, ...]) -> str | None:
    return None


def _proceed(connection: Any) -> None:
    """Let a connection send what it has got to say."""
    connection.proceed()


class KVServer:
    """What all sessions share: buckets, one set of rules, one set of counters.

    Args:
        store: Where values live; or several buckets, the default one first.
        settings: How sessions behave.
        users: Who may log in.
        identify: Who the bearer of a client certificate is.
        now: Returns unix time in seconds.
        timer: Returns seconds that only ever grow, for measuring how long a request took.
        later: Calls a function after some seconds, e.g. ``reactor.callLater``; without it requests
            have no deadline by which they must be complete, and each reply that was waited for is
            written by itself.

    Attributes:
        budget: What all sessions together hold.
        users: Who may log in.
        prefixes: What is counted by prefix of keys, None while nobody wants it.
        last_prefixes: What was counted when it was wanted last.
        turn: At whose end connections send the replies that they have waited for.
        ports: What clients are told about other ports; `name_ports` changes it.
        connections: Those that are open, with their numbers.
        advance: Moves the clock of all stores on by so many seconds, for tests; None where nobody
            may.
        shutdown: Begins to end the service, at a client's word; None where clients may not.
        listening: Returns the addresses of the sockets that clients can connect to; whoever listens
            puts itself here.
        watch: Who watches, and what.
        hashing: Where passwords are hashed that its users bring; where they are checked when None.
    """

    def __init__(
        self,
        store: Any,
        settings: ServerSettings | None = None,
        users: UserTable | None = None,
        identify: Identify = _nobody,
        now: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
        later: Callable[[float, Callable[[], None]], IDelayedCall] | None = None,
    ) -> None:
        several = store if isinstance(store, list | tuple) else [Bucket(DEFAULT_BUCKET, store)]
        self.buckets: dict[str, Bucket] = {bucket.name: bucket for bucket in several}
        self.settings = ServerSettings() if settings is None else settings
        self.users = UserTable() if users is None else users
        self.identify = identify
        self.now = now
        self.timer = timer
        self.counters = Counters()
        self.prefixes: Prefixes | None = None
        self.last_prefixes = Prefixes()
        self.connections: dict[Any, int] = {}
        self.listening: Callable[[], Sequence[Any]] = tuple
        self.advance: Callable[[float], None] | None = None
        self.shutdown: Callable[[], None] | None = None
        self._last_number = 0
        self.requests = RequestCounts()
        self.times = self.requests.times
        for bucket in several:
            bucket.requests.times = self.times
        self.started = now()
        self.hashing: Run | None = None
        self.budget = Budget(self.settings.max_unfinished, timer, later)
        self.turn: Turn[Any] | None = None
        if later is not None:
            self.turn = Turn(cast("Any", SimpleNamespace(callLater=later)), _proceed)
        self.watch = WatchLog(now, self._observe, None if self.turn is None else self.turn.add)
        # A server that is started again with other buckets or ports must be believed: its
        # configurations are newer than those of the one before.
        self.revision = max(1, _revision_at(self.started))
        self.uuid = secrets.token_hex(16)
        self.peers: tuple[tuple[str, int], ...] = ()
        self.ports = ServicePorts()
        self._configs: dict[tuple[int, str | None], bytes] = {}
        self._baselines: dict[int, dict[str, int]] = {}

    def change_settings(self, settings: ServerSettings) -> None:
        """Have other settings from now on, for the connections that there are as well.

        How many requests a connection may have served in a row stays what it was for these.
        """
        self.settings = settings
        self.budget.limit = settings.max_unfinished
        for connection in list(self.connections):
            connection.settings_changed()

    @property
    def features(self) -> frozenset[int]:
        """What HELLO can enable: no mutation tokens where a store keeps no history of them."""
        tokens = all(getattr(bucket.store, "tokens", True) for bucket in self.buckets.values())
        return frozenset(FEATURES) if tokens else frozenset(FEATURES) - {Feature.MUTATION_SEQNO}

    @property
    def anonymous(self) -> bool:
        """Whether a peer that did not log in may work, defaults applied."""
        allowed = self.settings.anonymous
        return not self.users if allowed is None else allowed

    def connected(self, connection: Any, number: int = 0) -> int:
        """Take a connection into the list of those that are open.

        Args:
            connection: It; its transport says where it comes from.
            number: What its listener's log calls it, 0 where nobody has numbered it.

        Returns:
            Its number.
        """
        self._last_number = number = number or self._last_number + 1
        self.connections[connection] = number
        # Asked first, since flags are compared by Python code, and mostly nobody watches.
        if self.watch.watchers and self.watch.wanted & Stream.CONNEVENTS:
            self.watch.tell(Stream.CONNEVENTS, conn_new(connection.transport.getPeer(), number))
        return number

    def disconnected(self, connection: Any, reason: str) -> None:
        """Take a connection out of the list.

        Args:
            connection: It.
            reason: ``normal``, ``error``, ``idle_timeout`` or ``shutdown``.
        """
        number = self.connections.pop(connection, 0)
        if reason == "idle_timeout":
            self.counters.idle_kicks += 1
        if self.watch.watchers and self.watch.wanted & Stream.CONNEVENTS:
            peer = connection.transport.getPeer()
            self.watch.tell(Stream.CONNEVENTS, conn_close(peer, number, reason))

    def tick(self) -> None:
        """Look at the clock, about once a second, so that no request has to."""
        self.counters.recently = self.now()

    def may_watch(self, peer: Peer) -> bool:
        """Return whether a peer may watch what all others ask for."""
        allowed = self.settings.watchers
        if allowed is None:
            return not self.users and peer.local
        return peer.user in allowed

    def _observe(self) -> None:
        """Let stores be watched, or not, as somebody wants to."""
        for connection in list(self.connections):
            connection.observe()
        for bucket in self.buckets.values():
            watch_evictions = getattr(bucket.store, "watch_evictions", None)
            if watch_evictions is not None:
                wanted = self.watch.wanted & Stream.EVICTIONS
                watch_evictions(partial(self._evicted, bucket) if wanted else None)

    def _evicted(self, bucket: Bucket, key: Key, document: Document) -> None:
        self.watch.tell(Stream.EVICTIONS, eviction(key, document, self.now()), bucket)

    def default_bucket(self, user: str) -> Bucket | None:
        """Return where a user works who has not selected a bucket, None for nowhere."""
        name = self.users.default_bucket(user, self.buckets)
        return None if name is None else self.buckets[name]

    def bucket(self, user: str, name: str) -> Bucket | None:
        """Return a bucket that a user may use, None if there is none or it may not."""
        return self.buckets.get(name) if self.users.may_use(user, name) else None

    def cluster_config(self, port: int, bucket: Bucket | None) -> bytes:
        """Return what clients are told about the cluster.

        Args:
            port: Where this client has connected to, 0 if that has no number.
            bucket: Which bucket it wants to know of, None for the cluster alone.
        """
        port = self.settings.advertised_port or port or DEFAULT_PORT
        name = None if bucket is None else bucket.name
        config = self._configs.get((port, name))
        if config is None:
            part, more = None, tuple[str, ...]()
            if bucket is not None:
                part = bucket.name, f"{bucket.store.uuid:032x}", bucket.manifest.uid
                more = ("nonDedupedHistory",) if bucket.history else ()
            services = self.ports.services(port)
            config = cluster_config(services, self.uuid, self.revision, part, self.peers, more)
            self._configs[port, name] = config
        return config

    def name_peers(self, peers: Sequence[tuple[str, int]]) -> None:
        """Tell clients from now on of these other servers of the same documents.

        Args:
            peers: Host and port of each, as clients reach it.
        """
        self.peers = tuple(peers)
        self.topology_changed()

    def name_ports(self, ports: ServicePorts) -> None:
        """Tell clients from now on of these ports."""
        if ports != self.ports:
            self.ports = ports
            self.topology_changed()

    def topology_changed(self) -> None:
        """Make new configurations for clients: ports, peers, buckets or collections changed."""
        # Newer than what any of the others has told: they all go by the time.
        self.revision = max(self.revision + 1, _revision_at(self.now()))
        self._configs.clear()

    def add_bucket(self, bucket: Bucket) -> None:
        """Serve one more bucket, from now on."""
        bucket.requests.times = self.times
        self.buckets[bucket.name] = bucket
        if self.watch.wanted:
            self._observe()
        self.topology_changed()

    def remove_bucket(self, name: str) -> Bucket:
        """Serve a bucket no longer; connections that work in it are drained.

        Raises:
            KeyError: There is none of that name.
        """
        bucket = self.buckets.pop(name)
        self._baselines.pop(id(bucket.store), None)
        self.topology_changed()
        for protocol in [*self.connections]:
            if protocol.bucket is bucket:
                protocol.drain()
        return bucket

    def reset_statistics(self, store: IStore, baseline: dict[str, int]) -> None:
        """Count from here on, for whoever asks about this store.

        Args:
            store: Whose statistics were asked for.
            baseline: What has been counted so far, by name.
        """
        self._baselines[id(store)] = baseline

    def since_reset(self, store: IStore, name: str, value: int | str) -> int | str:
        """Return a statistic as counted since the last reset."""
        if not isinstance(value, int):
            return value
        return value - self._baselines.get(id(store), {}).get(name, 0)


def _revision_at(moment: float) -> int:
    """Return the revision of a configuration that is made now.

    Of services that name each other, the one that saw the last change must have the highest
    revision, or clients stay with the configuration of one that is gone.  So it is fine-grained:
    in seconds, two changes within one could not be told apart.  Microseconds stay below 2**53,
    which every JSON parser reads exactly.

    Args:
        moment: Unix time in seconds.
    """
    return int(moment * 1_000_000)


class Peer:
    """Who the other side of one connection is, and where it has come in.

    Args:
        server: Where its user would be known.
        connection: The `kvproto.interfaces.IVerifiedConnection` that hears of a login, or None.

    Attributes:
        user: Its name; ``""`` for an anonymous peer that may work; None for one that may not.
        refused: Its certificate names nobody, and anonymous access is off: it may not even log
            in, as kv_engine has it for peers whose certificate cannot be mapped.
        host: The address that it has connected to, ``""`` if there is none.
        port: The port that it has connected to, 0 if there is none.
        number: Of its connection.
        local: Whether it comes from this machine, as far as its address says.
    """

    __slots__ = (
        "_by_nature",
        "_connection",
        "_mechanism",
        "_server",
        "host",
        "local",
        "number",
        "port",
        "refused",
        "user",
    )

    def __init__(self, server: KVServer, connection: Any = None) -> None:
        self._server = server
        self._connection = connection
        self._by_nature: str | None = None
        self._mechanism = ""
        self.user: str | None = None
        self.refused = False
        self.host = ""
        self.port = self.number = 0
        self.local = False

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
        if chain and user != "":
            self._mechanism = CERTIFICATE
            self._tell(user is not None, user or "", "the certificate names no known user")

    def begin(self, mechanism: str) -> None:
        """Begin a login: the peer is again what it is without one.

        Args:
            mechanism: For log and metrics; ours, or one that we know, never the peer's words.
        """
        self._server.counters.auth_cmds += 1
        self._mechanism = mechanism
        self._become(self._by_nature)

    def check(self, name: str, password: bytes) -> bool | Deferred[bool]:
        """Check a password, and log in if it is right; `begin` must have been called.

        Where there are no users, everybody is anonymous whatever they say, so that clients which
        cannot be used without a password (Couchbase's SDKs) can use a server that needs none.
        """
        if not self._server.users:
            return self.conclude(self._server.anonymous, "")
        right = self._server.users.check(name, password)
        if isinstance(right, Deferred):
            return right.addCallbacks(
                self.conclude, self._not_checked, callbackArgs=(name,), errbackArgs=(name,)
            )
        return self.conclude(right, name)

    def _not_checked(self, failure: Failure, name: str) -> Failure:
        """End a login that could not be decided."""
        if not failure.check(CancelledError):
            self.conclude(False, name, "the password could not be checked")
        return failure

    def scram_keys(self, name: bytes, digest: str) -> ScramKeys:
        """Return what proves that a peer is the user of this name."""
        return self._server.users.scram_keys(name, digest)

    def conclude(self, right: bool, name: str, fault: str = WRONG) -> bool:
        """End a login; return whether it succeeded.

        Args:
            right: Whether it did.
            name: The user it was for.
            fault: Why it failed, for the log; the same whether or not there is such a user.
        """
        if right:
            self._become(name)
        else:
            self._server.counters.auth_errors += 1
        self._tell(right, name, fault)
        return right

    def _tell(self, right: bool, name: str, fault: str) -> None:
        """Let whoever keeps the log and the count of logins know of one."""
        if self._connection is not None:
            self._connection.login_ended(self._mechanism, name, "" if right else fault)

    def _become(self, user: str | None) -> None:
        self.user = user
        if user is not None and self._connection is not None:
            self._connection.authenticated(user)
