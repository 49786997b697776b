"""Everything that an operator decides, as one value."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvproto.config.nodes import NodeConfig
from kvproto.config.stores import DEFAULT_STORE, STORE_OPTION, StoreURL
from kvproto.config.values import (
    DEFAULT_BUCKET,
    DEFAULT_LISTEN,
    DEFAULT_STATE_DIR,
    MIB,
    ClientAuth,
    Collection,
    LogFormat,
    LogLevel,
    Mode,
    OnRotate,
    RoomLevel,
    User,
    UserBuckets,
    endpoint_is_local,
)
from kvproto.errors import ConfigError

__all__ = ["Config", "valid_bucket_name"]

SMALLEST_STORE = 64 * 1024
"""A smaller limit is a mistake: memcached's ``-m 64`` means MiB, ours is in bytes."""

_WELL_FORMED_TCP = re.compile(
    r"tcp[46]?:(?:port=)?\d{1,5}(?::(?:interface|backlog)=(?:\\:|[^:])*)*"
)
"""TCP endpoints as nearly everybody writes them; others are understood by their own parsers."""

_BUCKET = re.compile(r"[A-Za-z0-9_.%-]{1,100}")
"""What Couchbase lets a bucket be called."""


def valid_bucket_name(name: str) -> bool:
    """Return whether a bucket may be called so: 1 to 100 of letters, digits and ``_ - . %``."""
    return _BUCKET.fullmatch(name) is not None


