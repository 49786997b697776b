"""What is created while the service serves, and found again by the next process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Collection, Config, User
from kvproto.dataplane import (
    Administration,
    BucketSettings,
    CreatedGroup,
    CreatedUser,
    Given,
    UsersReload,
    make_server,
    make_stores,
)
from kvproto.errors import CommandError, ConfigError
from kvproto.testing.store_case import START


class _Service:
    """As much of a service as there is to administer."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.stores = make_stores(config, clock, maybeDeferred)
        self.server = make_server(config, clock, maybeDeferred, self.stores)
        users = UsersReload(config, self.server, clock, maybeDeferred)
        self.administration = Administration(
            config, self.server, self.stores, users, clock, maybeDeferred
        )


class KeptTests(SynchronousTestCase):
    """``--store file:``."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = START
        self.directory = Path(self.mktemp()).absolute()
        self.options: dict[str, Any] = {
            "store": f"file:{self.directory}",
            "users": (User("root", "secret12"),),
        }

    def done(self, answer: Deferred[Any]) -> Any:
        """Let whatever waits go on, and return what came of it."""
        self.clock.pump([0.0] * 200)
        return self.successResultOf(answer)

    def logs_in(self, service: _Service, name: str, password: bytes) -> bool:
        right: bool = self.done(maybeDeferred(service.server.users.check, name, password))
        return right

    def code(self, answer: Deferred[Any]) -> str:
        self.clock.pump([0.0] * 200)
        error = self.failureResultOf(answer, CommandError).value
        assert isinstance(error, CommandError)
        return error.code

    def start(self, **changes: Any) -> _Service:
        service = _Service(Config(**(self.options | changes)), self.clock)
        service.stores.startService()
        self.done(service.stores.opened())
        self.done(service.administration.restore())
        self.addCleanup(self.stop, service)
        return service

    def stop(self, service: _Service) -> None:
        if service.stores.running:
            self.done(service.stores.stopService())

    def test_restart(self) -> None:
        """Buckets, collections, documents, users and indexes are there again."""
        service = self.start()
        made = service.administration
        readers = Given(("data_reader[made]",), ("made",))
        self.done(made.put_group("readers", CreatedGroup(readers, "may read", "cn=x")))
        bob_to_be = CreatedUser(Given((), ()), "Bob", ("readers",))
        magma = {"storageBackend": "magma"}
        settings = BucketSettings(flush=True, ram_quota=100, max_ttl=200, shown=magma)
        self.done(made.create_bucket("made", settings))
        for bucket in ("made", "default"):
            self.done(made.create_scope(bucket, "s"))
            self.done(made.create_scope(bucket, "empty"))
            self.done(made.create_collection(bucket, "s", "gone"))
            self.done(made.create_collection(bucket, "s", "c", 100))
            self.done(made.drop_collection(bucket, "s", "gone"))
            store = service.server.buckets[bucket].store
            manifest = service.server.buckets[bucket].manifest
            store.set((manifest.collection_id("s", "c"), b"k"), bucket.encode())
        self.done(made.create_index("made", "s", "c", "#primary"))
        self.done(made.put_user("bob", "swordfish", bob_to_be))
        eve = CreatedUser(Given(("admin",), None), "Eve")
        self.done(made.put_external_user("eve", eve))
        ids = {name: b.manifest.known_ids for name, b in service.server.buckets.items()}
        uids = {name: b.manifest.uid for name, b in service.server.buckets.items()}
        self.stop(service)
        self.assertEqual((self.directory / "management.json").stat().st_mode & 0o777, 0o600)

        service = self.start()
        self.assertEqual([*service.server.buckets], ["default", "made"])
        for name, there in service.server.buckets.items():
            self.assertEqual(there.manifest.known_ids, ids[name])
            self.assertGreaterEqual(there.manifest.uid, uids[name])
            self.assertEqual(there.manifest.scopes, ("_default", "s", "empty"))
            self.assertEqual([*there.manifest.collections][1:], [("s", "c")])
            document: Any = there.store.get((there.manifest.collection_id("s", "c"), b"k"))
            self.assertEqual(document.value, name.encode())
            self.assertEqual(document.expires_at, START + 100)
            found = there.manifest.settings("s", "c")
            self.assertEqual((found.max_ttl, found.history), (100, name == "made"))
            self.assertEqual(there.history, name == "made")
            again: Any = there.store.set((there.manifest.collection_id("s", "c"), b"new"), b"")
            self.assertEqual(again.expires_at, self.clock.seconds() + 100)
        plain: Any = service.server.buckets["made"].store.set(b"k", b"")
        self.assertEqual(plain.expires_at, self.clock.seconds() + 200)
        made = service.administration
        self.assertTrue(made.may_flush("made"))
        self.assertEqual(made.settings["made"].indexes, {"s.c": "#primary"})
        self.assertTrue(self.logs_in(service, "bob", b"swordfish"))
        bob = made.users.get("bob")
        assert bob is not None
        self.assertEqual((bob.name, bob.groups), ("Bob", ("readers",)))
        self.assertTrue(service.server.users.may_use("bob", "made"))
        self.assertFalse(service.server.users.may_use("bob", "default"))
        self.assertEqual(made.users.groups["readers"].ldap_group, "cn=x")
        self.assertEqual(made.users.external["eve"].given, Given(("admin",), None))
        # What is new is not mistaken for what was dropped.
        self.done(made.create_collection("made", "s", "gone"))
        gone = service.server.buckets["made"].manifest.collection_id("s", "gone")
        self.assertGreater(gone, max(ids["made"].values()))

    def test_dropped(self) -> None:
        """A bucket that was dropped is gone, files and all; one of its name is empty."""
        service = self.start()
        made = service.administration
        for _ in range(2):
            self.done(made.create_bucket("made", BucketSettings()))
            store = service.server.buckets["made"].store
            self.assertIsNone(store.get(b"k"))
            store.set(b"k", b"v")
            self.done(made.drop_bucket("made"))
        self.assertEqual(
            sorted(path.name for path in self.directory.glob("bucket-*")), ["bucket-default"]
        )
        self.stop(service)
        self.assertEqual([*self.start().server.buckets], ["default"])

    def test_files_that_cannot_be_moved(self) -> None:
        """Where a dropped bucket's files stay, the next one of its name is empty all the same."""
        service = self.start()
        made = service.administration
        self.done(made.create_bucket("made", BucketSettings()))
        service.server.buckets["made"].store.set(b"k", b"v")

        def refuse(*paths: Any) -> None:
            raise OSError(5, "Input/output error")

        patch = self.patch(os, "replace", refuse)
        dropped = made.drop_bucket("made")
        self.clock.pump([0.0] * 200)
        self.failureResultOf(dropped, OSError)
        patch.restore()
        self.assertEqual([*service.server.buckets], ["default"])
        self.done(made.create_bucket("made", BucketSettings()))
        self.assertIsNone(service.server.buckets["made"].store.get(b"k"))

    def test_files_that_cannot_be_removed(self) -> None:
        """They hold up nobody: neither a bucket of that name, nor the next start, which tries."""
        service = self.start()
        made = service.administration

        def refuse(path: Any) -> None:
            raise OSError(5, "Input/output error")

        patch = self.patch(shutil, "rmtree", refuse)
        for _ in range(2):
            self.done(made.create_bucket("made", BucketSettings()))
            service.server.buckets["made"].store.set(b"k", b"v")
            self.done(made.drop_bucket("made"))
        self.stop(service)
        service = self.start()
        self.assertEqual([*service.server.buckets], ["default"])
        self.stop(service)
        self.assertEqual(len([*self.directory.glob(".dropped-*")]), 2)
        patch.restore()
        self.start()
        self.assertEqual([*self.directory.glob(".dropped-*")], [])

    def test_half_dropped(self) -> None:
        """What was being removed when a process ended is removed by the next."""
        self.stop(self.start())
        (self.directory / ".dropped-old").mkdir()
        (self.directory / ".dropped-old" / "x").write_bytes(b"")
        self.start()
        self.assertFalse((self.directory / ".dropped-old").exists())

    def test_options_win(self) -> None:
        """A bucket, collection or user that the options have meanwhile is theirs."""
        service = self.start()
        made = service.administration
        self.done(made.create_bucket("made", BucketSettings()))
        self.done(made.create_scope("made", "s"))
        self.done(made.create_collection("made", "s", "c"))
        self.done(made.put_user("bob", "swordfish", CreatedUser(Given(("admin",), None))))
        self.stop(service)
        service = self.start(
            buckets=("default", "made"),
            collections=(Collection("s", "c", "made"),),
            users=(User("bob", "of-the-options"),),
        )
        self.assertEqual([*service.server.buckets["made"].manifest.collections][1:], [("s", "c")])
        self.assertFalse(self.logs_in(service, "bob", b"swordfish"))
        self.assertTrue(self.logs_in(service, "bob", b"of-the-options"))

    def test_damaged(self) -> None:
        """A file that cannot be read is named, and the start refused."""
        self.stop(self.start())
        for text in ("", "{", "[]", "{}", json.dumps({"version": 2})):
            (self.directory / "management.json").write_text(text, encoding="utf-8")
            service = _Service(Config(**self.options), self.clock)
            with self.assertRaises(ConfigError) as raised:
                service.stores.prepare()
            self.assertIn("management.json", str(raised.exception))

    def test_nonsense(self) -> None:
        """A file that says what cannot be is named when the service begins to serve."""
        self.stop(self.start())
        text = json.dumps({"version": 1, "buckets": {"made": {}}})
        (self.directory / "management.json").write_text(text, encoding="utf-8")
        service = _Service(Config(**self.options), self.clock)
        service.stores.startService()
        self.done(service.stores.opened())
        restoring = service.administration.restore()
        self.failureResultOf(restoring, ConfigError)
        self.stop(service)

    def test_disk_full(self) -> None:
        """What could not be kept is an error; the service goes on."""
        service = self.start()

        def refuse(_: Any) -> Deferred[None]:
            return fail(OSError(28, "No space left on device"))

        stores: Any = service.stores
        keep, stores.keep = stores.keep, refuse
        self.clock.pump([0.0] * 10)
        self.failureResultOf(service.administration.create_scope("default", "s"), OSError)
        stores.keep = keep
        self.done(service.administration.create_scope("default", "t"))
        self.assertIn("t", service.server.buckets["default"].manifest.scopes)

    def test_one_after_the_other(self) -> None:
        """Two who want the same bucket at once: one has it."""
        made = self.start().administration
        answers = [made.create_bucket("made", BucketSettings()) for _ in range(2)]
        self.done(answers[0])
        self.assertEqual(self.code(answers[1]), "exists")
