"""Faults on demand, with the Couchbase SDK: each gives the exception that a real server's would.

The table of ``docs/howto/ci.md`` is held to what happens here.
"""

from __future__ import annotations

import re
import socket
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing import KVTLSProcess, ProcessError
from kvproto.testing.certificates import Authority
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode
from tests.integration.sdk import ROOT, SDKTestCase
from tests.integration.service import PATIENCE, run_kvtls

NOOP = encode_request(Opcode.NOOP)

SECONDS = 0.6


def documented() -> list[tuple[int, str, str]]:
    """Return the rows of the page: status, and what GET and SET of the SDK raise."""
    page = (ROOT / "docs" / "howto" / "ci.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(0x\w\w)` \|[^|]*\| `(\w+)` \| `(\w+)` \|$", page, re.MULTILINE)
    return [(int(status, 16), get, upsert) for status, get, upsert in rows]


class StatusTests(SDKTestCase):
    """What the SDK makes of statuses, delays and lost connections."""

    options = None
    process: KVTLSProcess

    def setUp(self) -> None:
        if SDKTestCase.here:
            self.process = self.enterContext(KVTLSProcess())

    def connect(self) -> Any:
        from couchbase.auth import PasswordAuthenticator
        from couchbase.cluster import Cluster
        from couchbase.options import ClusterOptions

        one = self.process
        login = PasswordAuthenticator(one.username, one.password, cert_path=one.ca_file)
        cluster = Cluster(one.connection_string, ClusterOptions(login))
        self.addCleanup(cluster.close)
        return cluster.bucket(one.bucket).default_collection()

    def raised(self, call: Any) -> str:
        """Return the name of what a call raises, or of what it returns."""
        try:
            return type(call()).__name__
        except Exception as error:
            return type(error).__name__

    def test_statuses(self) -> None:
        """Each status gives the exception that the page names."""
        from couchbase.options import GetOptions, UpsertOptions

        items = self.connect()
        items.upsert("k", 1)
        wait = timedelta(seconds=SECONDS)
        rows = documented()
        self.assertGreater(len(rows), 10)
        for status, get, upsert in rows:
            for operation in ("get", "set"):
                self.process.fail(operation, status, times=1000)
            found = (
                self.raised(lambda: items.get("k", GetOptions(timeout=wait))),
                self.raised(lambda: items.upsert("k", 2, UpsertOptions(timeout=wait))),
            )
            self.assertEqual(found, (get, upsert), hex(status))
            self.process.reset()
            items.upsert("k", 1)

    def test_others(self) -> None:
        """The SDK repeats a read whose connection is lost, and lets the program know of a write."""
        from couchbase.options import UpsertOptions

        items = self.connect()
        items.upsert("k", 1)
        for lose in (self.process.disconnect, self.process.truncate):
            lose(operation="get")
            self.assertEqual(items.get("k").content_as[int], 1)
        self.process.disconnect(operation="set")
        self.assertEqual(self.raised(lambda: items.upsert("k", 2)), "RequestCanceledException")
        self.assertEqual(items.get("k").content_as[int], 1)
        items.upsert("e", 1, UpsertOptions(expiry=timedelta(seconds=1000)))
        self.process.advance(1001)
        self.assertFalse(items.exists("e").exists)


class CertificateTests(SynchronousTestCase):
    """What ``advance`` does to certificates."""

    def test_client(self) -> None:
        """A connection ends with its certificate; a new one is ended after its handshake."""
        authority = Authority.root()
        directory = Path(self.mktemp())
        directory.mkdir()
        ca = directory / "client-ca.pem"
        ca.write_bytes(authority.certificate_pem)
        pem = directory / "client.pem"
        client = authority.issue("client")
        pem.write_bytes(client.chain_pem + client.key_pem)
        with KVTLSProcess("--client-ca", str(ca)) as service:

            def connect() -> ssl.SSLSocket:
                context = ssl.create_default_context(cafile=service.ca_file)
                context.load_cert_chain(pem)
                address = (service.host, service.port)
                raw = self.enterContext(socket.create_connection(address, PATIENCE))
                return context.wrap_socket(raw, server_hostname=service.host)

            first = connect()
            first.sendall(NOOP)
            self.assertEqual(len(first.recv(24)), 24)
            service.advance(29 * 86400)
            first.sendall(NOOP)
            self.assertEqual(len(first.recv(24)), 24)
            service.advance(2 * 86400)
            self.assertEqual(first.recv(24), b"")
            self.assertEqual(connect().recv(24), b"")

    def test_service(self) -> None:
        """The status counts from the time that was moved, and a reload judges by it."""
        with KVTLSProcess() as service:
            before = service.command("status")["generation"]["expires_in_s"]
            service.advance(40 * 86400)
            after = service.command("status")["generation"]["expires_in_s"]
            self.assertTrue(0 <= before - after - 40 * 86400 <= PATIENCE, (before, after))
            with self.assertRaises(ProcessError) as caught:
                service.rotate()
            self.assertIn("expired", str(caught.exception))


class OptionTests(SynchronousTestCase):
    """``--faults``."""

    def test_refused(self) -> None:
        """Not where others can come, and not with a store whose clock is its own."""
        done = run_kvtls("--check", "--faults", "--listen", "tcp:0", "--user", "a:b")
        self.assertEqual(done.returncode, 2)
        self.assertIn("loopback", done.stderr)
        done = run_kvtls("--check", "--faults", "--store", "file:data")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--faults", done.stderr)

    def test_off(self) -> None:
        """Without it nobody can arrange anything; what cannot be is an error that says why."""
        with KVTLSProcess("--store", "memory:") as service:
            with self.assertRaises(ProcessError) as caught:
                service.fail("get", 1)
            self.assertIn("--faults", str(caught.exception))
        with KVTLSProcess() as service:
            with self.assertRaises(ProcessError) as caught:
                service.fail("gte", 1)
            self.assertIn("gte", str(caught.exception))
            self.assertRaises(ProcessError, service.fail, "get", 0)
