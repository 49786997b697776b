"""``kvtls passwd``: users come and go, and their passwords are nobody's business."""

from __future__ import annotations

import contextlib
import getpass
import io
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto import cli
from kvproto.server.passwords import DEFAULT_ITERATIONS, HashVerifier
from kvproto.server.users_file import UserRecord, read_users


class Terminal(io.StringIO):
    """A stdin at which somebody sits."""

    def isatty(self) -> bool:
        """Say so."""
        return True


class PasswdTests(SynchronousTestCase):
    """The command, as it is typed."""

    def setUp(self) -> None:
        """Have a place for the file."""
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "users"

    def run_passwd(self, *arguments: str, stdin: io.StringIO) -> tuple[int, str]:
        """Return exit status and what was printed, to wherever."""
        written = io.StringIO()
        self.patch(sys, "stdin", stdin)
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            status = cli.main(["passwd", "--users", str(self.path), *arguments])
        return status, written.getvalue()

    def good(self, *arguments: str, password: str = "") -> None:
        status, text = self.run_passwd(*arguments, stdin=io.StringIO(password))
        self.assertEqual(status, cli.OK, text)

    def refused(self, *arguments: str, password: str = "") -> str:
        before = self.path.read_bytes() if self.path.exists() else None
        status, text = self.run_passwd(*arguments, stdin=io.StringIO(password))
        self.assertEqual(status, cli.FAILED)
        self.assertEqual(text.count("\n"), 1, text)
        self.assertEqual(self.path.read_bytes() if self.path.exists() else None, before)
        return text

    def user(self, name: str = "alice") -> UserRecord:
        return read_users(self.path).users[name]

    def test_added_and_changed(self) -> None:
        """The first line of stdin becomes the password, of a new user and of a known one."""
        for password in (b"one two", b"three"):
            self.good("alice", password=f"{password.decode()}\nnot this\n")
            self.assertTrue(HashVerifier(self.user().hashes).check(password))
        self.assertFalse(HashVerifier(self.user().hashes).check(b"one two"))

    def test_iterations(self) -> None:
        """Hashing is as slow as asked for, within limits; the help tells the default."""
        self.good("alice", "--iterations", "5000", password="x\n")
        self.assertEqual(self.user().hashes["sha1"].iterations, 5000)
        self.assertIn("--iterations", self.refused("alice", "--iterations", "10", password="x\n"))
        help_text = io.StringIO()
        with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
            cli.main(["passwd", "--help"])
        self.assertIn(f"default: {DEFAULT_ITERATIONS}", help_text.getvalue())

    def test_buckets(self) -> None:
        """Buckets are kept when only the password changes, and replaced when given."""
        self.good("alice", password="x\n")
        self.assertIsNone(self.user().buckets)
        self.good("alice", "--bucket", "b", "--bucket", "a", password="x\n")
        self.good("alice", password="y\n")
        self.assertEqual(self.user().buckets, ("b", "a"))

    def test_removed(self) -> None:
        """A user can be removed, once."""
        self.good("alice", password="x\n")
        self.good("bob", password="x\n")
        self.good("--delete", "alice")
        self.assertEqual(set(read_users(self.path).users), {"bob"})
        self.assertIn("alice", self.refused("--delete", "alice"))

    def test_refused(self) -> None:
        """What cannot be a name or a password is refused, and not repeated."""
        self.assertIn("empty", self.refused("alice"))
        self.assertIn("empty", self.refused("", password="x\n"))
        self.assertNotIn("hunter2", self.refused("alice", password="hunter2\x07\n"))
        self.path.write_text("my shopping list")
        self.refused("alice", password="x\n")

    def test_prompt(self) -> None:
        """At a terminal the password is asked for twice, and not shown."""
        answers = ["secret", "secret", "one", "other"]
        self.patch(getpass, "getpass", lambda prompt: answers.pop(0))
        self.assertEqual(self.run_passwd("alice", stdin=Terminal())[0], cli.OK)
        self.assertTrue(HashVerifier(self.user().hashes).check(b"secret"))
        self.assertEqual(self.run_passwd("alice", stdin=Terminal())[0], cli.FAILED)
