"""What may change while the service serves: buckets, scopes, collections and users.

Owns the limits of what may be created, the order in which it comes into being, and its being kept
where documents are.  How it is asked for is the management REST's business
(`kvproto.management`); who may ask, too.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from kvproto.base.log import make_logger
from kvproto.base.serial import Serial
from kvproto.config import Config, valid_bucket_name
from kvproto.dataplane.created_users import CreatedGroup, CreatedUser, CreatedUsers
from kvproto.dataplane.interfaces import IGrowingStores, IStores
from kvproto.dataplane.keyspaces import need_collection, need_name, need_scope
from kvproto.dataplane.users_reload import UsersReload
from kvproto.errors import CommandError, ConfigError
from kvproto.server import Bucket, CollectionSettings, KVServer, Manifest
from kvproto.store import IListableStore
from kvproto.wire.collections import DEFAULT

__all__ = [
    "MAX_BUCKETS",
    "MAX_COLLECTIONS",
    "MAX_SCOPES",
    "Administration",
    "BucketSettings",
]

log = make_logger()

MAX_BUCKETS = 30
"""Couchbase's own default (``maxBucketCount``)."""

MAX_SCOPES = 1000
MAX_COLLECTIONS = 1000
"""Of one bucket; Couchbase's own limits for a cluster."""

SMALLEST_SHARE = 64 * 1024
"""Bytes that a bucket must be able to hold."""

Run = Callable[..., Any]


@dataclass(slots=True)
class BucketSettings:
    """What Couchbase keeps of a bucket beside its documents.

    Attributes:
        flush: Whether it may be flushed over REST.
        ram_quota: MiB, as asked for; kept to be shown, the limit is a share of ``--memory-limit``.
        replicas: As asked for, kept to be shown.
        kind: ``membase`` or ``ephemeral``.
        created: Whether it was created over REST.
        max_ttl: Seconds after which documents expire at the latest, where their collection has
            no other limit; 0 for never.
        shown: Other settings, by their names in REST; kept to be shown.
        indexes: Names of primary indexes, by ``SCOPE.COLLECTION``.
    """

    flush: bool = False
    ram_quota: int = 0
    replicas: int = 0
    kind: str = "membase"
    created: bool = False
    max_ttl: int = 0
    shown: dict[str, Any] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)

    @property
    def keeps_history(self) -> bool:
        """Whether Couchbase would keep histories of collections in it."""
        return self.shown.get("storageBackend") == "magma"


