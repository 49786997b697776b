"""The SDK's tests again, the documents being kept in a directory."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any, ClassVar

from tests.integration import test_sdk_collections as collections
from tests.integration import test_sdk_documents as documents
from tests.integration import test_sdk_subdoc as subdoc
from tests.integration.service import KvtlsProcess


class InDirectory:
    """Lets the service of a class keep its documents in an empty directory."""

    sync = "everysec"
    options: ClassVar[Any]
    service: ClassVar[KvtlsProcess]
    directory: ClassVar[str]

    @classmethod
    def start(cls) -> None:
        """Start the service; before the first test of the class."""
        cls.directory = tempfile.mkdtemp(prefix="kvtls-test-")
        url = f"file:{cls.directory}/data?sync={cls.sync}"
        cls.service = KvtlsProcess(*cls.options or (), "--store", url)

    @classmethod
    def tearDownClass(cls) -> None:
        """End the service, and remove the directory."""
        super().tearDownClass()  # type: ignore[misc]
        shutil.rmtree(cls.directory, ignore_errors=True)


class FileDocumentTests(InDirectory, documents.DocumentTests):
    """Documents in a directory."""


class FileMemcachedModeTests(InDirectory, documents.MemcachedModeTests):
    """Documents in a directory, in memcached's mode."""


class FileLockTests(InDirectory, documents.LockTests):
    """Locks beside a directory."""


class FileBinaryTests(InDirectory, documents.BinaryTests):
    """Counters and raw bytes in a directory."""


class FileTransactionTests(InDirectory, documents.TransactionTests):
    """Transactions in a directory."""


class FileCollectionTests(InDirectory, collections.CollectionTests):
    """Collections in a directory."""


class FileLookupTests(InDirectory, subdoc.LookupTests):
    """Lookups in documents in a directory."""


class FileMutateTests(InDirectory, subdoc.MutateTests):
    """Mutations in documents in a directory."""


class FileDurabilityTests(InDirectory, documents.DurabilityTests):
    """Durability in a directory."""

    sync = "never"

    def test_persistence(self) -> None:
        """Writes with a persistence level succeed here."""
        from couchbase.durability import DurabilityLevel, ServerDurability
        from couchbase.options import UpsertOptions

        for level in (
            DurabilityLevel.PERSIST_TO_MAJORITY,
            DurabilityLevel.MAJORITY_AND_PERSIST_TO_ACTIVE,
        ):
            hard = UpsertOptions(durability=ServerDurability(level))
            for number in range(20):
                self.collection.upsert(self.key(str(number)), number, hard)
                found = self.collection.get(self.key(str(number)))
                self.assertEqual(found.content_as[int], number)


class AlwaysDocumentTests(FileDocumentTests):
    """Documents in a directory, every write on the disk before its answer."""

    sync = "always"


class AlwaysMutateTests(FileMutateTests):
    """Mutations in documents in a directory, each on the disk before its answer."""

    sync = "always"
