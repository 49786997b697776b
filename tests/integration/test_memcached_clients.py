"""Clients of today's memcached, each as its documentation uses it.

They are no dependencies of the tests: a client that is not installed is skipped with the name of
its package on PyPI, npm or Debian.  The sessions are the service's own, on a plain TCP port.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.engines import RedisServer
from tests.integration.memcached import Memcached
from tests.integration.service import ENGINES, PATIENCE, STORE
from tests.integration.test_random_against_memcached import serve_store
from tests.integration.test_text_against_memcached import OURS

LOGIN = OURS.replace("import KVServer,", "import UserTable, KVServer,").replace(
    "server = KVServer(store, ServerSettings(",
    'users = UserTable.of_passwords({"alice": "secret"}, iterations=1)\n'
    "server = KVServer(store, users=users, settings=ServerSettings(",
)


def need(module: str, package: str) -> Any:
    """Return a module; skip the test where its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise SkipTest(f"{package} is not installed") from e


class ClientCase(SynchronousTestCase):
    """A server for each test: the sessions alone, or a whole service where `STORE` asks for one."""

    def serve(self, program: str = OURS) -> int:
        if STORE != "memory":
            return serve_store(self, *(("--user", "alice:secret") if program is LOGIN else ()))
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        return int(process.stdout.readline())


class MetaMemcacheTests(ClientCase):
    """meta-memcache: meta commands only, with leases and recaching.

    Attributes:
        counted_cas: Whether a CAS is a small number.
    """

    counted_cas = STORE not in ENGINES

    def client(self) -> Any:
        library = need("meta_memcache", "meta-memcache")
        return library.CacheClient.cache_client_from_servers(
            servers=[library.ServerAddress("127.0.0.1", self.serve())],
            connection_pool_factory_fn=library.connection_pool_factory_builder(),
        )

    def test_everyday(self) -> None:
        """Storing, reading, counting, deleting, several keys, binary keys."""
        library = need("meta_memcache", "meta-memcache")
        client = self.client()
        self.assertTrue(client.set("key", {"a": [1, 2]}, ttl=60))
        self.assertEqual(client.get("key"), {"a": [1, 2]})
        self.assertIsNone(client.get("other"))
        self.assertEqual(client.multi_get(["key", "other"])[library.Key("key")], {"a": [1, 2]})
        only_new = {"ttl": 60, "set_mode": library.SetMode.ADD}
        self.assertFalse(client.set("key", 1, **only_new))
        self.assertTrue(client.set("new", 1, **only_new))
        self.assertEqual(
            client.delta_initialize("n", delta=2, initial_value=40, initial_ttl=60), True
        )
        self.assertEqual(client.delta_and_get("n", delta=2), 42)
        self.assertEqual(client.delta_and_get("n", delta=-50), 0)
        value, cas = client.get_cas("key")
        self.assertEqual(value, {"a": [1, 2]})
        self.assertTrue(client.set("key", "next", ttl=60, cas_token=cas))
        # Its tokens have 32 bits: one that does not fit is left out, and the value lost.
        self.assertEqual(client.set("key", "lost", ttl=60, cas_token=cas), not self.counted_cas)
        self.assertTrue(client.touch("key", ttl=30))
        self.assertTrue(client.set("schlüssel mit leerzeichen", b"bytes", ttl=60))
        self.assertEqual(client.get("schlüssel mit leerzeichen"), b"bytes")
        self.assertTrue(client.delete("key"))
        self.assertIsNone(client.get("key"))

    def test_leases(self) -> None:
        """One client fetches what is missing; others get what it stored."""
        library = need("meta_memcache", "meta-memcache")
        client = self.client()
        policy = library.LeasePolicy(ttl=30, miss_retries=2, miss_retry_wait=0.01)
        self.assertIsNone(client.get_or_lease("leased", policy))
        self.assertIsNone(client.get_or_lease("leased", policy))
        self.assertTrue(client.set("leased", "fetched", ttl=60))
        self.assertEqual(client.get_or_lease("leased", policy), "fetched")

    def test_recache(self) -> None:
        """Near its end a value is missed by one client, and by one only."""
        library = need("meta_memcache", "meta-memcache")
        client = self.client()
        policy = library.RecachePolicy(ttl=30)
        client.set("old", "value", ttl=20)
        self.assertIsNone(client.get("old", recache_policy=policy))
        self.assertEqual(client.get("old", recache_policy=policy), "value")

    def test_invalidate(self) -> None:
        """What is invalidated with a stale policy is shown until it was fetched anew."""
        library = need("meta_memcache", "meta-memcache")
        client = self.client()
        stale = library.StalePolicy(mark_stale_on_deletion_ttl=30)
        client.set("key", "value", ttl=60)
        self.assertTrue(client.invalidate("key", stale_policy=stale))
        self.assertIsNone(client.get("key"))
        self.assertEqual(client.get("key"), "value")


