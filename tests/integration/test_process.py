"""`kvproto.testing.KVTLSProcess` and its pytest fixtures, as other test suites use them."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing import KVTLSProcess, ProcessError
from tests.integration.live import eventually
from tests.integration.service import PATIENCE, succeeds
from tests.integration.wire_client import packet, read_answer, sasl_plain
from tests.pages import blocks

GET, SET, NOOP = 0x00, 0x01, 0x0A
WORKERS = os.environ.get("KVPROTO_WORKERS", "3")

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def kvtls_options():
    return ("--bucket", "default", "--bucket", "other")
"""

CLIENT = """
import ssl
import pytest
from pymemcache.client.base import Client


def memcached(kvtls):
    context = ssl.create_default_context(cafile=kvtls.ca_file)
    return Client((kvtls.host, kvtls.port), tls_context=context)
"""

FOREIGN = (
    CLIENT
    + """
from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.options import ClusterOptions


@pytest.mark.parametrize("number", range(6))
def test_memcached_client(kvtls, number):
    client = memcached(kvtls)
    assert client.get("k") is None, "a test sees what another one has left"
    client.set("k", str(number))
    assert client.get("k") == str(number).encode()
    client.close()


@pytest.mark.parametrize("number", range(2))
def test_sdk(kvtls, number):
    login = PasswordAuthenticator(kvtls.username, kvtls.password, cert_path=kvtls.ca_file)
    cluster = Cluster(kvtls.connection_string, ClusterOptions(login))
    collection = cluster.bucket(kvtls.bucket).default_collection()
    assert not collection.exists("k").exists
    collection.upsert("k", number)
    assert collection.get("k").content_as[int] == number
    cluster.close()


def test_fresh(kvtls, kvtls_process):
    assert kvtls.port != kvtls_process.port
    client = memcached(kvtls)
    client.set("k", "v")
    kvtls_process.flush()
    assert client.get("k") == b"v"
    client.close()
"""
)

SEEDED = (
    CLIENT
    + """

@pytest.mark.parametrize("number", range(2))
def test_each_begins_alike(kvtls, number):
    client = memcached(kvtls)
    assert client.get("adlon") == b"382"
    client.set("adlon", "0")
    client.close()


def test_fresh(kvtls_process):
    client = memcached(kvtls_process)
    assert client.get("adlon") == b"382"
    client.close()
"""
)

