"""Backups: what is in them, what is refused, and that nothing stops meanwhile."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Collection, Config
from kvproto.dataplane import Backups, make_server
from kvproto.errors import CommandError
from kvproto.store import DocFlag, IListableStore, Key, MutationSpec, PathFlag, PathOp
from kvproto.testing.store_case import START

XATTR = [MutationSpec(PathOp.DICT_UPSERT, PathFlag.XATTR, b"_x", b'"1"')]


class BackupTests(SynchronousTestCase):
    """`Backups` over stores in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = START
        self.path = Path(self.mktemp()).absolute()

    def service(self, *collections: str, buckets: tuple[str, ...] = ("a", "b")) -> Any:
        """Make buckets."""
        config = Config(
            buckets=buckets,
            collections=tuple(Collection("s", name) for name in collections),
            memory_limit=64 << 20,
        )
        return make_server(config, self.clock).buckets

    def fill(self, buckets: Any) -> None:
        """Store one document of each kind in one bucket, and many in the other."""
        store = buckets["a"].store
        store.set(b"plain", b"value\0", 7, 0, datatype=1)
        store.set((8, b"named"), b"x" * 300_000, 0, 1000)
        store.mutate_in(b"xattr", XATTR, DocFlag.MKDOC)
        store.mutate_in(b"dead", XATTR, DocFlag.MKDOC)
        store.delete(b"dead")
        store.set(b"expired", b"", 0, 1)
        self.clock.advance(2)
        store.get_and_lock(b"plain", 30)
        for number in range(1000):
            buckets["b"].store.set(b"%d" % number, b"%d" % number)

    def everything(self, bucket: Any) -> dict[Key, Any]:
        return {
            key: (d.value, d.flags, d.cas, d.expires_at, d.datatype, d.xattrs, d.deleted)
            for piece in bucket.store.pieces()
            for key, d in piece
        }

    def run_all(self, answer: Deferred[Any]) -> Any:
        for _ in range(2000):
            self.clock.advance(0)
        return self.successResultOf(answer)

    def code(self, answer: Deferred[Any]) -> str:
        for _ in range(2000):
            self.clock.advance(0)
        failure = self.failureResultOf(answer, CommandError)
        self.reason = str(failure.value)
        assert isinstance(failure.value, CommandError)
        return failure.value.code

    def backups(self, buckets: Any) -> Backups:
        return Backups(buckets, self.clock, maybeDeferred)

    def test_everything_comes_back(self) -> None:
        """Values, flags, expiry, CAS, attributes, collections by name, tombstones; no locks."""
        buckets = self.service("c")
        self.fill(buckets)
        before = {name: self.everything(bucket) for name, bucket in buckets.items()}
        answer = self.run_all(self.backups(buckets).backup(self.path))
        self.assertEqual((answer["documents"], answer["file"]), (1004, str(self.path)))
        self.assertEqual(answer["bytes"], self.path.stat().st_size)
        self.assertEqual(self.path.stat().st_mode & 0o7777, 0o600)
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])
        others = self.service("new", "c")
        others["a"].store.set(b"stays", b"here")
        others["a"].store.set(b"plain", b"other")
        restored = self.run_all(self.backups(others).restore(self.path))
        self.assertEqual(restored, {"file": str(self.path), "documents": 1004})
        after = {name: self.everything(bucket) for name, bucket in others.items()}
        self.assertEqual(after["a"].pop(b"stays")[0], b"here")
        after["a"][8, b"named"] = after["a"].pop((9, b"named"))
        self.assertEqual(after, before)
        plain = others["a"].store.get(b"plain")
        self.assertEqual(plain.locked_until, 0.0)
        self.assertGreater(others["a"].store.set(b"next", b"").cas, plain.cas)

    def test_large_documents(self) -> None:
        """Not much more than a quarter of a MiB is made ready in one turn, however many come."""
        buckets = self.service(buckets=("a",))
        for number in range(50):
            buckets["a"].store.set(b"%d" % number, b"x" * 100_000)
        sizes = [0]

        def run(function: Any, *arguments: Any) -> Deferred[Any]:
            done = maybeDeferred(function, *arguments)
            sizes.extend(path.stat().st_size for path in self.path.parent.glob(".*"))
            return done

        self.run_all(Backups(buckets, self.clock, run).backup(self.path))
        written = [after - before for before, after in pairwise(sizes)]
        self.assertLess(max(written), (256 << 10) + 101_000)
        self.assertGreater(sum(written), 5_000_000)

    def test_not_whole(self) -> None:
        """A backup that is cut anywhere, or changed, or something else, changes nothing."""
        buckets = self.service("c")
        self.fill(buckets)
        self.run_all(self.backups(buckets).backup(self.path))
        data = self.path.read_bytes()
        other = self.service("c")
        for wrong in (
            b"",
            b"something else" * 100,
            data[:10],
            data[:100],
            data[: len(data) // 2],
            data[:-1],
            data[:-48],
            data + b"x",
            data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
            data[: len(data) // 2] + data[len(data) // 2 + 8 :],
        ):
            self.path.write_bytes(wrong)
            self.assertEqual(self.code(self.backups(other).restore(self.path)), "not-a-backup")
            self.assertIn(str(self.path), self.reason)
        self.assertEqual([self.everything(bucket) for bucket in other.values()], [{}, {}])

    def test_what_is_not_there(self) -> None:
        """A bucket or collection that the service does not have is named, nothing is changed."""
        buckets = self.service("c")
        self.fill(buckets)
        self.run_all(self.backups(buckets).backup(self.path))
        other = self.service()
        self.assertEqual(self.code(self.backups(other).restore(self.path)), "unknown-collection")
        self.assertIn("--collection a:s.c", self.reason)
        self.assertEqual(self.everything(other["b"]), {})
        alone = self.service("c", buckets=("a",))
        self.assertEqual(self.code(self.backups(alone).restore(self.path)), "unknown-bucket")
        missing = self.backups(buckets).restore(Path("/nowhere"))
        self.assertEqual(self.code(missing), "file")
        device = self.backups(buckets).backup(Path("/dev/null"))
        self.assertEqual(self.code(device), "file")

    def test_on_the_disk(self) -> None:
        """What is in it is forced to the disk before it has its name, and its name then."""
        forced = []

        def fsync(descriptor: int) -> None:
            forced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), self.path.exists()))

        self.patch(os, "fsync", fsync)
        buckets = self.service("c")
        self.fill(buckets)
        self.run_all(self.backups(buckets).backup(self.path))
        self.assertEqual(forced, [(False, False), (True, True)])

    def test_dropped_meanwhile(self) -> None:
        """A bucket that is dropped while or after its part is restored ends the restore by name."""
        buckets = self.service("c")
        self.fill(buckets)
        self.run_all(self.backups(buckets).backup(self.path))
        for name in ("a", "b"):
            others = self.service("c")
            restoring = self.backups(others).restore(self.path)
            del others[name]
            self.assertEqual(self.code(restoring), "unknown-bucket")
            self.assertIn(f"bucket '{name}' was dropped while {self.path}", self.reason)

    def test_one_at_a_time(self) -> None:
        """A second backup while one is under way is refused; requests are not."""
        buckets = self.service("c")
        self.fill(buckets)
        backups = self.backups(buckets)
        first = backups.backup(self.path)
        self.assertNoResult(first)
        self.assertEqual(self.code(backups.backup(self.path)), "busy")
        buckets["b"].store.set(b"meanwhile", b"")
        self.run_all(first)
        self.run_all(backups.backup(self.path))

    def test_failed_backup(self) -> None:
        """A disk without room leaves no file, and the old backup as it was."""
        buckets = self.service()
        self.fill(buckets)
        self.path.write_bytes(b"old")

        def run(function: Any, *args: Any) -> Deferred[Any]:
            if getattr(function, "__name__", "") == "end":
                raise OSError(28, "No space left on device")  # as `os.write` does
            return maybeDeferred(function, *args)

        failed = Backups(buckets, self.clock, run).backup(self.path)
        self.assertEqual(self.code(failed), "file")
        self.assertIn(f"{self.path}: No space left on device", self.reason)
        self.assertEqual(self.path.read_bytes(), b"old")
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])

    def test_left_by_a_killed_one(self) -> None:
        """What a backup that was killed half way has left goes with the next to the same name.

        In a container the next process may well have the number of the one that died.
        """
        buckets = self.service()
        self.fill(buckets)
        for number in (1, os.getpid()):
            self.path.with_name(f".{self.path.name}.{number}").write_bytes(b"kvproto backup1\nhalf")
        self.run_all(self.backups(buckets).backup(self.path))
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])

    def test_stores_that_cannot(self) -> None:
        """A store that cannot list its documents says so."""
        buckets = self.service()

        class Other:
            pass

        buckets["a"].store = Other()
        self.assertEqual(self.code(self.backups(buckets).backup(self.path)), "not-possible")
        self.assertTrue(IListableStore.providedBy(buckets["b"].store))
