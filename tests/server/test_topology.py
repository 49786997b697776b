"""What clients are told about the cluster; a mistake here ends their process."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError
from kvproto.server import Bucket, KVServer, ServerSettings
from kvproto.server.topology import (
    VBUCKETS,
    ServicePorts,
    check_cluster_config,
    check_error_map,
    cluster_config,
    error_map,
)
from kvproto.store import MemoryStore
from kvproto.wire.constants import Opcode, Status
from tests.examples import examples
from tests.server.support import NOW, Link

UUID = "3fdc9c5b6a1e4f0b8f6f0c0de0d1e2f3"
GLOBAL = cluster_config({"kvSSL": 11207}, UUID, 5)
BUCKET = cluster_config({"kvSSL": 11207}, UUID, 5, ("default", UUID, 1))


class ConfigTests(SynchronousTestCase):
    """The configuration as it is made and checked."""

    def test_global(self) -> None:
        """Without a bucket it has nothing of one."""
        config = json.loads(GLOBAL)
        self.assertEqual(config["nodesExt"], [{"thisNode": True, "services": {"kvSSL": 11207}}])
        self.assertEqual((config["rev"], config["revEpoch"]), (5, 1))
        self.assertEqual(
            {"name", "uuid", "nodeLocator", "vBucketServerMap", "bucketCapabilities"} & set(config),
            set(),
        )

    def test_bucket(self) -> None:
        """With a bucket it has all partitions on this node, and no host name."""
        config = json.loads(BUCKET)
        self.assertEqual(config["name"], "default")
        self.assertEqual(config["vBucketServerMap"]["vBucketMap"], [[0]] * VBUCKETS)
        self.assertEqual(config["vBucketServerMap"]["numReplicas"], 0)
        self.assertEqual(config["collectionsManifestUid"], "1")
        self.assertNotIn("hostname", config["nodesExt"][0])

    @examples(100)
    @given(st.text(min_size=1, max_size=100), st.integers(1, 65535), st.integers(1, 2**40))
    def test_any_name(self, name: str, port: int, revision: int) -> None:
        """Whatever a bucket is called, the configuration is JSON that says so."""
        config = json.loads(cluster_config({"kvSSL": port}, UUID, revision, (name, UUID, 1)))
        self.assertEqual(config["name"], name)
        self.assertEqual(config["nodesExt"][0]["services"], {"kvSSL": port})

    def test_services(self) -> None:
        """A client finds the port it has come in by, and those of other services that are there."""
        ports = ServicePorts((11207, 11208), (11210,), 18091, 0)
        shared = {"mgmtSSL": 18091, "n1qlSSL": 18091, "kv": 11210}
        for port, secured in ((11207, 11207), (11208, 11208), (443, 443), (11210, 11207)):
            self.assertEqual(ports.services(port), {"kvSSL": secured, **shared})
        self.assertEqual(ServicePorts().services(5), {"kvSSL": 5})
        self.assertEqual(ServicePorts((), (5,)).services(5), {"kvSSL": 5, "kv": 5})
        check_cluster_config(
            cluster_config(ports.services(11210), UUID, 5, ("default", UUID, 1)), with_bucket=True
        )

    def test_mistakes(self) -> None:
        """Each mistake that is known to crash or hang a client is found."""

        def broken(change: Any) -> bytes:
            config = json.loads(BUCKET)
            change(config)
            return json.dumps(config).encode()

        for change in (
            lambda c: c.pop("nodesExt"),
            lambda c: c["nodesExt"].clear(),
            lambda c: c["nodesExt"][0].pop("services"),
            lambda c: c["nodesExt"][0].update(services={"kv": 11210}),
            lambda c: c["nodesExt"][0]["services"].update(fts=8094),
            lambda c: c["nodesExt"][0].update(services={"kvSSL": 0}),
            lambda c: c["nodesExt"][0].update(services={"kvSSL": 65536}),
            lambda c: c.pop("rev"),
            lambda c: c.update(rev=0),
            lambda c: c.update(rev="1"),
            lambda c: c.pop("vBucketServerMap"),
            lambda c: c["vBucketServerMap"].update(vBucketMap=[]),
            lambda c: c["vBucketServerMap"].update(vBucketMap=[[0]]),
            lambda c: c["vBucketServerMap"].update(vBucketMap=[[1]] * VBUCKETS),
            lambda c: c.update(name=""),
        ):
            with self.assertRaises(LocalProtocolError):
                check_cluster_config(broken(change), with_bucket=True)
        for text in (b"", b"{", b"[]", b"null", b"\xff"):
            with self.assertRaises(LocalProtocolError):
                check_cluster_config(text, with_bucket=True)
        with self.assertRaises(LocalProtocolError):
            check_cluster_config(BUCKET, with_bucket=False)
        with self.assertRaises(LocalProtocolError):
            check_cluster_config(GLOBAL, with_bucket=True)
        with self.assertRaises(LocalProtocolError):
            cluster_config({"kvSSL": 0}, UUID, 1)


class ErrorMapTests(SynchronousTestCase):
    """The error map as it is made and checked."""

    def test_versions(self) -> None:
        """The version is the client's, or ours if that is lower."""
        for asked, given_ in ((1, 1), (2, 2), (3, 2), (65535, 2)):
            found = json.loads(error_map(asked))
            self.assertEqual((found["version"], found["revision"]), (given_, 1))

    def test_names(self) -> None:
        """Each entry explains a status by its number."""
        for code in json.loads(error_map(2))["errors"]:
            Status(int(code, 16))

    def test_mistakes(self) -> None:
        """Each mistake that is known to crash a client is found."""
        for text in (
            b"",
            b"[]",
            b'{"version":2,"errors":{}}',
            b'{"version":2,"revision":1}',
            b'{"revision":1,"errors":{}}',
            b'{"version":2,"revision":"1","errors":{}}',
            b'{"version":2,"revision":1,"errors":{"x":{"name":"","desc":"","attrs":[]}}}',
            b'{"version":2,"revision":1,"errors":{"1":{"name":"","desc":""}}}',
            b'{"version":2,"revision":1,"errors":{"1":{"name":"","desc":1,"attrs":[]}}}',
            b'{"version":2,"revision":1,"errors":{"1":{"name":"","desc":"","attrs":["no"]}}}',
        ):
            with self.assertRaises(LocalProtocolError):
                check_error_map(text)


