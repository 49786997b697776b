"""Options become one configuration that checks itself."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import (
    ClientAuth,
    Collection,
    Config,
    Mode,
    User,
    UserBuckets,
    endpoint_is_local,
    parse_collection,
    parse_seconds,
    parse_size,
    parse_text,
    parse_user,
    parse_user_buckets,
)
from kvproto.errors import ConfigError

CERTIFICATE = Path("chain.pem")

MIB = 1 << 20


class ConfigTests(SynchronousTestCase):
    """What a `Config` accepts, refuses and derives."""

    def refused(self, option: str, **fields: object) -> str:
        error = self.assertRaises(ConfigError, Config, **fields)
        self.assertEqual(error.option, option)
        return str(error)

    def test_defaults(self) -> None:
        """Without options it is a development service on loopback with anonymous access."""
        config = Config()
        self.assertTrue(config.development)
        self.assertTrue(config.anonymous_allowed)
        self.assertFalse(config.flush_allowed)
        self.assertEqual(config.value_limit, 20 * 1024 * 1024)
        self.assertIs(config.client_auth_mode, ClientAuth.NONE)

    def test_memcached_mode(self) -> None:
        """Memcached mode has memcached's limits and its FLUSH."""
        config = Config(mode=Mode.MEMCACHED)
        self.assertTrue(config.flush_allowed)
        self.assertEqual((config.value_limit, config.connection_limit), (1024 * 1024, 1024))

    def test_users_end_anonymity(self) -> None:
        """A user ends anonymous access unless it is asked for."""
        users = (User("alice", "secret"),)
        self.assertFalse(Config(users=users).anonymous_allowed)
        self.assertTrue(Config(users=users, anonymous=True).anonymous_allowed)

    def test_users_file_ends_anonymity(self) -> None:
        """A users file does so too, whoever is in it."""
        self.assertFalse(Config(users_file=Path("users")).anonymous_allowed)

    def test_buckets(self) -> None:
        """There is at least one bucket, each has a name of its own, and a share of the memory."""
        config = Config(buckets=("a", "b", "c"), memory_limit=3 * 1024 * 1024)
        self.assertEqual(config.bucket_memory_limit, 1024 * 1024)
        self.refused("--bucket", buckets=())
        self.refused("--bucket", buckets=("a", "a"))
        self.refused("--bucket", buckets=("a/b",))
        text = self.refused("--memory-limit", buckets=("a", "b"), memory_limit=100 * 1024)
        self.assertIn("2 buckets", text)

    def test_collections(self) -> None:
        """A collection exists in every bucket, or in the one it is given for."""
        one, other = Collection("s", "c"), Collection("s", "d", "b")
        config = Config(buckets=("a", "b"), collections=(one, other))
        self.assertEqual(config.collections_of("a"), [("s", "c")])
        self.assertEqual(config.collections_of("b"), [("s", "c"), ("s", "d")])
        self.refused("--collection", collections=(other,))

    def test_user_buckets(self) -> None:
        """Only a user that may exist can be kept to buckets, which do exist."""
        users, default = (User("a", "1"),), UserBuckets("a", ("default",))
        Config(users=users, user_buckets=(default,))
        Config(users_file=Path("users"), user_buckets=(default,))
        self.refused("--user-buckets", user_buckets=(default,))
        self.refused("--user-buckets", users=users, user_buckets=(default, default))
        self.refused("--user-buckets", users=users, user_buckets=(UserBuckets("a", ("b",)),))

    def test_watchers(self) -> None:
        """Only a user that may exist can be allowed to watch."""
        Config(users=(User("a", "1"),), watchers=("a",))
        Config(users_file=Path("users"), watchers=("a",))
        self.refused("--watcher", watchers=("a",))
        self.refused("--watcher", users=(User("a", "1"),), watchers=("b",))

    def test_certificate_users_need_a_ca(self) -> None:
        """Rules for certificates that nobody is asked for are a mistake."""
        self.refused("--cert-user", cert_users=("subject.cn",))

    def test_client_ca_asks(self) -> None:
        """A client CA alone means that certificates are optional."""
        config = Config(certificate=CERTIFICATE, client_ca=Path("ca.pem"))
        self.assertIs(config.client_auth_mode, ClientAuth.OPTIONAL)

    def test_client_auth_needs_a_ca(self) -> None:
        """Asking for certificates without a CA to verify them is refused."""
        text = self.refused("--client-auth", client_auth=ClientAuth.REQUIRED)
        self.assertIn("--client-ca", text)

    def test_key_needs_a_certificate(self) -> None:
        """A private key alone is refused."""
        self.refused("--private-key", private_key=Path("key.pem"))
        self.refused("--key-passphrase-file", key_passphrase_file=Path("p"))

    def test_development_is_local(self) -> None:
        """Development credentials are never served beyond this machine."""
        text = self.refused("--listen", listen=("tcp:11207",))
        self.assertIn("interface=127.0.0.1", text)
        Config(listen=("tcp:11207",), certificate=CERTIFICATE)

    def test_listener_twice(self) -> None:
        """The same listener twice is a mistake, two ephemeral ports are not."""
        self.refused("--listen", listen=("unix:/a",) * 2)
        Config(listen=("tcp:0:interface=127.0.0.1",) * 2)

    def test_limits(self) -> None:
        """Limits that cannot be meant are refused by name."""
        self.refused("--memory-limit", memory_limit=64)
        self.refused("--max-value", max_value=0)
        self.refused("--max-connections", max_connections=0)
        self.refused("--max-unfinished", max_unfinished=20 * MIB)
        self.refused("--max-unfinished", max_value=30 * MIB, max_unfinished=30 * MIB)
        self.assertEqual(Config(max_unfinished=21 * MIB).unfinished_limit, 21 * MIB)
        self.assertEqual(Config().unfinished_limit, 256 * MIB)
        large = Config(max_value=500 * MIB, memory_limit=1024 * MIB)
        self.assertEqual(large.unfinished_limit, 1000 * MIB)
        self.refused("--handshake-timeout", handshake_timeout=0.0)

    def test_user_twice(self) -> None:
        """A name has one password."""
        self.refused("--user", users=(User("a", "1"), User("a", "2")))

    def test_password_is_not_shown(self) -> None:
        """A configuration can be printed without giving passwords away."""
        self.assertNotIn("secret", repr(Config(users=(User("alice", "secret"),))))


