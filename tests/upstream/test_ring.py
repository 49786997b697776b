"""Where keys are: known results, and what holds for every layout.

Reference clients judge the same in `tests.integration.test_fleet_ring`.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.hashes import HASHES, hash_64, murmur3_32
from kvproto.upstream.ring import DISTRIBUTIONS, FleetServer, jump_hash, make_ring
from tests.examples import examples

THREE = [FleetServer("127.0.0.1", port) for port in (11211, 11212, 11213)]
KEYS = [b"key:%d" % number for number in range(400)]


class HashTests(SynchronousTestCase):
    """Hashes of keys."""

    def test_murmur3(self) -> None:
        """The results of Austin Appleby's reference, seed 0."""
        for data, expected in (
            (b"", 0),
            (b"test", 0xBA6BD213),
            (b"Hello, world!", 0xC0363E43),
            (b"The quick brown fox jumps over the lazy dog", 0x2E4FF723),
        ):
            self.assertEqual(murmur3_32(data), expected)

    def test_fnv(self) -> None:
        """FNV-1a of 64 bits is the published one for jump, libmemcached's of 32 for the rest."""
        self.assertEqual(hash_64("fnv1a_64")(b"foobar"), 0x85944171F73967E8)
        self.assertEqual(HASHES["fnv1a_32"](b"foobar"), 0xBF9CF968)
        self.assertEqual(HASHES["fnv1a_64"](b""), 0x84222325)

    def test_others(self) -> None:
        """Known results."""
        self.assertEqual(HASHES["one_at_a_time"](b"a"), 0xCA2E9442)
        self.assertEqual(HASHES["crc32"](b"123456789"), 0xCBF43926 >> 16 & 0x7FFF)
        self.assertEqual(HASHES["md5"](b""), 0xD98C1DD4)

    @examples(100)
    @given(st.binary(max_size=250))
    def test_range(self, key: bytes) -> None:
        """Each gives 32 bits for whatever a key may be."""
        for name, function in HASHES.items():
            self.assertTrue(0 <= function(key) < 1 << 32, name)
            self.assertTrue(0 <= hash_64(name)(key) < 1 << 64, name)


class RingTests(SynchronousTestCase):
    """Layouts."""

    def test_jump(self) -> None:
        """The results of the paper's code, as other implementations test them."""
        for key, buckets, expected in (
            (1, 1, 0),
            (42, 57, 43),
            (0xDEAD10CC, 1, 0),
            (0xDEAD10CC, 666, 361),
            (256, 1024, 520),
        ):
            self.assertEqual(jump_hash(key, buckets), expected)

    def test_modula(self) -> None:
        """The hash modulo the number of servers, in the order given, whatever the weights."""
        weighted = [FleetServer("h", port, port) for port in (3, 1, 2)]
        ring = make_ring(weighted, "modula", "crc32")
        for key in KEYS:
            self.assertEqual(ring(key), HASHES["crc32"](key) % 3)

    def test_order(self) -> None:
        """Ketama and rendezvous go by names, so the order of servers does not matter."""
        turned = THREE[::-1]
        for name in ("ketama", "rendezvous"):
            ring, other = make_ring(THREE, name), make_ring(turned, name)
            for key in KEYS:
                self.assertEqual(THREE[ring(key)], turned[other(key)])

    def test_everybody_has_a_share(self) -> None:
        """No server is left out, and weights make shares of ketama."""
        for name in DISTRIBUTIONS:
            shares = Counter(map(make_ring(THREE, name), KEYS))
            self.assertEqual(sorted(shares), [0, 1, 2])
            self.assertGreater(min(shares.values()), 80)
        heavy = [FleetServer("a", 1, 8), FleetServer("b", 1, 1), FleetServer("c", 1, 1)]
        self.assertGreater(Counter(map(make_ring(heavy, "ketama"), KEYS))[0], 250)

    def test_few_keys_move(self) -> None:
        """With a server more, a consistent layout moves about its share and nothing else."""
        four = [*THREE, FleetServer("127.0.0.1", 11214)]
        for name in ("ketama", "rendezvous", "jump"):
            ring, grown = make_ring(THREE, name), make_ring(four, name)
            moved = [key for key in KEYS if ring(key) != grown(key)]
            self.assertTrue(all(grown(key) == 3 or name == "ketama" for key in moved))
            self.assertLess(len(moved), 180)

    def test_one_server(self) -> None:
        """A fleet of one has everything."""
        for name in DISTRIBUTIONS:
            ring = make_ring(THREE[:1], name)
            self.assertEqual({ring(key) for key in KEYS}, {0})

    def test_weights_far_apart(self) -> None:
        """A server whose weight gives it no point has no key; there is always somebody."""
        servers = [FleetServer("a", 1, 1), FleetServer("b", 1, 1_000_000)]
        self.assertEqual(set(map(make_ring(servers, "ketama"), KEYS)), {1})

    def test_usual_port(self) -> None:
        """Ketama leaves the usual port out, rendezvous does not."""
        self.assertEqual(FleetServer("h").ketama_name, "h")
        self.assertEqual(FleetServer("h").name, "h:11211")
        self.assertEqual(FleetServer("h", 1).ketama_name, "h:1")
        self.assertEqual(FleetServer("/run/m.sock", 0).ketama_name, "/run/m.sock")

    def test_tags(self) -> None:
        """Only what is between the marks counts, if there is something."""
        for name in DISTRIBUTIONS:
            ring = make_ring(THREE, name, tag="{}")
            plain = make_ring(THREE, name)
            for number in range(50):
                tag = b"user%d" % number
                self.assertEqual(ring(b"a{%b}b" % tag), plain(tag))
                self.assertEqual(ring(b"{%b}" % tag), plain(tag))
                for whole in (b"{}%b" % tag, b"{%b" % tag, b"%b}{" % tag):
                    self.assertEqual(ring(whole), plain(whole))
        dollars = make_ring(THREE, "ketama", tag="$$")
        self.assertEqual(dollars(b"x$tag$y"), make_ring(THREE, "ketama")(b"tag"))
