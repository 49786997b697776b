"""URLs of fleets."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.upstream.fleet_options import is_fleet, parse_fleet, read_pool
from kvproto.upstream.ring import FleetServer


class FleetURLTests(SynchronousTestCase):
    """What can be said."""

    def test_servers(self) -> None:
        """Hosts with ports and weights, IPv6, sockets."""
        for url, servers in (
            ("memcached://h", (FleetServer("h"),)),
            ("memcached://h:1", (FleetServer("h", 1),)),
            ("memcached://h:11211:3,i:2:7", (FleetServer("h", 11211, 3), FleetServer("i", 2, 7))),
            ("memcached://[::1]:5,[::2]", (FleetServer("::1", 5), FleetServer("::2"))),
            ("memcached+unix:/run/m.sock", (FleetServer("/run/m.sock", 0),)),
            ("memcached+unix:///a,/b%20c", (FleetServer("/a", 0), FleetServer("/b c", 0))),
        ):
            self.assertEqual(parse_fleet(url).servers, servers)
            self.assertFalse(parse_fleet(url).tls)

    def test_parameters(self) -> None:
        """Each reaches its field."""
        options = parse_fleet(
            "memcacheds://h?distribution=jump&hash=murmur&hash-tag={}&gutter=g:1,g:2"
            "&gutter-expiry=5&connections=3&timeout=0.5&connect-timeout=1&ca=a&cert=c&key=k"
        )
        self.assertEqual(
            (options.distribution, options.hash, options.hash_tag), ("jump", "murmur", "{}")
        )
        self.assertEqual(options.gutter, (FleetServer("g", 1), FleetServer("g", 2)))
        self.assertEqual((options.gutter_expiry, options.connections), (5, 3))
        self.assertEqual((options.timeout, options.connect_timeout), (0.5, 1))
        self.assertEqual((options.ca, options.cert, options.key), tuple(map(Path, "ack")))
        self.assertTrue(options.tls)
        defaults = parse_fleet("memcached://h")
        self.assertEqual(
            (defaults.distribution, defaults.hash, defaults.connections, defaults.timeout),
            ("ketama", "md5", 2, 2.0),
        )
        self.assertEqual(parse_fleet("memcached://?pool-file=p").pool_file, Path("p"))
        self.assertEqual(parse_fleet("memcached://?discover=h:1").discover, ("h", 1))

    def test_refused(self) -> None:
        """What cannot be is refused with a reason that names it."""
        for url, word in (
            ("memcached:", "//HOST"),
            ("memcached://", "no server"),
            ("memcached://,", "HOST"),
            ("memcached://h,,i", "HOST"),
            ("memcached://h,h", "twice"),
            ("memcached://h,h:11211:5", "twice"),
            ("memcached://h:0", "port"),
            ("memcached://h:65536", "port"),
            ("memcached://h:x", "port"),
            ("memcached://h:", "port"),
            ("memcached://h:1:0", "weight"),
            ("memcached://h:1:-1", "weight"),
            ("memcached://h:1:1.5", "weight"),
            ("memcached://h:1:x", "weight"),
            ("memcached://h:1:", "weight"),
            ("memcached://h:1:2:3", "weight"),
            ("memcached://u@h", "logins"),
            ("memcached://h/x", "HOST"),
            ("memcached://h?distribution=md5", "distribution"),
            ("memcached://h?hash=sha1", "hash"),
            ("memcached://h?hash-tag={", "two characters"),
            ("memcached://h?password-file=x", "password-file"),
            ("memcached://h?ca=x", "memcacheds"),
            ("memcacheds://h?key=x", "cert"),
            ("memcached://h?gutter=", "server"),
            ("memcached://h?gutter=x:0", "port"),
            ("memcached://h?gutter-expiry=5", "gutter"),
            ("memcached://h?gutter=g&gutter-expiry=0.5", "seconds"),
            ("memcached://h?pool-file=p", "pool-file"),
            ("memcached://?pool-file=", "file"),
            ("memcached://?pool-file=p&discover=h:1", "discover"),
            ("memcached://?discover=h:1,i:2", "HOST:PORT"),
            ("memcached://h?connections=0", "connections"),
            ("memcached://h?timeout=0", "timeout"),
            ("memcached://h?wait=1", "gutter"),
            ("memcached+unix:", "path"),
            ("memcached+unix:/a,", "path"),
            ("memcache://h", "memcached"),
        ):
            with self.subTest(url=url):
                error = str(self.assertRaises(ConfigError, parse_fleet, url))
                self.assertIn(word, error.replace(url, ""))
                self.assertTrue(error.startswith("--store"))

    def test_is_fleet(self) -> None:
        """The scheme says so."""
        self.assertTrue(is_fleet("memcacheds://h"))
        self.assertFalse(is_fleet("memory:"))


class PoolFileTests(SynchronousTestCase):
    """Files that name servers."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def test_lines(self) -> None:
        """Line ends and commas separate, remarks and blank lines do not count."""
        self.path.write_text("# the fleet\nh:1:2, i:2\n\n  j  # a new one\n")
        self.assertEqual(
            read_pool(self.path), (FleetServer("h", 1, 2), FleetServer("i", 2), FleetServer("j"))
        )

    def test_refused(self) -> None:
        """An error names the file."""
        error = self.assertRaises(ConfigError, read_pool, self.path)
        self.assertIn("cannot be read", str(error))
        for content in (b"", b"# nothing\n", b"h:x", b"\xff", b"h\nh\n", b"h " * 200_000):
            self.path.write_bytes(content)
            error = self.assertRaises(ConfigError, read_pool, self.path)
            self.assertIn(str(self.path), str(error))