SUICIDE = """
import os, signal
from kvproto.testing import KVTLSProcess
service = KVTLSProcess().start()
print(service.port, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def connect(service: KVTLSProcess) -> ssl.SSLSocket:
    """Return a verified connection."""
    context = ssl.create_default_context(cafile=service.ca_file)
    plain = socket.create_connection((service.host, service.port), PATIENCE)
    return context.wrap_socket(plain, server_hostname="localhost")


class ProcessTests(SynchronousTestCase):
    """The context manager."""

    def test_ready(self) -> None:
        """Inside of it clients are served, with a login and without."""
        with KVTLSProcess() as service, connect(service) as client:
            client.sendall(packet(SET, b"k", b"v", bytes(8)))
            self.assertEqual(read_answer(client).status, 0)
            client.sendall(sasl_plain(service.username, service.password))
            self.assertEqual(read_answer(client).status, 0)
            client.sendall(packet(GET, b"k"))
            self.assertEqual(read_answer(client).value, b"v")
            self.assertEqual(service.connection_string, f"couchbases://127.0.0.1:{service.port}")
            self.assertEqual(service.bucket, "default")

    def test_nothing_is_left(self) -> None:
        """Outside of it there is no process, no port and no file."""
        with KVTLSProcess() as service:
            directory, port = service.directory, service.port
            self.assertTrue(directory.exists())
        self.assertFalse(directory.exists())
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", port), 1)
        self.assertRaises(ProcessError, service.flush)
        service.stop()

    def test_flush(self) -> None:
        """One bucket is emptied, or all; a bucket that is not there is an error with its name."""
        with KVTLSProcess("--bucket", "a", "--bucket", "b") as service:
            self.assertEqual(service.bucket, "a")
            with connect(service) as client:
                client.sendall(packet(SET, b"k", b"v", bytes(8)))
                self.assertEqual(read_answer(client).status, 0)
                service.flush("b")
                client.sendall(packet(GET, b"k"))
                self.assertEqual(read_answer(client).status, 0)
                service.flush()
                client.sendall(packet(GET, b"k"))
                self.assertEqual(read_answer(client).status, 1)
            with self.assertRaises(ProcessError) as caught:
                service.flush("nowhere")
            self.assertIn("nowhere", str(caught.exception))

    def test_begins_with(self) -> None:
        """Documents of a seed and of a backup are there from the start, and after a reset."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        seed, backup = folder / "seed.jsonl", folder / "backup"
        seed.write_text('{"key": "k", "value": 1}\n{"key": "x", "value": 1, "bucket": "new"}\n')
        with KVTLSProcess(seed=seed) as service, connect(service) as client:
            for _ in range(2):
                client.sendall(packet(GET, b"k"))
                self.assertEqual(read_answer(client).value, b"1")
                client.sendall(packet(SET, b"k", b"2", bytes(8)))
                self.assertEqual(read_answer(client).status, 0)
                service.reset()
            self.assertEqual(service.backup(backup), 2)
            self.assertEqual(service.restore(backup), 2)
            seed.write_text("\n{")
            with self.assertRaises(ProcessError) as caught:
                service.seed(seed)
            self.assertIn(f"{seed}:2: is no JSON", str(caught.exception))
        seed.write_text("")
        with (
            KVTLSProcess("--bucket", "default", "--bucket", "new", restore=backup) as service,
            connect(service) as client,
        ):
            client.sendall(packet(GET, b"k"))
            self.assertEqual(read_answer(client).value, b"1")

    def test_ports(self) -> None:
        """Ports of other services are known where there are any, and asked for where not."""
        with KVTLSProcess() as service:
            for asked in ("plain_connection_string", "management_url"):
                with self.assertRaises(ProcessError) as caught:
                    getattr(service, asked)
                self.assertIn("give the options --", str(caught.exception))
        options = ("--plain", "tcp:0:interface=127.0.0.1", "--management", "tcp:0")
        with KVTLSProcess(*options) as service:
            self.assertEqual(
                service.plain_connection_string, f"couchbase://127.0.0.1:{service.plain_port}"
            )
            socket.create_connection((service.host, service.plain_port), PATIENCE).close()
            socket.create_connection((service.host, service.management_port), PATIENCE).close()
            self.assertEqual(service.management_url, f"https://127.0.0.1:{service.management_port}")

    def test_rotate(self) -> None:
        """Newcomers get a new certificate of the same CA; who was there stays."""
        with KVTLSProcess() as service, connect(service) as before:
            service.rotate()
            with connect(service) as after:
                self.assertNotEqual(before.getpeercert(True), after.getpeercert(True))
            before.sendall(packet(NOOP))
            self.assertEqual(read_answer(before).status, 0)

    def test_does_not_start(self) -> None:
        """Options that cannot be used are an error with what the service says of them."""
        with self.assertRaises(ProcessError) as caught:
            # Who waited for readiness would not see the end of this.
            KVTLSProcess("--memory-limit", "nonsense", start_timeout=1e6).start()
        self.assertIn("--memory-limit", str(caught.exception))

    def test_ends_with_its_parent(self) -> None:
        """It does not outlive a test process that is killed."""
        done = subprocess.run(
            [sys.executable, "-c", SUICIDE],
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, -signal.SIGKILL)

        def gone() -> bool:
            try:
                socket.create_connection(("127.0.0.1", int(done.stdout)), 1).close()
            except OSError:
                return True
            return False

        eventually(gone)


class PytestTests(SynchronousTestCase):
    """A project of somebody else's."""

    def test_foreign_project(self) -> None:
        """Its tests find an empty service each, in several workers side by side."""
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "conftest.py").write_text(CONFTEST, encoding="utf-8")
            Path(directory, "test_foreign.py").write_text(FOREIGN, encoding="utf-8")
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-n",
                WORKERS,
                "-p",
                "no:cacheprovider",
            ]
            said = succeeds(command, 4 * PATIENCE, cwd=directory)
        self.assertIn("9 passed", said)

    def test_fixtures(self) -> None:
        """What the page says of documents to begin with is what a project gets."""
        (conftest,) = [each for each in blocks("python") if "kvtls_seed" in each.text]
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "conftest.py").write_text(conftest.text, encoding="utf-8")
            Path(directory, "tests").mkdir()
            Path(directory, "tests", "hotels.jsonl").write_text(
                '{"key": "adlon", "text": "382"}\n', encoding="utf-8"
            )
            Path(directory, "tests", "test_seeded.py").write_text(SEEDED, encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            said = succeeds(command, 4 * PATIENCE, cwd=directory)
        self.assertIn("3 passed", said)