class LocalEndpointTests(SynchronousTestCase):
    """Which endpoint descriptions stay on this machine."""

    def test_table(self) -> None:
        """Loopback addresses and Unix sockets are local, everything else is not."""
        for description, local in (
            ("tcp:11207:interface=127.0.0.1", True),
            ("tcp:0:interface=127.9.9.9", True),
            ("tcp:11207:interface=localhost", True),
            (r"tcp6:11207:interface=\:\:1", True),
            ("unix:/run/kv.sock", True),
            ("tcp:11207", False),
            ("tcp6:11207", False),
            ("tcp:11207:interface=0.0.0.0", False),
            ("tcp:11207:interface=127.0.0.1.example.org", False),
            ("systemd:domain=INET:index=0", False),
        ):
            self.assertEqual(endpoint_is_local(description), local, description)


class ParseTests(SynchronousTestCase):
    """Text of single options."""

    def test_sizes(self) -> None:
        """Sizes are bytes, or carry a binary unit."""
        for text, size in (
            ("1048576", 1048576),
            ("512KiB", 512 * 1024),
            ("64m", 64 * 1024**2),
            ("2GB", 2 * 1024**3),
            ("1 g", 1024**3),
        ):
            self.assertEqual(parse_size("--memory-limit", text), size)
        for text in ("", "-1", "1.5m", "lots", "64TiB", "\uff11MiB"):
            self.assertRaises(ConfigError, parse_size, "--memory-limit", text)

    def test_text(self) -> None:
        """What a locale without UTF-8 has kept as bytes is read as UTF-8."""
        self.assertEqual(parse_text("--bucket", "\udcc3\udcbc"), "\u00fc")
        self.assertEqual(parse_text("--bucket", "a\n\u00fc"), "a\n\u00fc")
        error = self.assertRaises(ConfigError, parse_text, "--user", "secret\udcff")
        self.assertNotIn("secret", str(error))

    def test_seconds(self) -> None:
        """Seconds are finite and not negative."""
        self.assertEqual(parse_seconds("--drain-timeout", "0.5"), 0.5)
        for text in ("", "-1", "nan", "inf", "soon"):
            self.assertRaises(ConfigError, parse_seconds, "--drain-timeout", text)

    def test_users(self) -> None:
        """A password may hold colons; neither part may be empty."""
        self.assertEqual(parse_user("alice:a:b"), User("alice", "a:b"))
        for text in ("alice", ":secret", "alice:"):
            error = self.assertRaises(ConfigError, parse_user, text)
            self.assertNotIn("secret", str(error))

    def test_user_buckets(self) -> None:
        """A user's name may hold colons, a bucket's cannot; repetitions are dropped."""
        self.assertEqual(parse_user_buckets("a:b:x,y,x"), UserBuckets("a:b", ("x", "y")))
        for text in ("alice", ":x", "alice:", "alice:x,"):
            self.assertRaises(ConfigError, parse_user_buckets, text)

    def test_collections(self) -> None:
        """A collection has a scope, and perhaps a bucket."""
        self.assertEqual(parse_collection("s.c"), Collection("s", "c"))
        self.assertEqual(parse_collection("b.1:s.c"), Collection("s", "c", "b.1"))
        for text in ("c", "s.", ".c", "a.b.c", ":s.c", "b:c", ""):
            self.assertRaises(ConfigError, parse_collection, text)
