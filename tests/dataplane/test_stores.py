"""The URL of ``--store`` becomes stores, or one clear error."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.config import Config, FileOptions, Mode, StoreURL, Sync, parse_file_url
from kvproto.dataplane import IStores, make_stores
from kvproto.errors import ConfigError


class URLTests(SynchronousTestCase):
    """What URLs say, and what they must not say."""

    def refused(self, text: str, mode: Mode = Mode.COUCHBASE) -> str:
        """Return why a URL cannot be used."""

        def use() -> None:
            if text.startswith("file:"):
                parse_file_url(StoreURL.parse(text))
            make_stores(Config(store=text, mode=mode), Clock())

        return str(self.assertRaises(ConfigError, use))

    def test_file(self) -> None:
        """The directory may be relative, absolute, percent-encoded, with slashes before it."""
        for text, expected in (
            ("file:data", FileOptions(Path("data"))),
            ("file:/var/lib/kv", FileOptions(Path("/var/lib/kv"))),
            ("file:///var/lib/kv", FileOptions(Path("/var/lib/kv"))),
            ("file://localhost/d", FileOptions(Path("/d"))),
            ("file:a%20b%3fc", FileOptions(Path("a b?c"))),
            ("file:d?sync=always", FileOptions(Path("d"), Sync.ALWAYS)),
            ("file:d?sync=everysec", FileOptions(Path("d"), Sync.EVERY_SECOND)),
            ("file:d?sync=never", FileOptions(Path("d"), Sync.NEVER)),
        ):
            self.assertEqual(parse_file_url(StoreURL.parse(text)), expected)

    def test_wrong(self) -> None:
        """What cannot be used is refused with what to do."""
        for text, hint in (
            ("", "memory:"),
            ("memory", "memory: or file:DIRECTORY"),
            ("memory:x", "--memory-limit"),
            ("memory:?sync=always", "no parameter 'sync'"),
            ("file:", "file:DIRECTORY"),
            ("file://", "file:DIRECTORY"),
            ("file:///", "file:DIRECTORY"),
            ("file://host/d", "file:///DIRECTORY"),
            ("file:a%00b", "file:DIRECTORY"),
            ("file:d?sync=sometimes", "always, everysec, never"),
            ("file:d?snyc=always", "did you mean sync?"),
            ("file:d?sync=always&sync=never", "sync is given twice"),
            ("file:d?sync", "NAME=VALUE"),
            ("memry:", "did you mean memory:?"),
            ("sqlite:d", "there are memory:"),
        ):
            reason = self.refused(text)
            self.assertTrue(reason.startswith("--store: "), reason)
            self.assertIn(hint, reason)

    def test_memcached_needs_its_mode(self) -> None:
        """A memcached fleet has no collections or locks, so it serves only its own mode."""
        self.assertIn("--mode memcached", self.refused("memcached://h"))
        self.assertNotIn("--mode memcached", self.refused("memcachedd:", Mode.MEMCACHED))

    def test_absolute(self) -> None:
        """Paths in a URL are made absolute, the rest stays."""
        here = Path(os.getcwd())
        for text, expected in (
            ("memory:", "memory:"),
            ("file:d?sync=always", f"file:{here}/d?sync=always"),
            ("file:///d e", "file:///d%20e"),
            ("redis://h:1/2?timeout=3", "redis://h:1/2?timeout=3"),
            ("redis+unix:run/s", f"redis+unix:{here}/run/s"),
            ("rediss://u@h?password-file=p&ca=/a", f"rediss://u@h?password-file={here}/p&ca=/a"),
        ):
            self.assertEqual(StoreURL.parse(text).absolute().text, expected)


class MemoryStoresTests(SynchronousTestCase):
    """The default."""

    def test_stores(self) -> None:
        """Every bucket has its store, at once and for ever ready."""
        stores = make_stores(Config(buckets=("a", "b")), Clock())
        self.assertTrue(verifyObject(IStores, stores))
        stores.prepare()
        self.successResultOf(stores.opened())
        self.assertIs(stores.store("a"), stores.store("a"))
        self.assertIsNot(stores.store("a"), stores.store("b"))
        self.assertIsNone(stores.ready())
        self.assertFalse(stores.store("a").persists)
        self.assertEqual(stores.status(), {"url": "memory:", "ready": True, "reason": ""})
