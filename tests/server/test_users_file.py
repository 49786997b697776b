"""The users file: what is written is read, and nobody reads anything but whole files."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.server.passwords import HashVerifier, hash_password
from kvproto.server.users_file import (
    UserRecord,
    UsersFile,
    change_users,
    dump_users,
    load_users,
    read_users,
)

HASHES = hash_password("hunter2", 4096)


class TextTests(SynchronousTestCase):
    """The text of a users file."""

    def test_both_ways(self) -> None:
        """What was written is read again: hashes, and buckets where there are any."""
        users = {
            "alice": UserRecord(HASHES),
            "bob: or not?": UserRecord(HASHES, ("b", "a")),
            "nobody": UserRecord(HASHES, ()),
        }
        written = UsersFile(users)
        self.assertEqual(load_users(dump_users(written)), written)

    def test_password_is_not_in_it(self) -> None:
        """The password cannot be read in the file, and still is the right one."""
        text = dump_users(UsersFile({"alice": UserRecord(HASHES)}))
        self.assertNotIn("hunter2", text)
        verifier = HashVerifier(load_users(text).users["alice"].hashes)
        self.assertEqual((verifier.check(b"hunter2"), verifier.check(b"Hunter2")), (True, False))

    def test_malformed(self) -> None:
        """Anything else is refused by the option's name, without repeating what is in it."""
        good = json.loads(dump_users(UsersFile({"alice": UserRecord(HASHES)})))

        def changed(**fields: object) -> str:
            user = {**good["users"]["alice"], **fields}
            return json.dumps({"version": 1, "users": {"alice": user}})

        keys = good["users"]["alice"]["sha1"]
        for text in (
            "",
            "[]",
            "{}",
            "[" * 100_000,
            '{"version": 1}',
            '{"version": 2, "users": {}}',
            '{"version": 1, "users": []}',
            '{"version": 1, "users": {"alice": {}}}',
            '{"version": 1, "users": {"alice": null}}',
            changed(sha512=None),
            changed(sha1={**keys, "salt": "*hunter2*"}),
            changed(sha1={**keys, "salt": ""}),
            changed(sha1={**keys, "iterations": 0}),
            changed(sha1={**keys, "iterations": "many"}),
            changed(buckets="default"),
            changed(buckets=[1]),
            '{"version": 1, "users": {}, "secret": 7}',
        ):
            error = self.assertRaises(ConfigError, load_users, text)
            self.assertEqual(error.option, "--users", text)
            self.assertNotIn("hunter2", str(error))


class FileTests(SynchronousTestCase):
    """The file itself."""

    def setUp(self) -> None:
        """Have a directory."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "users.json"

    def add(self, name: str) -> None:
        with change_users(self.path) as users:
            users[name] = UserRecord(HASHES)

    def test_begun_and_changed(self) -> None:
        """A file is begun by its first user, and only its owner may read it."""
        self.add("alice")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.add("bob")
        self.assertEqual(set(read_users(self.path).users), {"alice", "bob"})
        self.assertEqual(os.listdir(self.directory), ["users.json"])

    def test_secret_stays(self) -> None:
        """The secret outlives changes; a file made by others may do without."""
        self.add("alice")
        secret = read_users(self.path).secret
        self.add("bob")
        self.assertEqual(read_users(self.path).secret, secret)
        bare = load_users('{"version": 1, "users": {}}')
        self.assertGreaterEqual(len(bare.secret), 32)

    def test_link_stays(self) -> None:
        """The file behind a symbolic link changes, the link stays one."""
        self.add("alice")
        link = self.directory / "link"
        link.symlink_to("users.json")
        with change_users(link) as users:
            del users["alice"]
        self.assertTrue(link.is_symlink())
        self.assertEqual(read_users(self.path).users, {})

    def test_failed_change(self) -> None:
        """A change that fails half-way changes nothing, and leaves nothing behind."""
        self.add("alice")
        before = self.path.read_text(encoding="utf-8")

        def fail() -> None:
            with change_users(self.path) as users:
                users.clear()
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, fail)
        self.assertEqual(self.path.read_text(encoding="utf-8"), before)
        self.assertEqual(os.listdir(self.directory), ["users.json"])

    def test_changes_at_once(self) -> None:
        """Of changes at the same time none is lost."""
        names = {f"user{number}" for number in range(16)}
        threads = [threading.Thread(target=self.add, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(set(read_users(self.path).users), names)

    def test_cannot_be_read(self) -> None:
        """A file that is missing, or is none of ours, is named in the error."""
        self.assertIn("users.json", str(self.assertRaises(ConfigError, read_users, self.path)))
        self.path.write_bytes(b"\xff\xfe")
        self.assertIn("users.json", str(self.assertRaises(ConfigError, read_users, self.path)))
        self.assertRaises(ConfigError, self.add, "alice")
        self.assertEqual(self.path.read_bytes(), b"\xff\xfe")
        self.path = self.directory / "no" / "users"
        self.assertRaises(ConfigError, self.add, "alice")
