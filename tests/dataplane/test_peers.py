"""Peers are named to clients while they answer, and not while they do not."""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Config
from kvproto.dataplane.peers import INTERVAL_S, PeerWatch
from kvproto.errors import ConfigError
from kvproto.server import KVServer
from kvproto.store import MemoryStore
from tests.upstream.fakes import FakeEndpoint

A, B = ("a", 1), ("b", 2)


class PeerWatchTests(SynchronousTestCase):
    """What is looked at, and what is told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoints = {peer: FakeEndpoint(self.clock) for peer in (A, B)}
        self.told: list[tuple[tuple[str, int], ...]] = []
        self.watch = PeerWatch([A, B], self.clock, self.told.append, self.endpoints.__getitem__)
        self.watch.startService()

    def test_peers_come_and_go(self) -> None:
        """Each change is told once, with all that answer."""
        self.assertEqual(self.told, [])
        self.endpoints[B].succeed()
        self.endpoints[A].succeed()
        self.assertEqual(self.told, [(B,), (A, B)])
        self.clock.advance(INTERVAL_S)
        self.endpoints[A].succeed()
        self.endpoints[B].fail()
        self.assertEqual(self.told[2:], [(A,)])
        self.clock.advance(INTERVAL_S)
        self.endpoints[A].fail()
        self.endpoints[B].fail()
        self.assertEqual(self.told[3:], [()])

    def test_changed(self) -> None:
        """Others can be looked at: those that stay are what they were, others leave nothing."""
        self.endpoints[A].succeed()
        self.endpoints[B].succeed()
        self.watch.change([B])
        self.assertEqual(self.told[2:], [(B,)])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(INTERVAL_S)
        self.watch.change([A])
        self.assertEqual(self.told[3:], [()])
        self.endpoints[B].succeed()
        self.endpoints[A].succeed()
        self.assertEqual(self.told[4:], [(A,)])
        self.watch.change([])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Once stopped, nothing is left of looks and timers."""
        self.endpoints[A].succeed()
        self.watch.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.endpoints[B].attempts, [])

    def test_no_peers(self) -> None:
        """Without peers nothing is done."""
        clock = Clock()
        watch = PeerWatch([], clock, self.told.append)
        watch.startService()
        self.assertEqual(clock.getDelayedCalls(), [])
        watch.stopService()

    def test_what_clients_are_told(self) -> None:
        """Configurations name the peers, deal out partitions, and are newer each time."""
        server = KVServer(MemoryStore(self.clock.seconds), now=lambda: 1000.0)
        bucket = server.buckets["default"]
        alone = json.loads(server.cluster_config(5, bucket))
        server.name_peers([A, ("::1", 2)])
        told = json.loads(server.cluster_config(5, bucket))
        self.assertGreater(told["rev"], alone["rev"])
        self.assertEqual(
            told["nodesExt"],
            [
                {"thisNode": True, "services": {"kvSSL": 5}},
                {"hostname": "a", "services": {"kvSSL": 1}},
                {"hostname": "::1", "services": {"kvSSL": 2}},
            ],
        )
        map_ = told["vBucketServerMap"]
        self.assertEqual(map_["serverList"], ["$HOST:5", "a:1", "[::1]:2"])
        self.assertEqual(map_["vBucketMap"][:4], [[0], [1], [2], [0]])
        server.name_peers([])
        again = json.loads(server.cluster_config(5, bucket))
        self.assertGreater(again.pop("rev"), told["rev"])
        alone.pop("rev")
        self.assertEqual(again, alone)

    def test_options(self) -> None:
        """Peers need a common engine, and are given once each."""
        error = self.assertRaises(ConfigError, Config, peers=(A,))
        self.assertIn("redis://", str(error))
        store = "redis://h"
        self.assertRaises(ConfigError, Config, peers=(A, A), store=store)
        self.assertEqual(Config(peers=(A, B), store=store).peers, (A, B))
