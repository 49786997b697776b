"""The SDK's tests again, the documents being in a Valkey or Redis server or cluster."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, ClassVar
from unittest import SkipTest

from tests.integration import test_sdk_collections as collections
from tests.integration import test_sdk_documents as documents
from tests.integration import test_sdk_subdoc as subdoc
from tests.integration.engines import shared_cluster, shared_server
from tests.integration.sdk import SDKTestCase, connect, steer
from tests.integration.service import KvtlsProcess
from tests.ports import free_port


class OnServer:
    """Lets the service of a class keep its documents in an empty server."""

    options: ClassVar[Any]
    service: ClassVar[KvtlsProcess]

    @classmethod
    def engine(cls) -> Any:
        """Return the engine."""
        return shared_server()

    @classmethod
    def start(cls) -> None:
        """Start the service; before the first test of the class."""
        engine = cls.engine()
        for server in getattr(engine, "servers", [engine]):
            server.cli("flushall")
        cls.service = KvtlsProcess(*cls.options or (), "--store", engine.url)


class WithoutTokens:
    """For classes that want mutation tokens."""

    def test_mutation_tokens(self) -> None:
        """There are none: an engine keeps no history that a token could name."""
        raise SkipTest("engines give no mutation tokens")


class MacrosWithoutTokens:
    """For classes that compare macros with a mutation token."""

    def test_macros(self) -> None:
        """Macros are held to the contract by `tests.integration.test_engine_contract`."""
        raise SkipTest("engines give no mutation tokens")


class OnCluster(OnServer):
    """The same with a cluster."""

    @classmethod
    def engine(cls) -> Any:
        return shared_cluster()


class ServerDocumentTests(WithoutTokens, OnServer, documents.DocumentTests):
    """Documents on a server."""


class ServerMemcachedModeTests(WithoutTokens, OnServer, documents.MemcachedModeTests):
    """Documents on a server, in memcached's mode."""


class ServerExpiryTests(OnServer, documents.ExpiryTests):
    """Expiry on a server."""


class ServerLockTests(OnServer, documents.LockTests):
    """Locks on a server."""


class ServerBinaryTests(OnServer, documents.BinaryTests):
    """Counters and raw bytes on a server."""


class ServerDurabilityTests(OnServer, documents.DurabilityTests):
    """Durability on a server without replicas."""


class ServerTransactionTests(OnServer, documents.TransactionTests):
    """Transactions on a server."""


class ServerCollectionTests(OnServer, collections.CollectionTests):
    """Collections on a server."""


class ServerLookupTests(OnServer, subdoc.LookupTests):
    """Lookups in documents on a server."""


class ServerMutateTests(MacrosWithoutTokens, OnServer, subdoc.MutateTests):
    """Mutations in documents on a server."""


class ClusterDocumentTests(WithoutTokens, OnCluster, documents.DocumentTests):
    """Documents on a cluster."""


class ClusterLockTests(OnCluster, documents.LockTests):
    """Locks on a cluster."""


class ClusterBinaryTests(OnCluster, documents.BinaryTests):
    """Counters and raw bytes on a cluster."""


class ClusterDurabilityTests(OnCluster, documents.DurabilityTests):
    """Durability on a cluster with its replicas."""


class ClusterTransactionTests(OnCluster, documents.TransactionTests):
    """Transactions on a cluster."""


class ClusterCollectionTests(OnCluster, collections.CollectionTests):
    """Collections on a cluster."""


class ClusterLookupTests(OnCluster, subdoc.LookupTests):
    """Lookups in documents on a cluster."""


class ClusterMutateTests(MacrosWithoutTokens, OnCluster, subdoc.MutateTests):
    """Mutations in documents on a cluster."""


class PeersTests(SDKTestCase):
    """Two services on one engine that name each other."""

    options = None

    def test_both_are_used_and_one_may_go(self) -> None:
        """The SDK connects to both; when one is killed it goes on with the other."""
        from couchbase.exceptions import CouchbaseException
        from couchbase.options import ClusterTimeoutOptions

        ports = [free_port(), free_port()]
        engine = shared_server()
        services = [
            KvtlsProcess(
                "--user", "alice:secret", "--store", engine.url,
                "--listen", f"tcp:{own}:interface=127.0.0.1", "--peer", f"127.0.0.1:{other}",
            )
            for own, other in (ports, ports[::-1])
        ]  # fmt: skip
        try:
            for running in services:
                running.wait_for_line(re.compile(r"peer 127\.0\.0\.1:\d+ answers"))
            # One trust store for both: each has a development CA of its own.
            ca = services[0].state_dir / "both.pem"
            ca.write_bytes(b"".join(one.ca_path.read_bytes() for one in services))
            timeouts = ClusterTimeoutOptions(kv_timeout=timedelta(seconds=2.5))
            cluster = connect(services[0], ca=ca, timeouts=timeouts)
            collection = cluster.bucket("default").default_collection()
            keys = [f"peer{number}" for number in range(64)]
            for key in keys:
                collection.upsert(key, key)

            self.until(
                lambda: all(len(steer(one, "connections")["connections"]) for one in services)
            )
            services[1].process.kill()

            def all_answer() -> bool:
                try:
                    return all(collection.get(key).content_as[str] == key for key in keys)
                except CouchbaseException:
                    return False

            self.until(all_answer)
            cluster.close()
        finally:
            for running in services:
                running.__exit__(None, None, None)
