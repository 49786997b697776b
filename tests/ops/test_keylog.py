"""TLS secrets in a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.ops import keylog
from kvproto.ops.keylog import KeyLog


class KeyLogTests(SynchronousTestCase):
    """A file that only its owner can read."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def open(self) -> KeyLog:
        log = KeyLog(self.path)
        self.addCleanup(log.close)
        return log

    def test_new_file(self) -> None:
        """It is made for its owner only, whatever the umask."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.open().write(b"CLIENT_RANDOM 00 11")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.path.read_bytes(), b"CLIENT_RANDOM 00 11\n")

    def test_appends(self) -> None:
        """What was there stays; two writers do not overwrite one another."""
        first, second = self.open(), self.open()
        first.write(b"one")
        second.write(b"two")
        first.write(b"three")
        self.assertEqual(self.path.read_bytes(), b"one\ntwo\nthree\n")

    def test_readable_by_others(self) -> None:
        """A file that its group or others may use in any way is refused, with what to do."""
        self.path.write_bytes(b"")
        for mode in (0o644, 0o640, 0o620, 0o610, 0o604, 0o602, 0o601):
            self.path.chmod(mode)
            error = self.assertRaises(ConfigError, KeyLog, self.path)
            self.assertIn("chmod 600", str(error), oct(mode))
            self.assertIn("--keylog", str(error))

    def test_somebody_elses(self) -> None:
        """A file of another user can be read by that one, whatever its mode."""
        self.path.touch(mode=0o600)
        self.patch(os, "geteuid", lambda: self.path.stat().st_uid + 1)
        error = self.assertRaises(ConfigError, KeyLog, self.path)
        self.assertIn("belongs to another user", str(error))

    def test_impossible(self) -> None:
        """What is no file that can be written is refused, and named."""
        link = Path(self.mktemp())
        link.symlink_to("/dev/null")
        pipe = Path(self.mktemp())
        os.mkfifo(pipe, 0o600)
        for path in (Path("/nonexistent/keys"), Path("/dev/null"), Path("/"), link, pipe):
            self.assertIn(str(path), str(self.assertRaises(ConfigError, KeyLog, path)))

    def test_failure_is_logged_once(self) -> None:
        """A full disk breaks no connection and does not fill the log."""
        log = self.open()
        logged: list[str] = []
        self.patch(keylog.log, "warn", lambda text, **_fields: logged.append(text))

        def full(_descriptor: int, _data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with_space = os.write
        self.patch(os, "write", full)
        log.write(b"one")
        log.write(b"two")
        self.assertEqual(len(logged), 1)
        self.patch(os, "write", with_space)
        log.write(b"three")
        self.patch(os, "write", full)
        log.write(b"four")
        self.assertEqual((len(logged), self.path.read_bytes()), (2, b"three\n"))

    def test_closed(self) -> None:
        """After closing, secrets are dropped; closing twice is harmless."""
        log = self.open()
        log.close()
        log.close()
        log.write(b"late")
        self.assertEqual(self.path.read_bytes(), b"")
