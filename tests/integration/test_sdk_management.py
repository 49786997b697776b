"""The SDK's managers, and what it makes of the services that it reads of."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from tests.integration.sdk import SDKTestCase, closing, connect, long_timeouts, short_timeouts
from tests.integration.service import ENGINES, PATIENCE, not_on

_PATIENT = timedelta(seconds=PATIENCE)


def _open_plain(service: Any, user: str = "alice", password: str = "secret12") -> Any:
    """Return the SDK's connection without TLS."""
    from couchbase.auth import PasswordAuthenticator
    from couchbase.cluster import Cluster
    from couchbase.options import ClusterOptions

    port = service.addresses[1][1]
    options = ClusterOptions(PasswordAuthenticator(user, password), timeout_options=long_timeouts())
    return Cluster(f"couchbase://127.0.0.1:{port}", options)


class ManagersTests(SDKTestCase):
    """Buckets, collections and users, over TLS."""

    options = (
        *["--user", "alice:secret12", "--user", "limited:secret12"],
        *["--user-buckets", "limited:default", "--management", "tcp:0"],
    )
    plain = False

    @property
    def cluster(self) -> Any:
        cls = type(self)
        if cls._cluster is None:
            cls._cluster = (
                _open_plain(cls.service) if cls.plain else connect(cls.service, password="secret12")
            )
        return cls._cluster

    def new_bucket(self, name: str, *, flush: bool = True) -> Any:
        """Create a bucket, and return it."""
        from couchbase.management.buckets import CreateBucketSettings

        self.cluster.buckets().create_bucket(
            CreateBucketSettings(name=name, ram_quota_mb=100, flush_enabled=flush)
        )
        return self.cluster.bucket(name)

    def test_ready(self) -> None:
        """All services that are announced are ready: these, and no others."""
        from couchbase.diagnostics import PingState, ServiceType

        # A connection of its own: one that has seen a bucket go is never quite ready again.
        cluster = self.enterContext(closing(self.log_in("alice", "secret12")))
        cluster.wait_until_ready(_PATIENT)
        report = cluster.ping()
        self.assertEqual(
            set(report.endpoints),
            {ServiceType.KeyValue, ServiceType.Management, ServiceType.Query},
        )
        for endpoints in report.endpoints.values():
            self.assertEqual([one.state for one in endpoints], [PingState.OK] * len(endpoints))

    def test_buckets(self) -> None:
        """A bucket is created, listed, used, flushed, changed and dropped."""
        not_on(ENGINES, "buckets and collections are those of the options")
        from couchbase.exceptions import (
            BucketAlreadyExistsException,
            BucketDoesNotExistException,
            BucketNotFlushableException,
            BucketNotFoundException,
            DocumentNotFoundException,
        )
        from couchbase.management.buckets import BucketSettings, BucketType

        manager = self.cluster.buckets()
        collection = self.new_bucket("made").default_collection()
        collection.upsert("k", {"v": 1})
        with self.assertRaises(BucketAlreadyExistsException):
            self.new_bucket("made")
        found = manager.get_bucket("made")
        self.assertEqual(
            (found.name, found.ram_quota_mb, found.flush_enabled, found.bucket_type),
            ("made", 100, True, BucketType.COUCHBASE),
        )
        self.assertEqual({b.name for b in manager.get_all_buckets()}, {"default", "made"})
        manager.flush_bucket("made")
        with self.assertRaises(DocumentNotFoundException):
            collection.get("k")
        manager.update_bucket(BucketSettings(name="made", flush_enabled=False, ram_quota_mb=200))
        with self.assertRaises(BucketNotFlushableException):
            manager.flush_bucket("made")
        self.assertEqual(manager.get_bucket("made").ram_quota_mb, 200)
        manager.drop_bucket("made")
        for act in (manager.get_bucket, manager.drop_bucket, manager.flush_bucket):
            with self.assertRaises((BucketDoesNotExistException, BucketNotFoundException)):
                act("made")
        self.assertEqual([b.name for b in manager.get_all_buckets()], ["default"])

    def test_collections(self) -> None:
        """Scopes and collections are created, used at once, listed and dropped."""
        not_on(ENGINES, "buckets and collections are those of the options")
        from couchbase.exceptions import (
            CollectionAlreadyExistsException,
            CollectionNotFoundException,
            DocumentNotFoundException,
            ScopeAlreadyExistsException,
            ScopeNotFoundException,
        )

        bucket = self.cluster.bucket("default")
        manager = bucket.collections()
        manager.create_scope("shop")
        manager.create_collection("shop", "carts")
        with self.assertRaises(ScopeAlreadyExistsException):
            manager.create_scope("shop")
        with self.assertRaises(CollectionAlreadyExistsException):
            manager.create_collection("shop", "carts")
        with self.assertRaises(ScopeNotFoundException):
            manager.create_collection("nowhere", "carts")
        carts = bucket.scope("shop").collection("carts")
        carts.upsert("k", 1)
        scopes = {s.name: [c.name for c in s.collections] for s in manager.get_all_scopes()}
        self.assertEqual(scopes, {"_default": ["_default"], "shop": ["carts"]})
        manager.drop_collection("shop", "carts")
        with self.assertRaises(CollectionNotFoundException):
            manager.drop_collection("shop", "carts")
        manager.create_collection("shop", "carts")
        with self.assertRaises(DocumentNotFoundException):
            carts.get("k")
        manager.drop_scope("shop")
        with self.assertRaises(ScopeNotFoundException):
            manager.drop_scope("shop")

    def test_users(self) -> None:
        """A user that was created can log in, with what its roles allow, until it is dropped."""
        from couchbase.exceptions import (
            AuthenticationException,
            BucketNotFoundException,
            InternalServerFailureException,
            InvalidArgumentException,
            UserNotFoundException,
        )
        from couchbase.management.users import Role, User

        manager = self.cluster.users()
        role = Role("bucket_full_access", bucket="default")
        manager.upsert_user(User("bob", password="swordfish", roles=[role], display_name="Bob"))
        found = manager.get_user("bob").user
        self.assertEqual((found.username, found.display_name), ("bob", "Bob"))
        self.assertEqual([r.name for r in found.roles], ["bucket_full_access"])
        self.assertIn("bob", [one.user.username for one in manager.get_all_users()])
        with closing(self.log_in("bob", "swordfish")) as cluster:
            cluster.bucket("default").default_collection().upsert("k", 1)
            with self.assertRaises(InternalServerFailureException):  # 403
                cluster.users().drop_user("bob")
        with self.assertRaises(InvalidArgumentException):
            manager.upsert_user(User("bob", password="short", roles=[role]))
        manager.drop_user("bob")
        with self.assertRaises(UserNotFoundException):
            manager.get_user("bob")
        with self.assertRaises((AuthenticationException, BucketNotFoundException)):
            self.log_in("bob", "swordfish", short_timeouts())

    def test_groups(self) -> None:
        """Members of a group may do what it may; who was created changes the own password."""
        from couchbase.exceptions import GroupNotFoundException
        from couchbase.management.users import Group, Role, User

        manager = self.cluster.users()
        role = Role("bucket_full_access", bucket="default")
        manager.upsert_group(Group("readers", roles=[role], description="they read"))
        manager.upsert_user(User("ann", password="swordfish", groups=["readers"], roles=[]))
        [found] = manager.get_user("ann").effective_roles
        self.assertEqual([(o.type, o.name) for o in found.origins], [("group", "readers")])
        self.assertEqual(manager.get_group("readers").description, "they read")
        with closing(self.log_in("ann", "swordfish")) as cluster:
            cluster.bucket("default").default_collection().upsert("k", 1)
            cluster.users().change_password("mackerel")
        with closing(self.log_in("ann", "mackerel")):
            pass
        manager.drop_group("readers")
        self.assertEqual(manager.get_user("ann").effective_roles, [])
        with self.assertRaises(GroupNotFoundException):
            manager.get_group("readers")
        manager.drop_user("ann")
        self.assertIn("admin", [one.role.name for one in manager.get_roles()])

    def test_max_expiry(self) -> None:
        """Documents of a collection expire in the time that it gives them at most."""
        not_on(ENGINES, "buckets and collections are those of the options")
        from datetime import timedelta

        from couchbase.management.collections import (
            CreateCollectionSettings,
            UpdateCollectionSettings,
        )
        from couchbase.options import GetOptions

        bucket = self.cluster.bucket("default")
        manager = bucket.collections()
        hour = CreateCollectionSettings(max_expiry=timedelta(hours=1))
        manager.create_collection("_default", "short", hour)
        short = bucket.collection("short")

        def lives() -> float:
            short.upsert("k", 1)
            expiry = short.get("k", GetOptions(with_expiry=True)).expiryTime
            return 0 if expiry is None else expiry.timestamp() - time.time()

        self.assertTrue(3500 < lives() < 3700)
        week = UpdateCollectionSettings(max_expiry=timedelta(days=7))
        manager.update_collection("_default", "short", week)
        self.assertTrue(6.9 * 86400 < lives() < 7.1 * 86400)
        never = UpdateCollectionSettings(max_expiry=timedelta(seconds=-1))
        manager.update_collection("_default", "short", never)
        self.assertEqual(lives(), 0)
        [scope] = [one for one in manager.get_all_scopes() if one.name == "_default"]
        [spec] = [one for one in scope.collections if one.name == "short"]
        self.assertEqual(spec.max_expiry, timedelta(seconds=-1))
        manager.drop_collection("_default", "short")

    def log_in(self, user: str, password: str, timeouts: Any = None) -> Any:
        if type(self).plain:
            return _open_plain(self.service, user, password)
        return connect(self.service, user, password, timeouts=timeouts)

    def test_queries(self) -> None:
        """What set-ups send by habit is answered; all else fails at once, by name."""
        not_on(ENGINES, "buckets and collections are those of the options")
        from couchbase.exceptions import (
            CouchbaseException,
            DocumentNotFoundException,
            KeyspaceNotFoundException,
            QueryIndexAlreadyExistsException,
        )

        def run(statement: str) -> list[Any]:
            return list(self.cluster.query(statement).rows())

        collection = self.new_bucket("queried").default_collection()
        collection.upsert("k", 1)
        self.assertEqual(run("SELECT RAW 1"), [1])
        run("CREATE PRIMARY INDEX ON `queried`")
        with self.assertRaises(QueryIndexAlreadyExistsException):
            run("CREATE PRIMARY INDEX ON `queried`")
        run("CREATE PRIMARY INDEX IF NOT EXISTS ON queried;")
        self.cluster.query_indexes().create_primary_index("default")
        run(" delete  from `queried` ; ")
        with self.assertRaises(DocumentNotFoundException):
            collection.get("k")
        with self.assertRaises(KeyspaceNotFoundException):
            run("DELETE FROM nowhere")
        for statement in ("SELECT * FROM `queried`", "DELETE FROM queried WHERE 1=1", "nonsense"):
            begun = time.monotonic()
            with self.assertRaises(CouchbaseException) as raised:
                run(statement)
            self.assertIn("not yet implemented", str(raised.exception), statement)
            # At once, not when the client's patience is at its end.
            self.assertLess(time.monotonic() - begun, PATIENCE / 2)
        self.cluster.buckets().drop_bucket("queried")

    def test_wrong_password(self) -> None:
        """Managers of a user with a wrong password say so."""
        from couchbase.exceptions import CouchbaseException

        with self.assertRaises(CouchbaseException):
            self.log_in("alice", "wrong-one", short_timeouts()).buckets().get_all_buckets()


class PlainManagersTests(ManagersTests):
    """The same by ``couchbase://``: without TLS, on loopback."""

    options = (*ManagersTests.options, "--plain", "tcp:0:interface=127.0.0.1")
    plain = True

    def test_both(self) -> None:
        """A client that uses TLS is served beside those that do not."""
        with closing(connect(self.service, password="secret12")) as cluster:
            cluster.wait_until_ready(_PATIENT)
            collection = cluster.bucket("default").default_collection()
            collection.upsert(self.key(), 1)
            self.assertEqual(self.collection.get(self.key()).content_as[int], 1)
            self.assertIn("default", [b.name for b in cluster.buckets().get_all_buckets()])


class KeptManagersTests(ManagersTests):
    """The same where documents are kept in a directory."""

    options = (*ManagersTests.options, "--store", "file:data")