def _refuse_twice(option: str, names: Iterable[str]) -> None:
    """Raise `ConfigError` where a name is given twice; there may be ten thousand of them."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(option, f"{name!r} is given twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything `kvproto.service.KVTLSService` is built from.

    Attributes:
        listen: Twisted server endpoint descriptions; TLS is put on top of each.
        certificate: PEM chain, leaf first.  None: development credentials are
            made in ``state_dir`` and only local addresses are served.
        private_key: PEM key; None: it is in the certificate's file.
        key_passphrase_file: File whose first line opens an encrypted key.
        client_ca: PEM trust anchors for client certificates.
        client_auth: None: optional with ``client_ca``, else none.
        crl: PEM revocation lists for client certificates.
        users: Who may log in with a password (or by certificate name).
        users_file: Further users, as ``kvtls passwd`` keeps them: with hashes of their
            passwords, and perhaps with the buckets that each may use.
        user_buckets: Users that may not use every bucket.
        cert_users: Rules that make a user's name of a client certificate, tried in order;
            `kvproto.tls.parse_rule` reads them.  Empty: the subject's common name.
        buckets: Names of the buckets, the default one for clients that select none first.
        collections: What exists beside each bucket's default collection.
        anonymous: Whether a peer that did not log in may work; None: only
            when no user is configured.
        mode: Whose habits to follow.
        memcached_version: What VERSION answers.
        store: URL of where values live; `kvproto.config.StoreURL` cuts it into parts.
        peers: Host and port of other services on the same engine, as clients reach them.
        watchers: Users that may watch what others ask for; none: where there are no users, clients
            on this machine.
        allow_flush: Whether FLUSH works; None: only in memcached mode.
        enable_shutdown: Whether clients may end the service by the text command ``shutdown``.
        memory_limit: Bytes all buckets together may hold, keys and overhead counted; each
            has the same share.
        evict: Whether a full store drops what was least recently used (or
            refuses writes).
        max_value: Largest value in bytes; None: the mode's.
        max_connections: Connections at once; None: the mode's.
        max_connections_per_peer: Connections at once from one address, 0 for
            no such limit.
        requests_per_event: Requests that a connection has served before others have their turn,
            0 for as many as it has sent.
        unsent_limit: Bytes of replies that may wait for one client that does
            not read, before its requests stop being read.
        max_unfinished: Bytes that all connections together may hold of requests not yet complete
            and replies not yet sent; None: 256 MiB, or twice the largest value if that is more.
        handshake_timeout: Seconds from accept() to the end of the TLS handshake.
        close_timeout: Seconds a closing connection may wait for its peer.
        drain_timeout: Seconds for answering what was asked, at shutdown.
        idle_timeout: Seconds after which a connection that asks nothing is closed, 0 for never.
        max_lifetime: Seconds after which a connection is drained, spread by up to a tenth, 0
            for never.
        on_rotate: What happens to established connections on rotation.
        drain_window: Seconds over which ``OnRotate.DRAIN`` spreads the closing.
        watch_interval: Seconds between looks at the credential files, 0 for never.
        proxy_protocol: Listeners (indices in ``listen``) whose peers send a
            PROXY header first.
        state_dir: Directory for development credentials and the control socket; None:
            ``kvtls-state`` in the working directory, without a control socket if
            another process serves from there.
        keylog: File that TLS secrets are appended to, for debugging.
        plain: Endpoint descriptions of listeners without TLS, on this machine only.
        faults: Whether the control socket may make requests fail and move the clock of expiry.
        http: Endpoint description for health, metrics and the status page; None for none.
        management: Endpoint description for Couchbase's management REST; None for none.
        log_format: What lines of the log look like, where the process is ours.
        log_level: The least important lines that are logged.
        log_levels: The same for single rooms.
        nodes: How to take part in an Erlang cluster; None: not at all.
    """

    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    certificate: Path | None = None
    private_key: Path | None = None
    key_passphrase_file: Path | None = None
    client_ca: Path | None = None
    client_auth: ClientAuth | None = None
    crl: Path | None = None
    users: tuple[User, ...] = ()
    users_file: Path | None = None
    user_buckets: tuple[UserBuckets, ...] = ()
    cert_users: tuple[str, ...] = ()
    buckets: tuple[str, ...] = (DEFAULT_BUCKET,)
    collections: tuple[Collection, ...] = ()
    anonymous: bool | None = None
    mode: Mode = Mode.COUCHBASE
    memcached_version: str = "1.6.45"
    store: str = DEFAULT_STORE
    peers: tuple[tuple[str, int], ...] = ()
    watchers: tuple[str, ...] = ()
    allow_flush: bool | None = None
    enable_shutdown: bool = False
    memory_limit: int = 64 * MIB
    evict: bool = True
    max_value: int | None = None
    max_connections: int | None = None
    max_connections_per_peer: int = 0
    requests_per_event: int = 0
    unsent_limit: int = MIB
    max_unfinished: int | None = None
    handshake_timeout: float = 10.0
    close_timeout: float = 3.0
    drain_timeout: float = 10.0
    idle_timeout: float = 0.0
    max_lifetime: float = 0.0
    on_rotate: OnRotate = OnRotate.RECHECK
    drain_window: float = 10.0
    watch_interval: float = 2.0
    proxy_protocol: frozenset[int] = frozenset()
    state_dir: Path | None = None
    keylog: Path | None = None
    plain: tuple[str, ...] = ()
    faults: bool = False
    http: str | None = None
    management: str | None = None
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO
    log_levels: tuple[RoomLevel, ...] = ()
    nodes: NodeConfig | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` where options contradict one another."""
        self._check_listeners()
        self._check_credentials()
        self._check_users()
        self._check_buckets()
        self._check_nodes()
        self._check_store()
        _refuse_twice("--log-levels", [one.room for one in self.log_levels])
        for option, value in (
            ("--handshake-timeout", self.handshake_timeout),
            ("--close-timeout", self.close_timeout),
            ("--drain-timeout", self.drain_timeout),
        ):
            if value <= 0:
                raise ConfigError(option, f"must be more than 0 seconds, not {value:g}")
        if self.connection_limit < 1:
            raise ConfigError("--max-connections", "must be at least 1")
        if not 0 < self.value_limit <= 1024 * MIB:
            raise ConfigError("--max-value", "must be between 1 byte and 1 GiB")
        if self.unfinished_limit < self.value_limit + MIB:
            raise ConfigError(
                "--max-unfinished",
                f"must be at least 1MiB more than --max-value ({self.value_limit} bytes), or no "
                "request of that size could ever be complete",
            )
        if self.max_value is not None and self.max_value > self.bucket_memory_limit:
            share = "" if len(self.buckets) == 1 else f", shared by {len(self.buckets)} buckets"
            raise ConfigError(
                "--max-value",
                f"{self.max_value} bytes never fit into --memory-limit "
                f"({self.memory_limit} bytes{share}): lower the one or raise the other",
            )
        if self.memory_limit < SMALLEST_STORE:
            raise ConfigError(
                "--memory-limit", "is in bytes and must be at least 64KiB: write 64MiB, not 64"
            )
        if self.bucket_memory_limit < SMALLEST_STORE:
            raise ConfigError(
                "--memory-limit",
                f"is shared by {len(self.buckets)} buckets, each of which needs at least 64KiB",
            )

    def _check_listeners(self) -> None:
        if not self.listen:
            raise ConfigError("--listen", "at least one listener is needed")
        for description in self.listen:
            if self.listen.count(description) > 1 and ":0" not in description:
                raise ConfigError("--listen", f"{description!r} is given twice")
            if _WELL_FORMED_TCP.fullmatch(description):
                self.check_reach(description)
        for description in self.plain:
            if self.plain.count(description) > 1 and ":0" not in description:
                raise ConfigError("--plain", f"{description!r} is given twice")
            if not endpoint_is_local(description):
                raise ConfigError(
                    "--plain",
                    f"{description!r} can be reached from other machines, and without TLS "
                    "everybody could read along: write tcp:11211:interface=127.0.0.1, or "
                    "unix:PATH, or use --listen",
                )
        if self.faults:
            for description in self.listen:
                if not endpoint_is_local(description):
                    raise ConfigError(
                        "--faults",
                        f"is for tests, but {description!r} can be reached from other machines: "
                        "write --listen tcp:11207:interface=127.0.0.1",
                    )
            if self.store_url.scheme != "memory":
                raise ConfigError("--faults", "needs --store memory:, whose clock can be moved")

    def check_reach(self, description: str, option: str = "--listen") -> None:
        """See that a development certificate is shown to nobody but this machine.

        Args:
            description: An endpoint that makes sense; of one that does not there is more to say.
            option: Which names it.

        Raises:
            ConfigError: It would be shown to others.
        """
        if self.development and not endpoint_is_local(description):
            raise ConfigError(
                option,
                f"{description!r} does not name a loopback address, and without --certificate "
                "only a development certificate is served: write for example "
                "tcp:11207:interface=127.0.0.1, or give --certificate and --private-key",
            )

    def _check_credentials(self) -> None:
        if self.certificate is None:
            for option, value in (
                ("--private-key", self.private_key),
                ("--key-passphrase-file", self.key_passphrase_file),
            ):
                if value is not None:
                    raise ConfigError(option, "needs --certificate as well")
        if self.client_ca is None:
            if self.client_auth is not None and self.client_auth is not ClientAuth.NONE:
                raise ConfigError(
                    "--client-auth",
                    f"{self.client_auth.value} needs --client-ca, "
                    "the certificate authority that client certificates must come from",
                )
            for option, given in (("--crl", self.crl), ("--cert-user", self.cert_users)):
                if given:
                    raise ConfigError(option, "needs --client-ca as well")

    def _check_nodes(self) -> None:
        nodes = self.nodes
        if nodes is None:
            return
        if nodes.ca is None and self.client_ca is None:
            raise ConfigError(
                "--node-ca",
                "(or --client-ca) is needed with --node-listen: nodes must show a certificate, "
                "this names the authority that it must come from",
            )
        if nodes.certificate is None and self.development and not endpoint_is_local(nodes.listen):
            raise ConfigError(
                "--node-listen",
                f"{nodes.listen!r} is not a loopback address, and without --node-certificate or "
                "--certificate only a development certificate is shown",
            )

    def _check_store(self) -> None:
        url = self.store_url
        if url.scheme.startswith("memcached") and self.mode is not Mode.MEMCACHED:
            raise ConfigError(
                STORE_OPTION,
                f"{url.scheme}: needs --mode memcached: memcached servers have no collections, "
                "locks or sub-documents",
            )
        if self.peers and url.scheme in {"memory", "file"}:
            raise ConfigError(
                "--peer",
                f"needs an engine that all of them use, for example --store redis://HOST; what is "
                f"in {url.scheme}: is this service's own",
            )
        for peer in self.peers:
            if self.peers.count(peer) > 1:
                raise ConfigError("--peer", f"{peer[0]}:{peer[1]} is given twice")

    def _check_users(self) -> None:
        names = [user.name for user in self.users]
        _refuse_twice("--user", names)
        known = frozenset(names)
        _refuse_twice("--user-buckets", [access.name for access in self.user_buckets])
        for access in self.user_buckets:
            if access.name not in known and self.users_file is None:
                raise ConfigError("--user-buckets", f"there is no user {access.name!r}")
            self._check_bucket_names("--user-buckets", access.buckets)
        for name in self.watchers:
            if name not in known and self.users_file is None:
                raise ConfigError("--watcher", f"there is no user {name!r}")

    def _check_buckets(self) -> None:
        if not self.buckets:
            raise ConfigError("--bucket", "at least one bucket is needed")
        for name in self.buckets:
            if not valid_bucket_name(name):
                raise ConfigError(
                    "--bucket", f"{name!r} is not 1 to 100 of letters, digits and _ - . %"
                )
            if self.buckets.count(name) > 1:
                raise ConfigError("--bucket", f"{name!r} is given twice")
        named = [found.bucket for found in self.collections if found.bucket is not None]
        self._check_bucket_names("--collection", named)

    def _check_bucket_names(self, option: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.buckets:
                raise ConfigError(option, f"there is no bucket {name!r}")

    @property
    def store_url(self) -> StoreURL:
        """Where values live, cut into its parts."""
        return StoreURL.parse(self.store)

    @property
    def development(self) -> bool:
        """Whether the service makes its own credentials."""
        return self.certificate is None

    @property
    def state_directory(self) -> Path:
        """Where state is kept, default applied."""
        return DEFAULT_STATE_DIR if self.state_dir is None else self.state_dir

    @property
    def client_auth_mode(self) -> ClientAuth:
        """Whether clients are asked for a certificate, defaults applied."""
        if self.client_auth is not None:
            return self.client_auth
        return ClientAuth.NONE if self.client_ca is None else ClientAuth.OPTIONAL

    @property
    def anonymous_allowed(self) -> bool:
        """Whether a peer that did not log in may work, defaults applied."""
        if self.anonymous is not None:
            return self.anonymous
        return not self.users and self.users_file is None

    @property
    def bucket_memory_limit(self) -> int:
        """Bytes that one bucket may hold: its share of the memory limit."""
        return self.memory_limit // max(1, len(self.buckets))

    def collections_of(self, bucket: str) -> list[tuple[str, str]]:
        """Return names of scope and collection of what exists in a bucket, in order."""
        return [
            (found.scope, found.name)
            for found in self.collections
            if found.bucket in {None, bucket}
        ]

    @property
    def flush_allowed(self) -> bool:
        """Whether FLUSH works, defaults applied."""
        return self.mode is Mode.MEMCACHED if self.allow_flush is None else self.allow_flush

    @property
    def unfinished_limit(self) -> int:
        """Bytes of unfinished requests and unsent replies, the default applied."""
        if self.max_unfinished is not None:
            return self.max_unfinished
        return max(256 * MIB, 2 * self.value_limit)

    @property
    def value_limit(self) -> int:
        """The largest value in bytes, defaults applied."""
        return self.mode.max_value if self.max_value is None else self.max_value

    @property
    def item_limit(self) -> int | None:
        """The largest key and value together in bytes, None for any.

        memcached's limit is on the item, key included; Couchbase's on the value.
        """
        return self.value_limit if self.mode is Mode.MEMCACHED else None

    @property
    def connection_limit(self) -> int:
        """How many connections at once, defaults applied."""
        return self.mode.max_connections if self.max_connections is None else self.max_connections
