"""Real Python clients over TLS with host-name verification on."""

from __future__ import annotations

import socket
from pathlib import Path

import bmemcached
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority
from tests.integration.service import MODES, PATIENCE, KvtlsProcess


class BmemcachedTests(SynchronousTestCase):
    """python-binary-memcached: the binary protocol, SASL PLAIN."""

    def client(self, service: KvtlsProcess, **options: object) -> bmemcached.Client:
        host, port = service.addresses[0]
        return bmemcached.Client(
            (f"{host}:{port}",),
            tls_context=service.client_context(),
            socket_timeout=PATIENCE,
            **options,
        )

    def test_everything(self) -> None:
        """Each operation of the client does what it says."""
        for options in MODES:
            with KvtlsProcess(*options) as service:
                self.everything(service)

    def everything(self, service: KvtlsProcess) -> None:
        client = self.client(service)
        self.addCleanup(client.disconnect_all)
        self.assertTrue(client.set("text", "vålue"))
        self.assertEqual(client.get("text"), "vålue")
        self.assertTrue(client.set("int", 41))
        self.assertEqual(client.incr("int", 1), 42)
        self.assertEqual(client.get("int"), 42)
        self.assertEqual(client.decr("int", 50), 0)
        self.assertTrue(client.set("list", [1, {"a": 2}]))
        self.assertEqual(client.get("list"), [1, {"a": 2}])
        self.assertFalse(client.add("text", "x"))
        self.assertTrue(client.add("new", "x"))
        self.assertTrue(client.replace("new", "y"))
        self.assertFalse(client.replace("absent", "y"))
        value, cas = client.gets("new")
        self.assertEqual(value, "y")
        self.assertTrue(client.cas("new", "z", cas))
        self.assertFalse(client.cas("new", "q", cas))
        self.assertTrue(client.delete("new"))
        self.assertIsNone(client.get("new"))
        client.set_multi({f"m{i}": str(i) for i in range(500)})
        got = client.get_multi([f"m{i}" for i in range(500)])
        self.assertEqual(got, {f"m{i}": str(i) for i in range(500)})
        self.assertTrue(client.set("late", "x", time=31 * 24 * 3600))
        self.assertIsNone(client.get("late"))
        self.assertTrue(client.set("soon", "x", time=1000))
        self.assertEqual(client.get("soon"), "x")
        big = "x" * 900_000
        self.assertTrue(client.set("big", big, compress_level=0))
        self.assertEqual(client.get("big"), big)
        statistics = next(iter(client.stats().values()))
        self.assertEqual(int(statistics["pid"]), service.process.pid)
        self.assertTrue(client.flush_all())
        self.assertIsNone(client.get("text"))

    def test_login(self) -> None:
        """A user logs in with PLAIN; a wrong password is an error."""
        with KvtlsProcess("--user", "alice:secret") as service:
            client = self.client(service, username="alice", password="secret")
            self.addCleanup(client.disconnect_all)
            self.assertTrue(client.set("k", "v"))
            self.assertEqual(client.get("k"), "v")
            wrong = self.client(service, username="alice", password="guess")
            self.addCleanup(wrong.disconnect_all)
            with self.assertRaises(bmemcached.exceptions.MemcachedException):
                wrong.set("k", "v")


