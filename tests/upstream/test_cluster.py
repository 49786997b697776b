"""A cluster's map: what each redirection and each kind of map does to it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.cluster import _MAX_SERVERS, ClusterEngine, _address
from kvproto.upstream.connection import Call
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.resp import EngineFailure, Fate, ReplyError, command
from kvproto.upstream.slots import Shard


class ClusterMapTests(SynchronousTestCase):
    """`ClusterEngine` that is not connected."""

    def setUp(self) -> None:
        self.engine = ClusterEngine(EngineOptions(servers=(("h", 1),)), Clock(), 0)
        self.replies: list[Any] = []

    def use(self, *shards: tuple[int, int, int]) -> None:
        """Believe a map: port, first and last slot of each primary."""
        self.engine._use([Shard(("h", port), [(first, last)]) for port, first, last in shards])

    def call(self, slot: int = 0) -> Call:
        return Call(b"", lambda reply, call: self.replies.append(reply), slot=slot)

    def test_redirections(self) -> None:
        """MOVED changes one slot, ASK none; nothing else leads anywhere."""
        for text, port, asking, moves in (
            ("MOVED 7 h:2", 2, False, True),
            ("ASK 7 h:2", 2, True, False),
            ("MOVED 7 :2", 2, False, True),
            ("MOVED 99999 h:2", 2, False, False),
            ("MOVED h:2", None, False, False),
            ("MOVED x h:2", None, False, False),
            ("MOVED 7 h:x", None, False, False),
            ("CLUSTERDOWN The cluster is down", None, False, False),
            ("READONLY no", None, False, False),
            ("ERR no", None, False, False),
        ):
            self.setUp()
            self.use((1, 0, 16383))
            call = self.call(7)
            call.server = self.engine.server_of(7)  # where no host is said, its own is meant
            found = self.engine.redirect(ReplyError(text), call)
            node = None if found is None else found[0].node
            self.assertEqual(node, None if port is None else ("h", port), text)
            if found is not None:
                self.assertIs(found[1], asking, text)
            place = self.engine.server_of(7)
            assert place is not None
            self.assertEqual(place.node, ("h", 2 if moves else 1), text)

    def test_addresses(self) -> None:
        """Addresses of the sixth version have colons of their own."""
        self.assertEqual(_address("MOVED 1 ::1:7000", None), ("::1", 7000))
        self.assertEqual(_address("ASK 1 [::1]:7000", None), ("::1", 7000))

    def test_too_many_servers(self) -> None:
        """A cluster cannot make us know any number of servers."""
        for port in range(_MAX_SERVERS):
            self.engine._server_of(("h", port))
        self.assertIsNone(self.engine.redirect(ReplyError("MOVED 1 h:5000"), self.call()))
        self.assertIsNotNone(self.engine.redirect(ReplyError("MOVED 1 h:5"), self.call()))

    def test_maps(self) -> None:
        """A whole map, one with holes, one without slots; servers without slots go."""
        self.assertIn("not known yet", self.engine.unready)
        self.use((1, 0, 8191), (2, 8192, 16383))
        self.assertEqual([server.node for server in self.engine.primaries], [("h", 1), ("h", 2)])
        self.assertIn("not connected yet", self.engine.unready)
        self.use((2, 0, 16382))
        self.assertIn("1 slots have no server", self.engine.unready)
        self.assertEqual([server.node for server in self.engine.servers], [("h", 2)])
        self.engine._use([Shard(("h", 3))])
        self.assertIn("no slots assigned", self.engine.unready)

    def ask_replicas(self, told: bytes) -> tuple[tuple[int, int], list[int]]:
        """Return what `replicas` finds for slot 0, and the slots whose primary it has asked."""
        asked: list[int] = []

        def ask(data: bytes, slot: int) -> Deferred[bytes]:
            self.assertEqual(data, command(b"INFO", b"replication"))
            asked.append(slot)
            return succeed(told)

        self.patch(self.engine, "ask", ask)
        return self.successResultOf(self.engine.replicas(0)), asked

    def test_replicas(self) -> None:
        """Those of the map; where it has none the primary tells, and what it had is missed."""
        none = b"# Replication\r\nrole:master\r\nconnected_slaves:0\r\n"
        slave = b"slave%d:ip=127.0.0.1,port=7,state=%b,offset=1,lag=0\r\n"
        two = b"connected_slaves:2\r\n" + slave % (0, b"online") + slave % (1, b"wait_bgsave")

        def use(*replicas: int, online: int) -> None:
            nodes = [("h", port) for port in replicas]
            self.engine._use([Shard(("h", 1), [(0, 16383)], nodes, online)])

        use(online=0)
        self.assertEqual(self.ask_replicas(none), ((0, 0), [0]))
        self.assertEqual(self.ask_replicas(two), ((2, 1), [0]))
        self.assertEqual(self.ask_replicas(none), ((2, 0), [0]))
        use(7, online=1)
        self.assertEqual(self.ask_replicas(two), ((2, 1), []))
        self.setUp()
        use(7, online=1)
        self.assertEqual(self.ask_replicas(none), ((1, 1), []))
        use(online=0)
        self.assertEqual(self.ask_replicas(none), ((1, 0), [0]))

    def test_slot_without_server(self) -> None:
        """A command for a slot that nobody has is refused as not performed."""
        for known in (False, True):
            if known:
                self.use((1, 0, 1))
            self.engine.send(self.call(16383))
            failure = self.replies.pop()
            self.assertIsInstance(failure, EngineFailure)
            self.assertEqual(
                (failure.fate, failure.reason), (Fate.NOT_PERFORMED, "cluster-down"), known
            )
