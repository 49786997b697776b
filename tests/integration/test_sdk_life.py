"""The Couchbase SDK while the service rotates, restarts, is busy, and is measured."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from kvproto.testing.certificates import root_authority
from tests.integration.live import CredentialDirectory, new_server_identity
from tests.integration.sdk import SDKTestCase, closing, connect, steer
from tests.integration.service import PATIENCE, KvtlsProcess

MIB = 1024 * 1024


class Workers:
    """Threads of an application that reads and writes all the time.

    Args:
        collection: Where.
        writing: Whether they write; else they only read.
        count: How many.
    """

    def __init__(self, collection: Any, *, writing: bool = True, count: int = 3) -> None:
        self._collection = collection
        self._writing = writing
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(count)]
        self.done = 0
        self.faults: list[str] = []

    def _work(self, number: int) -> None:
        key, turn = f"worker-{number}", 0
        self._collection.upsert(key, turn)
        while not self._stop.is_set():
            try:
                if self._writing:
                    turn += 1
                    self._collection.upsert(key, turn)
                if self._collection.get(key).content_as[int] != turn:
                    self.faults.append("an answer is older than what was stored before")
            except Exception as error:
                self.faults.append(repr(error))
            self.done += 1

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def peers(service: KvtlsProcess) -> list[str]:
    """Return who is connected."""
    return sorted(str(one["peer"]) for one in steer(service, "connections")["connections"])


class OperatorTests(SDKTestCase):
    """What operators do to a running service."""

    options = None

    @contextmanager
    def service_at_work(
        self, *options: str, writing: bool = True
    ) -> Iterator[tuple[Any, CredentialDirectory, Workers]]:
        """Start a service with credential files of its own, and an application at work."""
        files = CredentialDirectory()
        self.addCleanup(files.remove)
        self.ca = files.path / "ca.pem"
        self.ca.write_bytes(root_authority().certificate_pem)
        with (
            KvtlsProcess(
                *["--certificate", str(files.chain), "--private-key", str(files.key)],
                *["--user", "alice:secret", "--watch-interval", "0", *options],
            ) as service,
            closing(connect(service, ca=self.ca)) as cluster,
        ):
            collection = cluster.bucket("default").default_collection()
            with Workers(collection, writing=writing) as workers:
                yield service, files, workers

    def some_work(self, workers: Workers) -> None:
        """Wait until the application has got some answers more."""
        wanted = workers.done + 30
        self.until(lambda: workers.done >= wanted)

    def test_rotation(self) -> None:
        """No operation fails while certificates rotate, and newcomers see the new one."""
        with self.service_at_work() as (service, files, workers):
            for generation in (2, 3, 4):
                files.serve(new_server_identity())
                self.assertTrue(steer(service, "reload", wait=True)["ok"])
                self.assertEqual(steer(service, "status")["generation"]["number"], generation)
                self.some_work(workers)
                with closing(connect(service, ca=self.ca)) as newcomer:
                    newcomer.bucket("default").default_collection().upsert(self.key(), generation)
        self.assertEqual(workers.faults, [])

    def test_restart(self) -> None:
        """No operation fails while listeners restart, and connections stay."""
        with self.service_at_work() as (service, _, workers):
            for _ in range(3):
                self.assertTrue(steer(service, "restart", listener="all")["ok"])
                self.some_work(workers)
                with closing(connect(service, ca=self.ca)) as newcomer:
                    newcomer.bucket("default").default_collection().upsert(self.key(), 1)
        self.assertEqual(workers.faults, [])

    def drained(self, *, writing: bool) -> list[str]:
        """Rotate with every connection closed between requests; return what failed."""
        options = ("--on-rotate", "drain", "--drain-window", "0.2")
        with self.service_at_work(*options, writing=writing) as (service, files, workers):
            for _ in range(3):
                before = set(peers(service))
                files.serve(new_server_identity())
                self.assertTrue(steer(service, "reload", wait=True)["ok"])
                self.until(partial(self.all_gone, service, before))
                self.some_work(workers)
        return workers.faults

    def all_gone(self, service: KvtlsProcess, before: set[str]) -> bool:
        return not before & set(peers(service))

    def test_draining_reads(self) -> None:
        """Reads do not fail when rotation closes connections: the SDK repeats them."""
        self.assertEqual(self.drained(writing=False), [])

    def test_draining_writes(self) -> None:
        """A write that crosses the closing is the application's to repeat, and all else goes on."""
        faults = self.drained(writing=True)
        self.assertEqual([one for one in faults if "RequestCanceled" not in one], [])
        self.assertLessEqual(len(faults), 3 * 3)

    def test_another_process(self) -> None:
        """When the service ends and another takes its place, the SDK goes on by itself."""
        from couchbase.exceptions import CouchbaseException

        with KvtlsProcess("--user", "alice:secret") as first:
            # Both have one state directory: the development CA is the same.
            ca = self.enterContext(tempfile.TemporaryDirectory())
            copy = shutil.copytree(first.state_dir / "development", Path(ca, "development"))
            port = first.port
            cluster = self.enterContext(closing(connect(first, ca=copy / "ca.pem")))
            collection = cluster.bucket("default").default_collection()
            collection.upsert(self.key(), 1)
            first.terminate()
        listen = ("--listen", f"tcp:{port}:interface=127.0.0.1")
        with KvtlsProcess("--user", "alice:secret", "--state-dir", ca, *listen):

            def works() -> bool:
                try:
                    collection.upsert(self.key(), 2)
                except CouchbaseException:
                    return False
                return True

            self.until(works)
            self.assertEqual(collection.get(self.key()).content_as[int], 2)