class MetaThroughFleetTests(MetaMemcacheTests):
    """The same, with values in a memcached fleet behind the service."""

    def serve(self, program: str = OURS) -> int:
        """Start the service in front of a memcached; return its port."""
        server = Memcached()
        self.addCleanup(server.kill)
        return serve_store(self, "--store", f"memcached://{server.name}")


class MetaThroughEngineTests(MetaMemcacheTests):
    """The same, with values in an engine behind the service."""

    counted_cas = False

    def serve(self, program: str = OURS) -> int:
        """Start the service in front of an engine; return its port."""
        return serve_store(self, "--store", self.enterContext(RedisServer()).url)


class PylibmcTests(ClientCase):
    """pylibmc, that is libmemcached, in both of its protocols."""

    def test_everyday(self) -> None:
        """Storing, reading, counting, -1 as an expiry, several keys."""
        library = need("pylibmc", "pylibmc")
        port = self.serve()
        for binary in (False, True):
            client = library.Client([f"127.0.0.1:{port}"], binary=binary, behaviors={"cas": True})
            client.flush_all()
            self.assertTrue(client.set("key", {"a": 1}, time=60))
            self.assertEqual(client.get("key"), {"a": 1})
            client.set("n", 40)
            self.assertEqual(client.incr("n", 2), 42)
            self.assertEqual(client.get_multi(["key", "n", "no"]), {"key": {"a": 1}, "n": 42})
            self.assertTrue(client.touch("key", 30))
            value, cas = client.gets("key")
            self.assertTrue(client.cas("key", "b", cas))
            self.assertEqual(value, {"a": 1})
            if not binary:
                client.set("gone", "x", time=-1)
                self.assertIsNone(client.get("gone"))
            self.assertTrue(client.delete("key"))
            self.assertIn("pid", {name: 1 for _, found in client.get_stats() for name in found})


class DjangoTests(ClientCase):
    """Django's cache backends on pymemcache and pylibmc."""

    def backend(self, name: str) -> Any:
        settings = need("django.conf", "django").settings
        if not settings.configured:
            settings.configure()
        backends = need("django.core.cache.backends.memcached", "django")
        return getattr(backends, name)(f"127.0.0.1:{self.serve()}", {})

    def everyday(self, cache: Any) -> None:
        cache.set("key", [1, 2], 60)
        self.assertEqual(cache.get("key"), [1, 2])
        cache.set("over", "x", timeout=0)
        self.assertIsNone(cache.get("over"))
        cache.set("ever", "x", timeout=None)
        self.assertEqual(cache.get("ever"), "x")
        self.assertFalse(cache.add("key", 1))
        cache.set("n", 1)
        self.assertEqual(cache.incr("n", 4), 5)
        self.assertRaises(ValueError, cache.incr, "absent")
        cache.set_many({"a": 1, "b": 2}, 60)
        self.assertEqual(cache.get_many(["a", "b", "c"]), {"a": 1, "b": 2})
        self.assertTrue(cache.touch("key", 0))
        self.assertIsNone(cache.get("key"))
        cache.set("late", "x", 60 * 60 * 24 * 31)
        self.assertEqual(cache.get("late"), "x")
        self.assertTrue(cache.delete("a"))
        cache.clear()
        self.assertIsNone(cache.get("b"))

    def test_pymemcache(self) -> None:
        """PyMemcacheCache."""
        need("pymemcache", "pymemcache")
        self.everyday(self.backend("PyMemcacheCache"))

    def test_pylibmc(self) -> None:
        """PyLibMCCache."""
        need("pylibmc", "pylibmc")
        self.everyday(self.backend("PyLibMCCache"))


class AsyncioTests(ClientCase):
    """Clients for asyncio."""

    def test_emcache(self) -> None:
        """emcache, with and without its text login."""
        library = need("emcache", "emcache")

        async def use(port: int, **options: Any) -> None:
            client = await library.create_client(
                [library.MemcachedHostAddress("127.0.0.1", port)], **options
            )
            await client.set(b"key", b"value", exptime=60)
            item = await client.get(b"key")
            assert item.value == b"value"
            await client.set(b"n", b"40")
            assert await client.increment(b"n", 2) == 42
            found = await client.get_many([b"key", b"n", b"no"])
            assert set(found) == {b"key", b"n"}
            await client.touch(b"key", -1)
            assert await client.get(b"key") is None
            await client.delete(b"n")
            await client.close()

        asyncio.run(use(self.serve()))
        asyncio.run(use(self.serve(LOGIN), username="alice", password="secret"))

    def test_aiomcache(self) -> None:
        """Aiomcache."""
        library = need("aiomcache", "aiomcache")

        async def use(port: int) -> None:
            client = library.Client("127.0.0.1", port)
            assert await client.set(b"key", b"value", exptime=60)
            assert await client.get(b"key") == b"value"
            assert await client.multi_get(b"key", b"no") == (b"value", None)
            await client.set(b"n", b"40")
            assert await client.incr(b"n", 2) == 42
            assert await client.touch(b"key", 30)
            assert b"pid" in await client.stats()
            assert await client.delete(b"key")
            assert await client.get(b"key") is None
            await client.close()

        asyncio.run(use(self.serve()))