class RequestTests(SynchronousTestCase):
    """What a session answers."""

    def link(self, **settings: int) -> Link:
        buckets = [Bucket(name, MemoryStore(lambda: NOW, uuid=7)) for name in ("one", "two")]
        server = KVServer(
            buckets,
            ServerSettings(**settings),  # type: ignore[arg-type]
            now=lambda: NOW,
        )
        return Link(server)

    def config(self, link: Link) -> dict[str, Any]:
        response = link.call(Opcode.GET_CLUSTER_CONFIG)
        self.assertEqual((response.status, response.datatype), (0, 1))
        found = json.loads(response.value)
        self.assertIsInstance(found, dict)
        return dict(found)

    def test_global_until_selected(self) -> None:
        """Before SELECT_BUCKET it is the cluster's configuration, then the bucket's."""
        link = self.link()
        self.assertNotIn("name", self.config(link))
        link.call(Opcode.SELECT_BUCKET, key=b"two")
        self.assertEqual(self.config(link)["name"], "two")

    def test_port(self) -> None:
        """The port is the one that the client has come in by, unless the operator says another."""
        for address, setting, port in (
            (IPv4Address("TCP", "127.0.0.1", 4711), 0, 4711),
            (IPv4Address("TCP", "127.0.0.1", 4711), 5000, 5000),
            (UNIXAddress("/run/kv"), 0, 11207),
        ):
            link = self.link(advertised_port=setting)
            link.transport.host = address
            self.assertEqual(self.config(link)["nodesExt"][0]["services"], {"kvSSL": port})

    def test_known_version(self) -> None:
        """A client that knows this configuration gets an empty answer."""
        link = self.link()
        found = self.config(link)
        revision = found["rev"]
        for epoch, rev, empty in (
            (1, revision, True),
            (1, revision + 1, True),
            (2, 0, True),
            (1, revision - 1, False),
            (0, revision + 1, False),
            (-1, -1, False),
        ):
            extras = epoch.to_bytes(8, signed=True) + rev.to_bytes(8, signed=True)
            response = link.call(Opcode.GET_CLUSTER_CONFIG, extras=extras)
            self.assertEqual((response.status, not response.value), (0, empty))

    def test_last_change_is_newest(self) -> None:
        """Of servers that name each other, the one that changed last is believed.

        A client may have got the configuration of one that has since been killed, and must take
        the survivor's, however soon after.
        """
        clock = Clock()
        clock.advance(NOW + 0.2)
        bucket = Bucket("one", MemoryStore(clock.seconds, uuid=7))
        killed, survivor = (KVServer([bucket], now=clock.seconds) for _ in range(2))
        clock.advance(0.1)
        for server in (survivor, killed):
            server.name_peers([("127.0.0.1", 1)])
        killed.name_peers([])
        killed.name_peers([("127.0.0.1", 1)])
        clock.advance(0.3)
        survivor.name_peers([])
        self.assertGreater(survivor.revision, killed.revision)
        self.assertLess(survivor.revision, 2**53)

    def test_same_every_time(self) -> None:
        """Asked again, the answer is the same."""
        link = self.link()
        self.assertEqual(self.config(link), self.config(link))

    def test_shapes(self) -> None:
        """What does not belong into these requests is refused."""
        link = self.link()
        for opcode, fields in (
            (Opcode.GET_CLUSTER_CONFIG, {"key": b"x"}),
            (Opcode.GET_CLUSTER_CONFIG, {"extras": bytes(15)}),
            (Opcode.GET_ERROR_MAP, {}),
            (Opcode.GET_ERROR_MAP, {"value": b"\0\0"}),
            (Opcode.GET_ERROR_MAP, {"value": b"\2"}),
            (Opcode.GET_ERROR_MAP, {"value": b"\0\2", "key": b"x"}),
            (Opcode.GET_MANIFEST, {"value": b"x"}),
        ):
            self.assertEqual(link.call(opcode, **fields).status, Status.INVALID)

    def test_error_map(self) -> None:
        """The error map is to be had before the login."""
        link = Link(users={"alice": "secret"})
        response = link.call(Opcode.GET_ERROR_MAP, value=b"\0\2")
        self.assertEqual((response.status, response.datatype), (0, 1))
        self.assertEqual(json.loads(response.value)["version"], 2)
