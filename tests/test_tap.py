"""Text on the command line becomes a configuration, or one clear line."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import ClientAuth, Collection, Config, Mode, OnRotate, User, UserBuckets
from kvproto.tap import USAGE_STATUS, Options


class OptionsTests(SynchronousTestCase):
    """Options of ``twistd kvtls``."""

    def parse(self, *arguments: str) -> Config:
        options = Options()
        options.parseOptions(list(arguments))
        assert options.kvtls_config is not None
        return options.kvtls_config

    def refused(self, *arguments: str) -> str:
        """Return the one line that a bad command line is answered with."""
        written = io.StringIO()
        with contextlib.redirect_stderr(written):
            end = self.assertRaises(SystemExit, Options().parseOptions, list(arguments))
        self.assertEqual(end.code, USAGE_STATUS)
        text = written.getvalue()
        self.assertEqual(text.count("\n"), 1, text)
        return text

    def test_defaults(self) -> None:
        """No options give the default configuration."""
        self.assertEqual(self.parse(), Config())

    def test_everything(self) -> None:
        """Each option reaches its field."""
        config = self.parse(
            *["--listen", "tcp:1", "--listen", "tcp6:1", "--proxy-protocol"],
            *["--certificate", "c.pem", "--private-key", "k.pem"],
            *["--key-passphrase-file", "p", "--client-ca", "ca.pem"],
            *["--client-auth", "required", "--crl", "crl.pem"],
            *["--user", "alice:a:b", "--user", "bob:c", "--anonymous", "--users", "u"],
            *["--user-buckets", "bob:b", "--cert-user", "san.dns", "--cert-user", "subject.cn"],
            *["--bucket", "a", "-b", "b", "--collection", "s.c", "--collection", "a:s.d"],
            *["--mode", "memcached", "--allow-flush"],
            *[
                "--store",
                "file:d",
                "--memory-limit",
                "1g",
                "--refuse-when-full",
                "--max-value",
                "2MiB",
            ],
            *["--max-connections", "7", "--max-connections-per-peer", "3"],
            *["--handshake-timeout", "1.5", "--close-timeout", "2", "--drain-timeout", "4"],
            *["--on-rotate", "drain", "--drain-window", "5", "--watch-interval", "0"],
            *["--state-dir", "st", "--keylog", "keys"],
        )
        expected = Config(
            listen=("tcp:1", "tcp6:1"),
            proxy_protocol=frozenset({1}),
            certificate=Path("c.pem"),
            private_key=Path("k.pem"),
            key_passphrase_file=Path("p"),
            client_ca=Path("ca.pem"),
            client_auth=ClientAuth.REQUIRED,
            crl=Path("crl.pem"),
            users=(User("alice", "a:b"), User("bob", "c")),
            users_file=Path("u"),
            user_buckets=(UserBuckets("bob", ("b",)),),
            cert_users=("san.dns", "subject.cn"),
            buckets=("a", "b"),
            collections=(Collection("s", "c"), Collection("s", "d", "a")),
            anonymous=True,
            mode=Mode.MEMCACHED,
            allow_flush=True,
            store="file:d",
            memory_limit=1024**3,
            evict=False,
            max_value=2 * 1024**2,
            max_connections=7,
            max_connections_per_peer=3,
            handshake_timeout=1.5,
            close_timeout=2.0,
            drain_timeout=4.0,
            on_rotate=OnRotate.DRAIN,
            drain_window=5.0,
            watch_interval=0.0,
            state_dir=Path("st"),
            keylog=Path("keys"),
        )
        self.assertEqual(config, expected)

    def test_bad_command_lines(self) -> None:
        """One line names the option, and where values are limited the allowed ones."""
        for arguments, word in (
            (["--no-such-option"], "--no-such-option"),
            (["--mode", "redis"], "couchbase, memcached"),
            (["--client-auth", "maybe"], "none, optional, required"),
            (["--on-rotate", "panic"], "keep, recheck, drain, disconnect"),
            (["--max-connections", "many"], "--max-connections"),
            (["--memory-limit", "64"], "--memory-limit"),
            (["--drain-timeout", "soon"], "--drain-timeout"),
            (["--user", "alice"], "NAME:PASSWORD"),
            (["--user-buckets", "alice"], "NAME:BUCKET"),
            (["--collection", "c"], "SCOPE.NAME"),
            (["--bucket", "no such/name"], "--bucket"),
            (["--proxy-protocol"], "--listen"),
            (["extra"], "extra"),
            (["--listen"], "--listen"),
        ):
            self.assertIn(word, self.refused(*arguments))

    def test_password_is_not_repeated(self) -> None:
        """A password does not come back in an error."""
        self.assertNotIn("hunter2", self.refused("--user", ":hunter2"))

    def test_memcached_version(self) -> None:
        """What VERSION answers is three numbers: clients read it."""
        config = self.parse("--memcached-version", "1.4.39")
        self.assertEqual(config.memcached_version, "1.4.39")
        for text in ("1.6", "1.6.45-beta", "", "x"):
            self.assertIn("is no version like", self.refused("--memcached-version", text))
