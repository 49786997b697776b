"""Where reference clients put their keys: twemproxy, libmemcached, pymemcache."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence

from pymemcache.client.hash import HashClient
from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.hashes import HASHES
from kvproto.upstream.ring import FleetServer, make_ring
from tests.integration.memcached import Memcached
from tests.integration.nutcracker import Nutcracker
from tests.integration.peers import require

KEYS = [b"key:%d" % number for number in range(380)] + [
    f"schlüssel-{number}".encode() for number in range(20)
]
FLEETS = (
    [FleetServer("127.0.0.1", port) for port in (11211, 11212, 11213)],
    [FleetServer(f"10.0.0.{number}", 11211, 1 + number * 7 % 9) for number in range(1, 9)],
    [FleetServer("h", 1, 1), FleetServer("h", 2, 3), FleetServer("i", 11211, 700)],
)


class LibmemcachedTests(SynchronousTestCase):
    """libmemcached itself says where it would go."""

    _BEHAVIOUR_HASH, _BEHAVIOUR_KETAMA_WEIGHTED = 2, 16
    _NUMBERS = {
        "one_at_a_time": 0, "md5": 1, "crc32": 2, "fnv1a_64": 4, "fnv1a_32": 6, "murmur": 8,
    }  # fmt: skip

    def setUp(self) -> None:
        # Debian's tools bring the library.
        require("memccapable", "libmemcached-tools")
        self.library = library = ctypes.CDLL("libmemcached.so.11")
        library.memcached_create.restype = ctypes.c_void_p
        library.memcached_create.argtypes = [ctypes.c_void_p]
        library.memcached_free.argtypes = [ctypes.c_void_p]
        library.memcached_server_add_with_weight.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint16, ctypes.c_uint32,
        ]  # fmt: skip
        library.memcached_behavior_set.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64,
        ]  # fmt: skip
        library.memcached_generate_hash.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip
        library.memcached_generate_hash.restype = ctypes.c_uint32

    def places(self, servers: Sequence[FleetServer], name: str, *, ketama: bool) -> list[int]:
        """Ask for the server of each key."""
        library = self.library
        client = library.memcached_create(None)
        for server in servers:
            library.memcached_server_add_with_weight(
                client, server.host.encode(), server.port, server.weight
            )
        if ketama:
            library.memcached_behavior_set(client, self._BEHAVIOUR_KETAMA_WEIGHTED, 1)
        library.memcached_behavior_set(client, self._BEHAVIOUR_HASH, self._NUMBERS[name])
        found = [library.memcached_generate_hash(client, key, len(key)) for key in KEYS]
        library.memcached_free(client)
        return found

    def test_all(self) -> None:
        """Ketama and modula, with each hash: 400 keys of 400."""
        for servers in FLEETS:
            for name in HASHES:
                for distribution in ("ketama", "modula"):
                    ring = make_ring(servers, distribution, name)
                    expected = self.places(servers, name, ketama=distribution == "ketama")
                    with self.subTest(hash=name, distribution=distribution):
                        self.assertEqual(list(map(ring, KEYS)), expected)


class PymemcacheTests(SynchronousTestCase):
    """pymemcache's HashClient says where it would go."""

    def test_rendezvous(self) -> None:
        """400 keys of 400, for each fleet."""
        for servers in FLEETS:
            client = HashClient([(server.host, server.port) for server in servers])
            ring = make_ring(servers, "rendezvous")
            for key in KEYS:
                self.assertEqual(servers[ring(key)].name, client.hasher.get_node(key.decode()))


class NutcrackerTests(SynchronousTestCase):
    """What twemproxy has stored is looked for, and found, on real servers."""

    def setUp(self) -> None:
        self.memcached = []
        for _ in range(3):
            server = Memcached()
            self.addCleanup(server.kill)
            self.memcached.append(server)
        # twemproxy sorts its servers by the length of their names, then by the names.
        self.memcached.sort(key=lambda server: (len(server.name), server.name))

    def judge(self, distribution: str, name: str, weights: tuple[int, ...], tag: str = "") -> None:
        """Store by way of twemproxy, and look where our ring says."""
        proxy = Nutcracker(
            [f"{one.name}:{weight}" for one, weight in zip(self.memcached, weights, strict=True)],
            distribution,
            name,
            tag,
        )
        self.addCleanup(proxy.kill)
        keys = KEYS + ([b"k%d{user%d}" % (n, n % 40) for n in range(100)] if tag else [])
        for one in self.memcached:
            one.ask(b"flush_all")
        proxy.store(keys)
        servers = [
            FleetServer("127.0.0.1", one.port, weight)
            for one, weight in zip(self.memcached, weights, strict=True)
        ]
        ring = make_ring(servers, distribution, name, tag)
        wanted: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
        for key in keys:
            wanted[ring(key)].append(key)
        for number, own in wanted.items():
            answer = b"END" if not own else self.memcached[number].ask(b"get " + b" ".join(own))
            self.assertEqual(answer.count(b"VALUE "), len(own))

    def test_ketama(self) -> None:
        """Weighted or not, with each of the hashes that it has."""
        self.judge("ketama", "md5", (1, 1, 1))
        self.judge("ketama", "md5", (1, 3, 7))
        for name in ("fnv1a_64", "fnv1a_32", "murmur", "crc32", "one_at_a_time"):
            self.judge("ketama", name, (1, 2, 1))

    def test_modula(self) -> None:
        """Hash modulo servers."""
        self.judge("modula", "md5", (1, 1, 1))
        self.judge("modula", "fnv1a_64", (1, 1, 1))

    def test_tags(self) -> None:
        """Only what is between braces counts."""
        self.judge("ketama", "fnv1a_64", (1, 1, 1), "{}")