class Administration:
    """Creates and drops buckets, scopes, collections and users, one after the other.

    Args:
        config: What the operator decided.
        server: What is served.
        stores: Where documents are.
        users: Makes the table of users, again and again.
        clock: For pauses.
        run: Runs a function in a thread.

    Attributes:
        settings: By bucket, for those that there are.
        users: Those that were created, and those that were not.
    """

    def __init__(
        self,
        config: Config,
        server: KVServer,
        stores: IStores,
        users: UsersReload,
        clock: IReactorTime,
        run: Run,
    ) -> None:
        self._config = config
        self._server = server
        self._stores = stores
        self._clock = clock
        self._jobs = Serial()
        quota = max(1, config.bucket_memory_limit >> 20)
        self.settings = {
            name: BucketSettings(config.flush_allowed, quota) for name in config.buckets
        }
        self.users = CreatedUsers(server, users, run)

    # -- what there is ----------------------------------------------------------------

    def change(self, config: Config) -> Deferred[None]:
        """Take over another configuration: memory, and whether buckets may be flushed.

        Returns:
            A Deferred that fires when no bucket holds more than it may.
        """
        if config.flush_allowed != self._config.flush_allowed:
            for name in config.buckets:
                if name in self.settings:
                    self.settings[name].flush = config.flush_allowed
        self._config = config

        async def work() -> None:
            if self.can_grow and self._server.buckets:
                await self._divide_memory(config.memory_limit // len(self._server.buckets))

        return self._job(work())

    @property
    def can_grow(self) -> bool:
        """Whether buckets and collections can be created: only where documents are here."""
        return IGrowingStores.providedBy(self._stores)

    def may_flush(self, bucket: str) -> bool:
        """Return whether a bucket may be flushed; what the operator has forbidden stays so."""
        return self._config.allow_flush is not False and self.settings[bucket].flush

    # -- buckets ----------------------------------------------------------------------

    def create_bucket(self, name: str, settings: BucketSettings) -> Deferred[None]:
        """Create a bucket.

        Returns:
            A Deferred that fires when clients can use it; it fails with `CommandError`:
            ``exists``, ``bad-name``, ``limit``, ``not-possible``.
        """
        return self._job(self._create_bucket(name, settings))

    async def _create_bucket(self, name: str, settings: BucketSettings) -> None:
        self._need_growing()
        if not valid_bucket_name(name):
            raise CommandError("bad-name", f"{name!r} cannot be the name of a bucket")
        # As Couchbase has it, names that differ in case alone are one.
        if name.lower() in {there.lower() for there in self._server.buckets}:
            raise CommandError("exists", f"there is a bucket {name!r}")
        count = len(self._server.buckets) + 1
        if count > MAX_BUCKETS:
            raise CommandError("limit", f"Cannot create more than {MAX_BUCKETS} buckets")
        if self._config.memory_limit // count < SMALLEST_SHARE:
            raise CommandError("limit", f"--memory-limit is too small for {count} buckets")
        settings.created = True
        await self._serve_bucket(name, settings, Manifest(), count)
        await self._keep()
        log.info("bucket {bucket} was created", bucket=name)

    async def _serve_bucket(
        self, name: str, settings: BucketSettings, manifest: Manifest, count: int
    ) -> None:
        stores: Any = self._stores
        share = self._config.memory_limit // count
        await self._divide_memory(share)
        await stores.add(name, share)
        bucket = Bucket(name, stores.store(name), manifest)
        self._adopt_ids(bucket)
        self._take_settings(bucket, settings)
        self._server.add_bucket(bucket)

    def _take_settings(self, bucket: Bucket, settings: BucketSettings) -> None:
        """Have a bucket have these settings, and its documents expire accordingly."""
        self.settings[bucket.name] = settings
        bucket.history = settings.keeps_history
        self._limit_ttl(bucket)

    def _limit_ttl(self, bucket: Bucket) -> None:
        if self.can_grow:
            store: Any = bucket.store
            store.limit_ttl(self.settings[bucket.name].max_ttl, bucket.manifest.max_ttls())

    def change_bucket(self, name: str, values: Mapping[str, Any]) -> Deferred[None]:
        """Change settings of a bucket.

        Args:
            name: Which.
            values: By attributes of `BucketSettings`; what they show is added to what was shown.

        Returns:
            A Deferred that fails with `CommandError`: ``unknown-bucket``, ``not-possible``.
        """

        async def work() -> None:
            bucket, settings = self._bucket(name), self.settings[name]
            if values.get("max_ttl", settings.max_ttl) != settings.max_ttl:
                self._need_growing()
            shown = settings.shown | values.get("shown", {})
            self._take_settings(bucket, replace(settings, **{**values, "shown": shown}))
            self._server.topology_changed()
            await self._keep()

        return self._job(work())

    def drop_bucket(self, name: str) -> Deferred[None]:
        """Drop a bucket and everything in it.

        Returns:
            A Deferred that fails with `CommandError`: ``unknown-bucket``, ``not-possible``.
        """
        return self._job(self._drop_bucket(name))

    async def _drop_bucket(self, name: str) -> None:
        self._need_growing()
        stores: Any = self._stores
        store: Any = self._bucket(name).store
        self._server.remove_bucket(name)
        del self.settings[name]
        await stores.remove(name)
        while not store.release():
            await deferLater(self._clock, 0)
        await self._keep()
        if self._server.buckets:
            await self._divide_memory(self._config.memory_limit // len(self._server.buckets))
        log.info("bucket {bucket} was dropped", bucket=name)

    async def _divide_memory(self, share: int) -> None:
        """Let each bucket have so many bytes; evicts what is beyond that, a little at a time."""
        for bucket in tuple(self._server.buckets.values()):
            store: Any = bucket.store
            while not store.limit_memory(share):
                await deferLater(self._clock, 0)

    def flush_bucket(self, name: str) -> Deferred[None]:
        """Remove every document of a bucket.

        Returns:
            A Deferred that fails with `CommandError`: ``unknown-bucket``, ``not-allowed``.
        """

        async def work() -> None:
            bucket = self._bucket(name)
            if not self.may_flush(name):
                raise CommandError("not-allowed", "Flush is disabled for the bucket")
            await maybeDeferred(bucket.store.flush)

        return self._job(work())

    # -- scopes and collections -------------------------------------------------------

    def create_scope(self, bucket: str, scope: str) -> Deferred[int]:
        """Create a scope; the Deferred is of the manifest's version.

        It fails with `CommandError`: ``unknown-bucket``, ``exists``, ``bad-name``, ``limit``,
        ``not-possible``.
        """

        async def work() -> int:
            manifest = self._bucket(bucket).manifest
            self._need_growing()
            need_name(scope)
            if scope in manifest.scopes:
                raise CommandError("exists", f'Scope with name "{scope}" already exists')
            if len(manifest.scopes) >= MAX_SCOPES:
                raise CommandError("limit", "Maximum number of scopes has been reached")
            manifest.create_scope(scope)
            return await self._collections_changed(bucket)

        return self._job(work())

    def create_collection(
        self,
        bucket: str,
        scope: str,
        name: str,
        max_ttl: int | None = None,
        history: bool | None = None,
    ) -> Deferred[int]:
        """Create a collection; as `create_scope`, and fails with ``unknown-scope`` as well.

        Args:
            bucket: Where.
            scope: Where in it.
            name: How it is called.
            max_ttl: See `CollectionSettings`; None for 0.
            history: The same; None for what its bucket has as default.
        """

        async def work() -> int:
            manifest = self._bucket(bucket).manifest
            self._need_growing()
            need_scope(manifest, scope)
            need_name(name)
            if (scope, name) in manifest.collections:
                raise CommandError(
                    "exists", f'Collection with name "{name}" in scope "{scope}" already exists'
                )
            if len(manifest.collections) >= MAX_COLLECTIONS:
                raise CommandError("limit", "Maximum number of collections has been reached")
            default = self.settings[bucket].shown.get("historyRetentionCollectionDefault", True)
            usual = CollectionSettings(history=self.settings[bucket].keeps_history and default)
            settings = self._collection_settings(bucket, usual, max_ttl, history)
            manifest.create_collection(scope, name, settings)
            return await self._collections_changed(bucket)

        return self._job(work())

    def change_collection(
        self,
        bucket: str,
        scope: str,
        name: str,
        max_ttl: int | None = None,
        history: bool | None = None,
    ) -> Deferred[int]:
        """Change settings of a collection; as `create_collection`, None leaving what there is.

        It fails with ``unknown-collection`` as well.
        """

        async def work() -> int:
            manifest = self._bucket(bucket).manifest
            need_collection(manifest, scope, name)
            before = manifest.settings(scope, name)
            settings = self._collection_settings(bucket, before, max_ttl, history)
            if settings == before:
                return manifest.uid
            self._need_growing()
            manifest.change_collection(scope, name, settings)
            return await self._collections_changed(bucket)

        return self._job(work())

    def _collection_settings(
        self, bucket: str, usual: CollectionSettings, max_ttl: int | None, history: bool | None
    ) -> CollectionSettings:
        if history is not None and not self.settings[bucket].keeps_history:
            raise CommandError("no-history", "History Retention can only be used with magma")
        return CollectionSettings(
            usual.max_ttl if max_ttl is None else max_ttl,
            usual.history if history is None else history,
        )

    def drop_scope(self, bucket: str, scope: str) -> Deferred[int]:
        """Drop a scope with its collections and their documents; as `create_scope`."""

        async def work() -> int:
            served = self._bucket(bucket)
            self._need_growing()
            need_scope(served.manifest, scope)
            if scope == DEFAULT:
                raise CommandError("not-allowed", "Deleting _default scope is not allowed")
            for number in served.manifest.drop_scope(scope):
                await maybeDeferred(served.store.drop_collection, number)
                await deferLater(self._clock, 0)  # there may be a thousand of them
            return await self._collections_changed(bucket)

        return self._job(work())

    def drop_collection(self, bucket: str, scope: str, name: str) -> Deferred[int]:
        """Drop a collection and its documents; as `create_collection`."""

        async def work() -> int:
            served = self._bucket(bucket)
            self._need_growing()
            need_collection(served.manifest, scope, name)
            if (scope, name) == (DEFAULT, DEFAULT):
                raise CommandError("not-allowed", "Deleting _default collection is not allowed")
            number = served.manifest.drop_collection(scope, name)
            await maybeDeferred(served.store.drop_collection, number)
            return await self._collections_changed(bucket)

        return self._job(work())

    async def _collections_changed(self, bucket: str) -> int:
        served = self._server.buckets[bucket]
        self._adopt_ids(served, served.manifest.known_ids)
        self._limit_ttl(served)
        there = {".".join(path) for path in served.manifest.collections}
        indexes = self.settings[bucket].indexes
        for gone in [path for path in indexes if path not in there]:
            del indexes[gone]
        self._server.topology_changed()
        await self._keep()
        return served.manifest.uid

    def _adopt_ids(self, bucket: Bucket, ids: dict[str, int] | None = None) -> None:
        """Let the store know which ids are taken, where it keeps documents of collections."""
        store: Any = bucket.store
        if hasattr(store, "collections"):
            store.collections = bucket.manifest.adopt(store.collections) if ids is None else ids

    # -- what queries ask for ---------------------------------------------------------

    def create_index(self, bucket: str, scope: str, name: str, index: str) -> Deferred[bool]:
        """Remember the name of a primary index; there is nothing else to it.

        Returns:
            A Deferred of whether there was none before; it fails with `CommandError`:
            ``unknown-bucket``, ``unknown-scope``, ``unknown-collection``.
        """

        async def work() -> bool:
            need_collection(self._bucket(bucket).manifest, scope, name)
            indexes, path = self.settings[bucket].indexes, f"{scope}.{name}"
            if path in indexes:
                return False
            indexes[path] = index
            await self._keep()
            return True

        return self._job(work())

    def delete_documents(self, bucket: str, scope: str, name: str) -> Deferred[int]:
        """Delete every document of a collection, locked ones too; the Deferred is of how many.

        It fails with `CommandError`: ``unknown-bucket``, ``unknown-scope``,
        ``unknown-collection``, ``not-possible``.
        """

        async def work() -> int:
            served = self._bucket(bucket)
            need_collection(served.manifest, scope, name)
            number = served.manifest.collection_id(scope, name)
            store = served.store
            listable: Any = store
            if not IListableStore.providedBy(store):
                raise CommandError(
                    "not-possible", f"{self._stores.description} cannot list its documents"
                )
            deleted = 0
            for piece in listable.pieces():
                documents = await piece if isinstance(piece, Deferred) else piece
                for key, document in documents:
                    mine = key[0] == number if isinstance(key, tuple) else not number
                    if mine and not document.deleted:
                        await maybeDeferred(store.discard, key)
                        deleted += 1
                await deferLater(self._clock, 0)
            return deleted

        return self._job(work())

    # -- users ------------------------------------------------------------------------

    def put_user(self, name: str, password: str | None, user: CreatedUser) -> Deferred[None]:
        """Create a user, or change one that was created.

        Args:
            name: Who.
            password: None leaves the one that there is.
            user: What it is to be; of its password's hashes nothing is read.

        Returns:
            A Deferred that fails with `CommandError`: ``exists`` for a user of the options,
            ``bad-password``, ``unknown-group``, ``limit``.
        """

        async def work() -> None:
            _log_user(name, new=await self.users.put(name, password, user))
            await self._keep()

        return self._job(work())

    def put_external_user(self, name: str, user: CreatedUser) -> Deferred[None]:
        """Create an external user, or change one; as `put_user`."""

        async def work() -> None:
            _log_user(name, new=self.users.put_external(name, user))
            await self._keep()

        return self._job(work())

    def change_password(self, name: str, password: str) -> Deferred[None]:
        """Give a user that was created another password.

        Returns:
            A Deferred that fails with `CommandError`: ``exists`` for a user of the options,
            ``unknown-user``, ``bad-password``.
        """

        async def work() -> None:
            await self.users.change_password(name, password)
            await self._keep()
            log.info("user {user} has another password", user=name)

        return self._job(work())

    def drop_user(self, name: str, *, external: bool = False) -> Deferred[None]:
        """Drop a user that was created; fails with `CommandError`: ``unknown-user``, ``exists``."""

        async def work() -> None:
            self.users.drop(name, external=external)
            await self._keep()
            log.info("user {user} was dropped", user=name)

        return self._job(work())

    def put_group(self, name: str, group: CreatedGroup) -> Deferred[None]:
        """Create a group, or change one; fails with `CommandError`: ``limit``."""

        async def work() -> None:
            new = self.users.put_group(name, group)
            await self._keep()
            log.info("group {group} was {what}", group=name, what=_done(new=new))

        return self._job(work())

    def drop_group(self, name: str) -> Deferred[None]:
        """Drop a group; its members lose what it gave; fails with ``unknown-group``."""

        async def work() -> None:
            self.users.drop_group(name)
            await self._keep()
            log.info("group {group} was dropped", group=name)

        return self._job(work())

    # -- keeping ----------------------------------------------------------------------

    def restore(self) -> Deferred[None]:
        """Make what was created while an earlier process served; after the stores have opened.

        Returns:
            A Deferred that fires when everything is there; it fails with `ConfigError` when what
            was kept makes no sense.
        """
        if not IGrowingStores.providedBy(self._stores):
            return maybeDeferred(lambda: None)
        stores: Any = self._stores
        return self._job(self._restore_or_refuse(stores.kept()))

    async def _restore_or_refuse(self, kept: dict[str, Any]) -> None:
        try:
            await self._restore(kept)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                "--store",
                f"{self._stores.description}: what was created over REST is damaged: {error!r}",
            ) from error

    async def _restore(self, kept: dict[str, Any]) -> None:
        buckets: dict[str, Any] = kept.get("buckets", {})
        new = [name for name in buckets if name not in self._server.buckets]
        count = len(self._server.buckets) + len(new)
        for name, row in buckets.items():
            settings = BucketSettings(**row["settings"])
            if name in new:
                await self._serve_bucket(name, settings, Manifest(), count)
            elif not settings.created:
                settings.flush |= self._config.flush_allowed
                self._take_settings(self._server.buckets[name], settings)
            manifest = self._server.buckets[name].manifest
            for scope in row["scopes"]:
                if scope not in manifest.scopes:
                    manifest.create_scope(scope, fresh=False)
            for scope, collection in row["collections"]:
                if (scope, collection) not in manifest.collections:
                    manifest.create_collection(scope, collection, fresh=False)
            for path, settings_row in row.get("collection_settings", {}).items():
                at = path.partition(".")
                if (at[0], at[2]) in manifest.collections:
                    manifest.change_collection(at[0], at[2], CollectionSettings(**settings_row))
            self._adopt_ids(self._server.buckets[name], manifest.known_ids)
            self._limit_ttl(self._server.buckets[name])
            manifest.uid = max(manifest.uid, row["uid"])
        self.users.restore(kept)
        self._server.topology_changed()

    def _keep(self) -> Deferred[None]:
        """Keep what was created where documents are kept."""
        stores: Any = self._stores
        if not IGrowingStores.providedBy(stores):
            return maybeDeferred(lambda: None)
        described: dict[str, Any] = {
            "buckets": {
                name: {
                    "settings": asdict(settings),
                    "scopes": self._server.buckets[name].manifest.scopes,
                    "collections": self._server.buckets[name].manifest.collections,
                    "collection_settings": self._server.buckets[name].manifest.all_settings(),
                    "uid": self._server.buckets[name].manifest.uid,
                }
                for name, settings in self.settings.items()
            },
        }
        users = self.users.describe()
        kept: Deferred[None] = stores.keep(lambda: described | users())
        return kept

    # -- helpers ----------------------------------------------------------------------

    def _job(self, work: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        return self._jobs.run(object(), lambda: work)

    def _bucket(self, name: str) -> Bucket:
        bucket = self._server.buckets.get(name)
        if bucket is None:
            raise CommandError("unknown-bucket", "Requested resource not found.")
        return bucket

    def _need_growing(self) -> None:
        if not self.can_grow:
            raise CommandError(
                "not-possible",
                f"{self._stores.description} serves the buckets and collections of its options "
                "only: use --bucket and --collection",
            )


def _log_user(name: str, *, new: bool) -> None:
    log.info("user {user} was {what}", user=name, what=_done(new=new))


def _done(*, new: bool) -> str:
    return "created" if new else "changed"
