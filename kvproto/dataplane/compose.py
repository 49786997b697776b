"""What is served: buckets, users and sessions, made of a `Config`.

Owns how options become `kvproto.server` objects; `kvproto.service` puts listeners and TLS in front
of them.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from kvproto.config import Config, User
from kvproto.dataplane.interfaces import IKeepingStores, IStores, Run
from kvproto.dataplane.stores import make_stores
from kvproto.errors import ConfigError, LocalProtocolError
from kvproto.server import Bucket, KVServer, Manifest, ServerSettings, UserTable, hash_password
from kvproto.server.hashing import HashQueue
from kvproto.server.passwords import DEFAULT_ITERATIONS, DIGESTS, Hashes
from kvproto.server.server import Identify
from kvproto.server.users_file import OPTION, UserRecord, UsersFile, read_users
from kvproto.tls import DEFAULT_RULES, parse_rule, user_of
from kvproto.wire.scram import decoy_keys

__all__ = ["identifier", "make_server", "make_users", "server_settings"]


def make_server(
    config: Config,
    clock: IReactorTime,
    run: Run | None = None,
    stores: IStores | None = None,
) -> KVServer:
    """Make what all sessions share.

    Args:
        config: What the operator decided.
        clock: Its seconds are Unix time.
        run: Runs functions that take long in a thread, e.g. passwords are hashed there at login, a
            few at a time; None does everything at once.
        stores: Where values live; made of the configuration when None.

    Raises:
        ConfigError: An option cannot be used.
    """
    if stores is None:
        stores = make_stores(config, clock, run)
    hashing = None if run is None else HashQueue(run)
    server = KVServer(
        [
            Bucket(name, stores.store(name), Manifest(config.collections_of(name)))
            for name in config.buckets
        ],
        server_settings(config),
        make_users(config, hashing),
        now=clock.seconds,
        later=clock.callLater,
    )
    server.identify = identifier(config, server)
    server.hashing = hashing
    if IKeepingStores.providedBy(stores):
        for bucket in server.buckets.values():
            stores.keep_collections(bucket.name, bucket.manifest.adopt)
    return server


def server_settings(config: Config) -> ServerSettings:
    """Return how sessions are to behave."""
    return ServerSettings(
        mode=config.mode,
        max_value=config.value_limit,
        allow_flush=config.flush_allowed,
        anonymous=config.anonymous_allowed,
        unsent_limit=config.unsent_limit,
        max_unfinished=config.unfinished_limit,
        max_connections=config.connection_limit,
        requests_per_event=config.requests_per_event,
        idle_timeout=config.idle_timeout,
        memory_limit=config.memory_limit,
        evict=config.evict,
        version=config.memcached_version,
        watchers=frozenset(config.watchers) if config.watchers else None,
    )


def identifier(config: Config, server: KVServer) -> Identify:
    """Return what finds out who the bearer of a client certificate is.

    Raises:
        ConfigError: A rule of ``--cert-user`` cannot be used.
    """
    rules = tuple(map(parse_rule, config.cert_users)) or DEFAULT_RULES

    def identify(chain: tuple[bytes, ...]) -> str | None:
        # Looked up at each login: a reload puts another table in its place.
        return user_of(chain, rules, server.users.__contains__)

    return identify


def make_users(config: Config, run: Run | None = None) -> UserTable:
    """Make the table of all users; reads the users file.

    Args:
        config: What the operator decided.
        run: Where passwords are hashed at login; where they are checked when None.

    Raises:
        ConfigError: The users file cannot be used, or an option contradicts it.
    """
    content = UsersFile() if config.users_file is None else read_users(config.users_file)
    records = content.users
    for user in config.users:
        if user.name in records:
            raise ConfigError("--user", f"{user.name!r} is in the users file as well")
        records[user.name] = UserRecord(_hashed(user, content.secret))
    buckets = {
        name: record.buckets for name, record in records.items() if record.buckets is not None
    }
    for name, allowed in buckets.items():
        for bucket in allowed:
            if bucket not in config.buckets:
                raise ConfigError(OPTION, f"{name!r} may use {bucket!r}, which is no bucket")
    for access in config.user_buckets:
        if access.name not in records:
            raise ConfigError("--user-buckets", f"there is no user {access.name!r}")
        buckets[access.name] = access.buckets
    for name in config.watchers:
        if name not in records:
            raise ConfigError("--watcher", f"there is no user {name!r}")
    hashes = {name: record.hashes for name, record in records.items()}
    return UserTable.of_hashes(hashes, buckets, run=run, secret=content.secret)


def _hashed(user: User, secret: bytes) -> Hashes:
    """Hash a password of the command line.

    With the salt that its name would have if there were no such user: another one at each start
    would tell that there is.
    """
    name = user.name.encode()
    salts = {
        digest: decoy_keys(digest, secret, name, DEFAULT_ITERATIONS).salt for digest in DIGESTS
    }
    try:
        return hash_password(user.password, salts=salts)
    except LocalProtocolError as error:
        raise ConfigError("--user", f"the password of {user.name!r}: {error}") from None
