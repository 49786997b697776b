"""The management REST over real connections: TLS, restarts, rotation, testcontainers' set-up."""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import call
from kvproto.testing.certificates import client_identity, root_authority
from tests.integration.live import CredentialDirectory, new_server_identity
from tests.integration.service import PATIENCE, KvtlsProcess, run_kvtls
from tests.integration.wire_client import packet, read_answer, sasl_plain
from tests.management.test_query import ONLINE

USER = ("Administrator", "password")
OPTIONS = ("--user", ":".join(USER), "--management", "tcp:0")
BUCKETS = "/pools/default/buckets"
SELECT, GET, SET = 0x89, 0x00, 0x01


class RestCase(SynchronousTestCase):
    """A client of the standard library."""

    def port(self, service: KvtlsProcess) -> int:
        ports = call(service.state_dir / "control.sock", "address", {})["ports"]
        return int(ports["management"])

    def ask(
        self,
        service: KvtlsProcess,
        method: str,
        path: str,
        form: dict[str, str] | None = None,
        *,
        context: ssl.SSLContext | None = None,
        plain: bool = False,
        login: bool = True,
    ) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        connection: http.client.HTTPConnection
        if plain:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.port(service), timeout=PATIENCE
            )
        else:
            trusting = context or service.client_context()
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port(service), timeout=PATIENCE, context=trusting
            )
        headers = {}
        if login:
            headers["Authorization"] = "Basic " + b64encode(":".join(USER).encode()).decode()
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = None if form is None else urlencode(form)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class ManagementTests(RestCase):
    """One service each."""

    def test_restart(self) -> None:
        """What was created in a directory is there after a restart, documents and all."""
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        options = (*OPTIONS, "--store", f"file:{directory / 'data'}?sync=always")
        with KvtlsProcess(*options) as service:
            made = self.ask(service, "POST", BUCKETS, {"name": "made", "ramQuotaMB": "100"})
            self.assertEqual(made[0], 202)
            for path, name in (("scopes", "s"), ("scopes/s/collections", "c")):
                answer = self.ask(service, "POST", f"{BUCKETS}/made/{path}", {"name": name})
                self.assertEqual(answer[0], 200)
            answer = self.ask(
                service,
                "PUT",
                "/settings/rbac/users/local/bob",
                {"password": "swordfish", "roles": "bucket_full_access[made]"},
            )
            self.assertEqual(answer[0], 200)
            with service.connect() as client:
                client.sendall(sasl_plain("bob", "swordfish") + packet(SELECT, b"made"))
                client.sendall(packet(SET, b"k", b"v", bytes(8)))
                self.assertEqual([read_answer(client).status for _ in range(3)], [0, 0, 0])
            self.assertEqual(service.terminate(), 0)
            self.assertNotIn("Traceback", service.output)
        with KvtlsProcess(*options) as service:
            _, body = self.ask(service, "GET", f"{BUCKETS}/made/scopes")
            scopes = {scope["name"]: scope for scope in json.loads(body)["scopes"]}
            self.assertEqual([c["name"] for c in scopes["s"]["collections"]], ["c"])
            with service.connect() as client:
                client.sendall(sasl_plain("bob", "swordfish") + packet(SELECT, b"made"))
                client.sendall(packet(GET, b"k"))
                self.assertEqual([read_answer(client).status for _ in range(2)], [0, 0])
                self.assertEqual(read_answer(client).value, b"v")
            self.assertEqual(self.ask(service, "DELETE", f"{BUCKETS}/made")[0], 200)
            self.assertEqual(service.terminate(), 0)
        self.assertFalse((directory / "data" / "bucket-made").exists())

    def test_killed(self) -> None:
        """What was answered for is there although the process was killed at once."""
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        options = (*OPTIONS, "--store", f"file:{directory / 'data'}")
        with KvtlsProcess(*options) as service:
            made = self.ask(service, "POST", BUCKETS, {"name": "made", "ramQuotaMB": "100"})
            self.assertEqual(made[0], 202)
            path = f"{BUCKETS}/made/scopes"
            self.assertEqual(self.ask(service, "POST", path, {"name": "s"})[0], 200)
            service.process.kill()
            service.process.wait(PATIENCE)
        with KvtlsProcess(*options) as service:
            _, body = self.ask(service, "GET", f"{BUCKETS}/made/scopes")
            self.assertEqual([s["name"] for s in json.loads(body)["scopes"]], ["_default", "s"])

    def test_dropped_under_clients(self) -> None:
        """A client of a bucket that is dropped is disconnected; others stay."""
        with KvtlsProcess(*OPTIONS) as service:
            self.ask(service, "POST", BUCKETS, {"name": "made", "ramQuotaMB": "100"})
            with service.connect() as one, service.connect() as other:
                for client, bucket in ((one, b"made"), (other, b"default")):
                    client.sendall(sasl_plain(*USER) + packet(SELECT, bucket))
                    self.assertEqual([read_answer(client).status for _ in range(2)], [0, 0])
                self.assertEqual(self.ask(service, "DELETE", f"{BUCKETS}/made")[0], 200)
                self.assertEqual(one.recv(1), b"")
                other.sendall(packet(GET, b"k"))
                self.assertEqual(read_answer(other).status, 1)

    def test_plain(self) -> None:
        """Plain HTTP is served beside ``--plain`` only; elsewhere it is told why not."""
        with KvtlsProcess(*OPTIONS) as service:
            code, body = self.ask(service, "GET", "/pools", plain=True)
            self.assertEqual(code, 400)
            self.assertIn(b"This port speaks TLS", body)
        with KvtlsProcess(*OPTIONS, "--plain", "tcp:0:interface=127.0.0.1") as service:
            self.assertEqual(self.ask(service, "GET", "/pools", plain=True)[0], 200)
            self.assertEqual(self.ask(service, "GET", "/pools")[0], 200)

    def test_certificates(self) -> None:
        """A client certificate is a login; a rotation is served to newcomers."""
        files = CredentialDirectory()
        self.addCleanup(files.remove)
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        identity = client_identity()
        (directory / "ca.pem").write_bytes(root_authority().certificate_pem)
        (directory / "client.pem").write_bytes(identity.chain_pem + identity.key_pem)
        context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
        with KvtlsProcess(
            *OPTIONS,
            *["--user", "alice:unused-here", "--client-ca", str(directory / "ca.pem")],
            *["--certificate", str(files.chain), "--private-key", str(files.key)],
            *["--watch-interval", "0"],
        ) as service:
            strangers = self.ask(service, "GET", "/pools", context=context, login=False)
            self.assertEqual(strangers[0], 401)
            before = self.certificate(service, context)
            files.serve(new_server_identity())
            call(service.state_dir / "control.sock", "reload", {"wait": True})
            self.assertNotEqual(self.certificate(service, context), before)
            context.load_cert_chain(str(directory / "client.pem"))
            code, _ = self.ask(service, "GET", "/pools", context=context, login=False)
            self.assertEqual(code, 200)

    def certificate(self, service: KvtlsProcess, context: ssl.SSLContext) -> bytes | None:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port(service), timeout=PATIENCE, context=context
        )
        connection.connect()
        found: bytes | None = connection.sock.getpeercert(True)
        connection.close()
        return found

    def test_testcontainers(self) -> None:
        """What testcontainers' module for Java asks, in its order, on a node without users."""
        plain: dict[str, Any] = {"plain": True}
        options = ("--management", "tcp:0", "--plain", "tcp:0:interface=127.0.0.1")
        with KvtlsProcess(*options) as service:
            self.assertEqual(self.ask(service, "GET", "/pools", login=False, **plain)[0], 200)
            _, body = self.ask(service, "GET", "/pools", **plain)
            self.assertFalse(json.loads(body)["isEnterprise"])
            _, body = self.ask(service, "GET", "/pools/default/nodeServices", **plain)
            self.assertIn("mgmtSSL", json.loads(body)["nodesExt"][0]["services"])
            for method, path, form in (
                ("POST", "/node/controller/rename", {"hostname": "172.17.0.2"}),
                ("POST", "/node/controller/setupServices", {"services": "kv,n1ql,index"}),
                ("POST", "/pools/default", {"memoryQuota": "256", "indexMemoryQuota": "256"}),
                (
                    *("POST", "/settings/web"),
                    {"username": USER[0], "password": USER[1], "port": "8091"},
                ),
            ):
                answer = self.ask(service, method, path, form, login=False, **plain)
                self.assertEqual(answer[0], 200, (path, answer))
            ports = {"hostname": "localhost", "mgmt": "32769", "kv": "32770", "n1ql": "32771"}
            external = "/node/controller/setupAlternateAddresses/external"
            self.assertEqual(self.ask(service, "PUT", external, ports, **plain)[0], 200)
            mode = {"storageMode": "forestdb"}
            self.assertEqual(self.ask(service, "POST", "/settings/indexes", mode, **plain)[0], 200)
            _, body = self.ask(service, "GET", "/pools/default", **plain)
            self.assertEqual(json.loads(body)["nodes"][0]["status"], "healthy")
            self.assertEqual(self.ask(service, "GET", "/admin/ping", **plain)[0], 200)
            bucket = {
                "name": "mybucket",
                "ramQuotaMB": "100",
                "flushEnabled": "0",
                "replicaNumber": "0",
            }
            self.assertEqual(self.ask(service, "POST", BUCKETS, bucket, **plain)[0], 202)
            _, body = self.ask(service, "GET", "/pools/default/b/mybucket", **plain)
            services = json.loads(body)["nodesExt"][0]["services"]
            for wanted in ("kv", "n1ql"):
                self.assertTrue(any(name.startswith(wanted) for name in services))
            present = 'SELECT COUNT(*) > 0 as present FROM system:keyspaces WHERE name = "mybucket"'
            for statement, results in (
                (present, [{"present": True}]),
                ("CREATE PRIMARY INDEX on `mybucket`", []),
                (ONLINE.replace('"b"', '"mybucket"'), [{"online": True}]),
            ):
                code, body = self.ask(
                    service, "POST", "/query/service", {"statement": statement}, **plain
                )
                self.assertEqual((code, json.loads(body)["results"]), (200, results))

    def test_mistakes(self) -> None:
        """An endpoint that cannot be used is one line that says so."""
        for options, words in (
            (["--management", "tcp:x"], "--management: 'tcp:x' is no endpoint"),
            (["--management", "tcp:0:interface=0.0.0.0"], "--management: 'tcp:0:interface"),
            (["--management", "tcp:1", "--management", "tcp:2"], "--management is given twice"),
        ):
            done = run_kvtls(*options, "--check")
            self.assertEqual(done.returncode, 2, options)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
