"""``--http`` of a running service: health through its life, metrics of known traffic."""

from __future__ import annotations

import json
import re
import socket
import ssl
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer, sasl_plain

GET, SET = 0x00, 0x01


class HTTPTests(SynchronousTestCase):
    """What a scraper, a probe and a person get."""

    def start(self, *options: str) -> KvtlsProcess:
        service = self.enterContext(KvtlsProcess("--http", "tcp:0", *options))
        line = service.wait_for_line(re.compile(r"http on \S+"))
        self.url = f"http://{line.removeprefix('http on ')}"
        return service

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        _, text = self.get("/metrics")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.metrics().get((name, frozenset(labels.items())), 0.0)

    def test_readiness(self) -> None:
        """Ready while it serves, not while it is drained, and again after that."""
        service = self.start()
        self.assertTrue(self.url.startswith("http://127.0.0.1:"))
        self.assertEqual(self.get("/readyz"), (200, "ok\n"))
        control = service.state_dir / CONTROL_SOCKET
        call(control, "drain", {"wait": True})
        code, reason = self.get("/readyz")
        self.assertEqual(code, 503)
        self.assertIn("was drained", reason)
        self.assertEqual(self.get("/livez"), (200, "ok\n"))
        call(control, "restart", {"listener": "all"})
        self.assertEqual(self.get("/readyz"), (200, "ok\n"))
        said = json.loads(self.get("/status.json")[1])
        asked = call(control, "status", {})
        self.assertEqual(set(said), set(asked))
        self.assertEqual(said["service"]["pid"], asked["service"]["pid"])
        self.assertIn("All is well", self.get("/")[1])

    def test_known_traffic(self) -> None:
        """Requests, logins, handshakes and endings are what was done."""
        service = self.start("--user", "alice:secret")
        with service.connect() as client:
            for password, status in (("guess", 0x20), ("secret", 0)):
                client.sendall(sasl_plain("alice", password))
                self.assertEqual(read_answer(client).status, status)
            client.sendall(packet(SET, b"k", b"v", bytes(8)))
            read_answer(client)
            for key in (b"k", b"k", b"none"):
                client.sendall(packet(GET, key))
                read_answer(client)
            self.assertEqual(self.value("kvtls_connections", listener="data", state="owned"), 1)
        with socket.create_connection(("127.0.0.1", service.port), 10) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while plain.recv(1000):
                pass
        with self.assertRaises(ssl.SSLError):
            service.connect(ssl.create_default_context())
        for name, labels, value in (
            ("kvtls_requests_total", {"operation": "set", "result": "ok"}, 1),
            ("kvtls_requests_total", {"operation": "get", "result": "hit"}, 2),
            ("kvtls_requests_total", {"operation": "get", "result": "miss"}, 1),
        ):
            self.assertEqual(self.value(name, bucket="default", **labels), value, labels)
        for result in ("success", "failure"):
            self.assertEqual(self.value("kvtls_logins_total", mechanism="PLAIN", result=result), 1)
        for reason in ("plaintext", "alert_unknown_ca"):
            found = self.value("kvtls_handshake_failures_total", listener="data", reason=reason)
            self.assertEqual(found, 1, reason)
        self.assertEqual(self.value("kvtls_handshake_seconds_count"), 1)
        self.assertEqual(self.value("kvtls_accepted_total", listener="data"), 3)
        self.assertEqual(self.value("kvtls_items", bucket="default"), 1)
        self.assertIn("login failed (PLAIN, user alice): wrong user or password", service.output)

    def test_commands(self) -> None:
        """``kvtls address``, ``flush`` and ``status --ready`` speak of the same service."""
        service = self.start("--bucket", "a", "--bucket", "b")
        control = service.state_dir / CONTROL_SOCKET
        self.assertEqual(call(control, "address", {})["address"], f"127.0.0.1:{service.port}")
        with service.connect() as client:
            client.sendall(packet(SET, b"k", b"v", bytes(8)))
            self.assertEqual(read_answer(client).status, 0)
            self.assertEqual(call(control, "flush", {"bucket": "b"})["ok"], True)
            client.sendall(packet(GET, b"k"))
            self.assertEqual(read_answer(client).status, 0)
            self.assertEqual(call(control, "flush", {"bucket": "a"})["ok"], True)
            client.sendall(packet(GET, b"k"))
            self.assertEqual(read_answer(client).status, 1)
        answer = call(control, "flush", {"bucket": "c"})
        self.assertEqual(answer["error"]["code"], "unknown-bucket")

    def test_rotation(self) -> None:
        """A reload that finds nothing new is one, and the generation stays."""
        service = self.start()
        call(service.state_dir / CONTROL_SOCKET, "reload", {"wait": True})
        self.assertEqual(self.value("kvtls_rotations_total", result="unchanged"), 1)
        self.assertEqual(self.value("kvtls_credentials_generation"), 1)
        expiry = self.value("kvtls_certificate_expiry_timestamp_seconds", listener="data")
        self.assertGreater(expiry, 1e9)
