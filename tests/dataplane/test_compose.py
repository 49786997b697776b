"""Options become buckets, users and sessions."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Collection, Config, User, UserBuckets
from kvproto.dataplane import make_server, make_users
from kvproto.errors import ConfigError
from kvproto.server import hash_password
from kvproto.server.users_file import UserRecord, change_users
from kvproto.testing.certificates import Authority

HASHES = hash_password("secret", 4096)


class DataplaneTests(SynchronousTestCase):
    """What `make_server` makes."""

    def users_file(self, **buckets: tuple[str, ...] | None) -> Path:
        path = Path(self.mktemp())
        with change_users(path) as users:
            for name, allowed in buckets.items():
                users[name] = UserRecord(HASHES, allowed)
        return path

    def refused(self, config: Config) -> str:
        error: ConfigError = self.assertRaises(ConfigError, make_server, config, Clock())
        return error.option

    def test_buckets(self) -> None:
        """Each bucket has a store, collections and a share of the memory of its own."""
        config = Config(
            buckets=("a", "b"),
            collections=(Collection("s", "c"), Collection("s", "d", "b")),
            memory_limit=2 * 1024 * 1024,
        )
        server = make_server(config, Clock())
        self.assertEqual(list(server.buckets), ["a", "b"])
        one, other = server.buckets.values()
        self.assertIsNot(one.store, other.store)
        stats = one.store.stats()
        assert isinstance(stats, dict)
        self.assertEqual(stats["limit_maxbytes"], 1024 * 1024)
        self.assertNotIn(b'"d"', one.manifest.to_json())
        self.assertIn(b'"d"', other.manifest.to_json())

    def test_collection_names(self) -> None:
        """A name that cannot be one, or is there twice, is refused."""
        self.assertEqual(self.refused(Config(collections=(Collection("_s", "c"),))), "--collection")
        twice = (Collection("s", "c"), Collection("s", "c", "default"))
        self.assertEqual(self.refused(Config(collections=twice)), "--collection")

    def test_users(self) -> None:
        """Users of both sources may log in, each to the buckets that it may use."""
        path = self.users_file(alice=None, bob=("b", "a"), carol=("a",))
        config = Config(
            users=(User("dave", "secret"),),
            users_file=path,
            user_buckets=(UserBuckets("dave", ("b",)), UserBuckets("carol", ("b",))),
            buckets=("a", "b", "c"),
        )
        server = make_server(config, Clock())
        for name, default, allowed in (
            ("alice", "a", "abc"),
            ("bob", "b", "ab"),
            ("carol", "b", "b"),
            ("dave", "b", "b"),
            ("", "a", "abc"),
        ):
            bucket = server.default_bucket(name)
            assert bucket is not None
            self.assertEqual(bucket.name, default)
            usable = [bucket for bucket in "abc" if server.bucket(name, bucket)]
            self.assertEqual("".join(usable), allowed)
        for name in ("alice", "dave"):
            self.assertTrue(server.users.check(name, b"secret"))
            self.assertFalse(server.users.check(name, b"wrong"))

    def test_contradictions(self) -> None:
        """Options and users file that contradict one another are refused by name."""
        path = self.users_file(alice=("a",))
        users = (User("alice", "x"),)
        for fields, option in (
            ({"users_file": path}, "--users"),
            ({"users_file": path, "users": users, "buckets": ("a",)}, "--user"),
            ({"users_file": path.with_name("none")}, "--users"),
            (
                {
                    "users_file": path,
                    "buckets": ("a",),
                    "user_buckets": (UserBuckets("bob", ("a",)),),
                },
                "--user-buckets",
            ),
            ({"users": (User("alice", "\x07"),)}, "--user"),
            ({"users_file": path, "buckets": ("a",), "watchers": ("bob",)}, "--watcher"),
        ):
            self.assertEqual(self.refused(Config(**fields)), option)

    def test_watchers(self) -> None:
        """Only users that are named may watch; where nobody is, the server decides by address."""
        users = (User("alice", "x"),)
        for watchers, expected in (((), None), (("alice",), frozenset({"alice"}))):
            server = make_server(Config(users=users, watchers=watchers), Clock())
            self.assertEqual(server.settings.watchers, expected)

    def test_salts_tell_nothing(self) -> None:
        """Salts are the same at each start, of users and of those that do not exist."""
        path = self.users_file(alice=None)
        config = Config(users=(User("bob", "x"),), users_file=path)
        one, other = make_users(config), make_users(config)
        for name in (b"alice", b"bob", b"nobody"):
            for digest in ("sha1", "sha256", "sha512"):
                keys = one.scram_keys(name, digest)
                self.assertEqual(keys.salt, other.scram_keys(name, digest).salt)

    def test_user_that_is_gone(self) -> None:
        """Who was a user at login and is none any more may use no bucket."""
        table = make_users(Config(users=(User("alice", "x"),)))
        self.assertTrue(table.may_use("alice", "default"))
        self.assertFalse(table.may_use("bob", "default"))
        self.assertIsNone(table.default_bucket("bob", ["default"]))
        self.assertTrue(table.may_use("", "default"))

    def test_hashing_is_elsewhere(self) -> None:
        """Passwords are hashed where the caller says."""
        ran = []

        def run(function: object, *arguments: object) -> bool:
            ran.append(arguments[-1])
            return True

        table = make_users(Config(users=(User("alice", "secret"),)), run)
        self.assertTrue(table.check("alice", b"anything"))
        self.assertTrue(table.check("nobody", b"other"))
        self.assertEqual(ran, [b"anything", b"other"])

    def test_certificate_rules(self) -> None:
        """The rules name the user, in their order; only users that exist count."""
        chain = (Authority.root().issue("cn-user", ["alice.example.org"]).der,)
        config = Config(
            client_ca=Path("ca.pem"),
            cert_users=("san.dns:delimiter=.", "subject.cn"),
            users=(User("alice", "x"), User("cn-user", "x")),
        )
        self.assertEqual(make_server(config, Clock()).identify(chain), "alice")
        config = Config(users=(User("cn-user", "x"), User("alice", "x")))
        self.assertEqual(make_server(config, Clock()).identify(chain), "cn-user")
        config = Config(users=(User("bob", "x"),))
        self.assertIsNone(make_server(config, Clock()).identify(chain))
        bad = Config(client_ca=Path("ca.pem"), cert_users=("subject.ou",))
        self.assertEqual(self.refused(bad), "--cert-user")