class ListenerTests(SDKTestCase):
    """Several ways in."""

    options = (
        *["--user", "alice:secret", "--bucket", "default", "--bucket", "other"],
        *["--listen", "tcp:0:interface=127.0.0.1", "--listen", "tcp:0:interface=127.0.0.1"],
    )

    def test_each_port(self) -> None:
        """Whichever port a client has dialled, it goes on using that one."""
        names = ("data-1", "data-2")
        for name, other, (_, port) in zip(
            names, reversed(names), self.service.addresses, strict=True
        ):
            with closing(connect(self.service, port=port)) as cluster:
                for bucket in ("default", "other"):
                    cluster.bucket(bucket).default_collection().upsert(self.key(), 1)
                here = steer(self.service, "connections", listener=name)["connections"]
                there = steer(self.service, "connections", listener=other)["connections"]
                self.assertEqual((len(here), len(there)), (3, 0))
            self.until(lambda: not steer(self.service, "connections")["connections"])


class SizeTests(SDKTestCase):
    """Large documents."""

    options = ("--user", "alice:secret", "--memory-limit", "256MiB")

    def test_large(self) -> None:
        """10 MB and 20 MiB are stored and read, 21 MiB refused on a connection that stays."""
        from couchbase.exceptions import CouchbaseException
        from couchbase.options import GetOptions, UpsertOptions
        from couchbase.transcoder import RawBinaryTranscoder

        raw = RawBinaryTranscoder()
        patience = timedelta(seconds=PATIENCE)
        reading = GetOptions(transcoder=raw, timeout=patience)
        writing = UpsertOptions(transcoder=raw, timeout=patience)

        self.collection.upsert(self.key(), 1)
        before = peers(self.service)
        for size in (10_000_000, 20 * MIB):
            value = bytes(range(256)) * (size // 256)
            self.collection.upsert(self.key(), value, writing)
            self.assertTrue(self.collection.get(self.key(), reading).value == value, size)
        for size in (20 * MIB + 1, 21 * MIB):
            with self.assertRaises(CouchbaseException) as caught:
                self.collection.upsert(self.key(), bytes(size), writing)
            self.assertIn("ec=104", str(caught.exception))
        self.assertTrue(self.collection.get(self.key(), reading).value == value)
        self.assertEqual(peers(self.service), before)


class CrowdedTests(SDKTestCase):
    """A service that has as many connections as it may."""

    options = ("--user", "alice:secret", "--max-connections", "2")

    def test_one_too_many(self) -> None:
        """Who comes too late hears so at once; who was there goes on, and leaves room."""
        from couchbase.exceptions import CouchbaseException

        with closing(connect(self.service)) as cluster:
            collection = cluster.bucket("default").default_collection()
            with self.assertRaises(CouchbaseException) as caught:
                connect(self.service)
            self.assertNotIn("imeout", str(caught.exception))
            collection.upsert(self.key(), 1)
        self.until(lambda: not peers(self.service))
        self.collection.upsert(self.key(), 2)


class CostTests(SDKTestCase):
    """What it costs."""

    options = ("--user", "alice:secret")

    def test_memory(self) -> None:
        """A service that an SDK has used takes a small amount of memory."""
        self.collection.upsert(self.key(), 1)
        self.assertLess(self.service.resident_kib(), 100 * 1024)

    def test_logins_do_not_hold_up_others(self) -> None:
        """While many log in with wrong passwords, others are answered."""
        from couchbase.exceptions import AuthenticationException

        faults: list[BaseException] = []

        def knock() -> None:
            try:
                connect(self.service, password="wrong")
            except AuthenticationException:
                pass
            except Exception as error:
                faults.append(error)

        self.collection.upsert(self.key(), 1)
        threads = [threading.Thread(target=knock) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            # By the SDK's own limit, 2.5 s each.
            self.collection.get(self.key())
        for thread in threads:
            thread.join()
        self.assertEqual(faults, [])