class PymemcacheTests(SynchronousTestCase):
    """pymemcache: the text protocol."""

    def client(self, service: KvtlsProcess) -> Client:
        client = Client(
            service.addresses[0],
            tls_context=service.client_context(),
            timeout=PATIENCE,
            connect_timeout=PATIENCE,
        )
        self.addCleanup(client.close)
        return client

    def test_everything(self) -> None:
        """Each operation of the client does what it says."""
        for options in MODES:
            with KvtlsProcess(*options) as service:
                self.everything(service)

    def everything(self, service: KvtlsProcess) -> None:
        client = self.client(service)
        self.assertTrue(client.set("k", "v", noreply=False))
        self.assertEqual(client.get("k"), b"v")
        self.assertFalse(client.add("k", "w", noreply=False))
        self.assertTrue(client.replace("k", "w", noreply=False))
        self.assertTrue(client.append("k", "!", noreply=False))
        self.assertTrue(client.prepend("k", "?", noreply=False))
        value, cas = client.gets("k")
        self.assertEqual(value, b"?w!")
        self.assertTrue(client.cas("k", "x", cas, noreply=False))
        self.assertFalse(client.cas("k", "y", cas, noreply=False))
        self.assertIsNone(client.cas("absent", "y", cas, noreply=False))
        client.set_many({f"m{i}": str(i) for i in range(300)}, noreply=False)
        got = client.get_many([f"m{i}" for i in range(300)])
        self.assertEqual(got, {f"m{i}": str(i).encode() for i in range(300)})
        self.assertEqual(len(client.gets_many(["m1", "m2", "absent"])), 2)
        self.assertTrue(client.set("n", "10", noreply=False))
        self.assertEqual(client.incr("n", 5), 15)
        self.assertEqual(client.decr("n", 20), 0)
        self.assertIsNone(client.incr("absent", 1))
        self.assertTrue(client.touch("n", 100, noreply=False))
        self.assertTrue(client.delete("n", noreply=False))
        self.assertFalse(client.delete("n", noreply=False))
        client.set("quiet", "x", noreply=True)
        self.assertEqual(client.get("quiet"), b"x")
        self.assertEqual(int(client.stats()[b"pid"]), service.process.pid)
        self.assertTrue(client.version())
        self.assertTrue(client.flush_all(noreply=False))
        self.assertIsNone(client.get("k"))

    def test_too_large(self) -> None:
        """A value over the limit is refused with memcached's words."""
        with KvtlsProcess("--mode", "memcached") as service:
            with self.assertRaises(MemcacheError) as caught:
                self.client(service).set("k", bytes(2_000_000), noreply=False)
            self.assertIn("too large", str(caught.exception))

    def test_name_is_verified(self) -> None:
        """A client that expects another name refuses the certificate."""
        with KvtlsProcess() as service:
            client = Client(
                ("localhost", service.port), tls_context=service.client_context(), timeout=10
            )
            self.addCleanup(client.close)
            self.assertTrue(client.set("k", "v", noreply=False))
            context = service.client_context()
            with (
                socket.create_connection(service.addresses[0], 10) as plain,
                self.assertRaises(OSError),
            ):
                context.wrap_socket(plain, server_hostname="other.example")


class CertificateLoginTests(SynchronousTestCase):
    """A client certificate is a login, which text clients need."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.authority = Authority.root()
        ca, server = self.directory / "ca.pem", self.authority.issue("127.0.0.1", ["127.0.0.1"])
        ca.write_bytes(self.authority.certificate_pem)
        self.options = ["--certificate", self.store("server", server.chain_pem + server.key_pem)]
        self.options += ["--client-ca", str(ca), "--user", "alice:secret"]
        self.ca = str(ca)

    def store(self, name: str, content: bytes) -> str:
        path = self.directory / f"{name}.pem"
        path.write_bytes(content)
        return str(path)

    def client(self, service: KvtlsProcess, name: str | None) -> Client:
        import ssl

        context = ssl.create_default_context(cafile=self.ca)
        if name is not None:
            credential = self.authority.issue(name)
            context.load_cert_chain(self.store(name, credential.chain_pem + credential.key_pem))
        client = Client(service.addresses[0], tls_context=context, timeout=PATIENCE)
        self.addCleanup(client.close)
        return client

    def test_known_name(self) -> None:
        """A certificate whose common name is a user needs no password."""
        with KvtlsProcess(*self.options) as service:
            client = self.client(service, "alice")
            self.assertTrue(client.set("k", "v", noreply=False))

    def test_unknown_name(self) -> None:
        """Where anonymous access is off, a certificate of nobody known is refused."""
        with KvtlsProcess(*self.options) as service, self.assertRaises((MemcacheError, OSError)):
            self.client(service, "mallory").set("k", "v", noreply=False)

    def test_unknown_name_where_anonymous(self) -> None:
        """Where anonymous access is on, it is anonymous."""
        with KvtlsProcess(*self.options, "--anonymous") as service:
            client = self.client(service, "mallory")
            self.assertTrue(client.set("k", "v", noreply=False))

    def test_no_certificate(self) -> None:
        """Without certificate and login nothing works; with ``required`` not even TLS."""
        with KvtlsProcess(*self.options) as service, self.assertRaises((MemcacheError, OSError)):
            self.client(service, None).set("k", "v", noreply=False)
        with (
            KvtlsProcess(*self.options, "--client-auth", "required") as service,
            self.assertRaises(OSError),
        ):
            self.client(service, None).set("k", "v", noreply=False)


def everything_on(store: str) -> None:
    """Let each client do everything that it can, in both modes.

    Args:
        store: As ``--store`` takes it.
    """
    for number, mode in enumerate(MODES):
        for kind in (BmemcachedTests, PymemcacheTests):
            options = (*mode, "--store", store, "--bucket", f"{kind.__name__}{number}")
            with KvtlsProcess(*options) as running:
                test = kind("test_everything")
                test.everything(running)
                test.doCleanups()
                assert "Traceback" not in running.output, running.output
