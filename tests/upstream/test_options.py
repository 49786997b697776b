"""What an engine's URL says, and what it must not say."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.upstream.options import SCHEMES, EngineOptions, parse_options


class OptionsTests(SynchronousTestCase):
    """URLs are read, or refused with what to do."""

    def test_urls(self) -> None:
        """Each kind of URL, with defaults."""
        for url, expected in (
            ("redis://host", EngineOptions(servers=(("host", 6379),))),
            ("redis://host:7000/3", EngineOptions(servers=(("host", 7000),), database=3)),
            ("redis://[::1]:7", EngineOptions(servers=(("::1", 7),))),
            ("valkey://h/", EngineOptions(servers=(("h", 6379),))),
            ("rediss://h", EngineOptions(servers=(("h", 6379),), tls=True)),
            ("redis+unix:/run/redis.sock", EngineOptions(path="/run/redis.sock")),
            ("valkey+unix:///run/x%20y", EngineOptions(path="/run/x y")),
            (
                "redis+cluster://a:1,b",
                EngineOptions(servers=(("a", 1), ("b", 6379)), cluster=True),
            ),
            (
                "valkeys+cluster://a",
                EngineOptions(servers=(("a", 6379),), cluster=True, tls=True),
            ),
            (
                "rediss://bob@h?password-file=/p&ca=/a&cert=/c&key=/k&connections=3&timeout=7",
                EngineOptions(
                    servers=(("h", 6379),),
                    tls=True,
                    user="bob",
                    password_file=Path("/p"),
                    ca=Path("/a"),
                    cert=Path("/c"),
                    key=Path("/k"),
                    connections=3,
                    timeout=7.0,
                ),
            ),
        ):
            self.assertEqual(parse_options(url), expected, url)

    def test_every_scheme(self) -> None:
        """There are five kinds, each under both names."""
        self.assertEqual(len(SCHEMES), 10)

    def test_refused(self) -> None:
        """What cannot be is refused, with the reason."""
        for url, reason in (
            ("http://x", "'http' is none of"),
            ("redis:x", "redis://HOST"),
            ("redis://", "no HOST:PORT"),
            ("redis+cluster://a,,b", "no HOST:PORT"),
            ("redis://a b", "no HOST:PORT"),
            ("redis://h:0", "no port"),
            ("redis://h:99999", "no port"),
            ("redis://a,b", "redis+cluster://"),
            ("redis://h/x", "no number of a database"),
            ("redis+cluster://h/1", "one database only"),
            ("redis+unix:", "path of the socket is missing"),
            ("redis+unix:/s?ca=/x", "Unix socket"),
            ("redis://h?ca=/x", "write rediss://"),
            ("valkey+cluster://h?ca=/x", "write valkeys+cluster://"),
            ("rediss://h?key=/x", "key needs cert"),
            ("redis://bob@h", "password-file"),
            ("redis://h?x=1", "no parameter 'x'"),
            ("redis://h?connections", "NAME=VALUE"),
            ("redis://h?connections=0", "1 to 256"),
            ("redis://h?timeout=0", "more than 0"),
            ("redis://h?timeout=nan", "more than 0"),
            ("redis://h?timeout=1&timeout=2", "twice"),
            ("redis://h?password-file=", "name of a file"),
        ):
            error = self.assertRaises(ConfigError, parse_options, url)
            self.assertIn(reason, str(error))
            self.assertTrue(str(error).startswith("--store: "), error)

    def test_passwords_are_not_repeated(self) -> None:
        """A password in the URL is refused without being shown."""
        for url in ("redis://bob:sesame@h", "redis://:sesame@h?x=1", "redis://sesame@h:0"):
            error = self.assertRaises(ConfigError, parse_options, url)
            self.assertNotIn("sesame", str(error))
