"""The SDK's tests again, the documents being in a Valkey or Redis server or cluster."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import SkipTest

from tests.integration import test_sdk_collections as collections
from tests.integration import test_sdk_documents as documents
from tests.integration import test_sdk_subdoc as subdoc
from tests.integration.engines import shared_cluster, shared_server
from tests.integration.service import KvtlsProcess


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