NODE = r"""
const assert = require('assert');
const port = process.argv[1];
const promise = (f) => new Promise((done, fail) => f((e, v) => e ? fail(e) : done(v)));
(async () => {
  if (process.argv[2] === 'memcached') {
    const client = new (require('memcached'))('127.0.0.1:' + port);
    await promise(c => client.set('key', 'value', 60, c));
    assert.equal(await promise(c => client.get('key', c)), 'value');
    await promise(c => client.set('n', 40, 0, c));
    assert.equal(await promise(c => client.incr('n', 2, c)), 42);
    const found = await promise(c => client.getMulti(['key', 'n', 'no'], c));
    assert.deepEqual(Object.keys(found).sort(), ['key', 'n']);
    const got = await promise(c => client.gets('key', c));
    assert(await promise(c => client.cas('key', 'next', got.cas, 60, c)));
    assert(await promise(c => client.touch('key', 30, c)));
    assert.equal((await promise(c => client.version(c)))[0].major, '1');
    assert((await promise(c => client.stats(c)))[0].pid);
    await promise(c => client.items(c));
    assert(await promise(c => client.del('key', c)));
    client.end();
  } else {
    const client = require('memjs').Client.create('127.0.0.1:' + port);
    await client.set('key', 'value', {expires: 60});
    assert.equal((await client.get('key')).value.toString(), 'value');
    assert.equal((await client.increment('n', 2, {initial: 40, expires: 60})).value, 40);
    assert.equal((await client.increment('n', 2, {initial: 40, expires: 60})).value, 42);
    assert((await client.touch('key', 30)));
    assert(await client.delete('key'));
    assert.equal((await client.get('key')).value, null);
    client.close();
  }
  console.log(JSON.stringify('fine'));
})().catch(e => { console.error(e); process.exit(1); });
"""


class NodeTests(ClientCase):
    """Node's clients, from ``NODE_PATH`` or npm's global directory."""

    def use(self, package: str) -> None:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise SkipTest("nodejs is not installed")
        found = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=True)
        path = os.environ.get("NODE_PATH", found.stdout.strip())
        if not any((Path(one) / package).is_dir() for one in path.split(os.pathsep)):
            raise SkipTest(f"npm package {package} is not installed")
        done = subprocess.run(
            [node, "-e", NODE, str(self.serve()), package],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
            env={**os.environ, "NODE_PATH": path},
        )  # fmt: skip
        self.assertEqual(
            (done.stdout.strip(), done.returncode), (json.dumps("fine"), 0), done.stderr
        )

    def test_memcached(self) -> None:
        """Package memcached: the text protocol."""
        self.use("memcached")

    def test_memjs(self) -> None:
        """Package memjs: the binary protocol."""
        self.use("memjs")


RUBY = r"""
require "dalli"
client = Dalli::Client.new("127.0.0.1:" + ARGV[0], protocol: ARGV[1].to_sym)
told = []
client.set("key", {a: 1}, 60)
told << (client.get("key") == {a: 1}) << (client.add("key", 1) == false)
told << (client.incr("n", 2, 60, 40) == 40) << (client.incr("n", 2) == 42)
told << (client.get_multi("key", "n", "no").keys.sort == ["key", "n"])
told << (client.cas("key") { |found| found.merge(b: 2) } ? true : false)
told << client.touch("key", 30) << (client.gat("key", 30) == {a: 1, b: 2})
client.set("k\u00fcrzel x", "v")
told << (client.get("k\u00fcrzel x") == "v")
told << client.delete("key") << client.get("key").nil?
client.flush
told << client.get("n").nil?
puts told.join(" ")
"""


class DalliTests(ClientCase):
    """Dalli, in both of its protocols."""

    def test_everyday(self) -> None:
        """Storing, reading, counting, comparing, several keys, a key that needs base64."""
        ruby = shutil.which("ruby")
        loaded = ruby and subprocess.run(
            [ruby, "-e", 'require "dalli"'], capture_output=True, check=False
        )
        if ruby is None or not loaded or loaded.returncode:
            raise SkipTest("Dalli is not installed (Debian packages ruby and ruby-dalli)")
        port = self.serve()
        for protocol in ("meta", "binary"):
            done = subprocess.run(
                [ruby, "-e", RUBY, str(port), protocol],
                capture_output=True, text=True, timeout=PATIENCE, check=False,
            )  # fmt: skip
            self.assertEqual(done.stdout.split(), ["true"] * 12, protocol + done.stderr)
