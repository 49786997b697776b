"""``twistd kvtls`` from start to stop, as an operator sees it."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from tests.integration import service as service_module
from tests.integration.service import PATIENCE, KvtlsProcess, run_kvtls
from tests.integration.wire_client import packet, read_answer, read_answers, sasl_plain

GET, SET, DELETE, NOOP, FLUSH, STAT = 0x00, 0x01, 0x04, 0x0A, 0x08, 0x10
ITEM = bytes(8)


class DefaultsTests(SynchronousTestCase):
    """The embedded default: no options at all that matter."""

    def test_ready(self) -> None:
        """The service answers once it says that it is ready."""
        with KvtlsProcess() as service, service.connect() as client:
            client.sendall(packet(NOOP, opaque=7))
            self.assertEqual(read_answer(client).opaque, 7)

    def test_both_protocols_see_the_same_data(self) -> None:
        """What the binary protocol stores the text protocol reads, and the other way round."""
        with (
            KvtlsProcess() as service,
            service.connect() as binary,
            service.connect() as text,
        ):
            binary.sendall(packet(SET, b"k", b"from binary", (5).to_bytes(4) + bytes(4)))
            self.assertEqual(read_answer(binary).status, 0)
            text.sendall(b"get k\r\n")
            self.assertEqual(text.recv(100), b"VALUE k 5 11\r\nfrom binary\r\nEND\r\n")
            text.sendall(b"set k 9 0 9\r\nfrom text\r\n")
            self.assertEqual(text.recv(100), b"STORED\r\n")
            binary.sendall(packet(GET, b"k"))
            answer = read_answer(binary)
            self.assertEqual((answer.extras, answer.value), ((9).to_bytes(4), b"from text"))

    def test_printed_snippet_works(self) -> None:
        """The client snippet in the log runs as it stands."""
        with KvtlsProcess() as service:
            snippet = service.wait_for_line(re.compile(r"python3 -c .*"))
            # ``python3`` may be another one than ours, with modules of its own.
            environment = {
                name: value for name, value in os.environ.items() if name != "PYTHONPATH"
            }
            done = subprocess.run(
                ["bash", "-c", snippet],
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("STORED", done.stdout)

    def test_private_files(self) -> None:
        """Private keys in the state directory are for their owner only."""
        with KvtlsProcess() as service:
            keys = [path for path in service.state_dir.rglob("*") if b"PRIVATE" in _content(path)]
            self.assertNotEqual(keys, [])
            for path in keys:
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)

    def test_second_start_keeps_the_ca(self) -> None:
        """Clients that trust the development CA go on trusting it after a restart."""
        with KvtlsProcess() as first:
            context = first.client_context()
            self.assertEqual(first.terminate(), 0)
            with KvtlsProcess("--state-dir", str(first.state_dir)) as second:
                second.connect(context).close()

    def test_state_directory_in_use(self) -> None:
        """Two services in one state directory: the second is refused and told by whom."""
        with KvtlsProcess() as first:
            done = run_kvtls(
                *["--listen", "tcp:0:interface=127.0.0.1", "--state-dir", str(first.state_dir)]
            )
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(str(first.process.pid), done.stderr)
            self.assertNotIn("Traceback", done.stderr + done.stdout)

    def test_flush_is_refused(self) -> None:
        """FLUSH is refused by default, and the data is still there."""
        with KvtlsProcess() as service, service.connect() as client:
            client.sendall(packet(SET, b"k", b"v", ITEM) + packet(FLUSH) + packet(GET, b"k"))
            stored, flushed, got = read_answers(client, 3)
            self.assertEqual((stored.status, got.value), (0, b"v"))
            self.assertNotEqual(flushed.status, 0)

    def test_allow_flush(self) -> None:
        """``--allow-flush`` allows it."""
        with KvtlsProcess("--allow-flush") as service, service.connect() as client:
            client.sendall(packet(SET, b"k", b"v", ITEM) + packet(FLUSH) + packet(GET, b"k"))
            stored, flushed, got = read_answers(client, 3)
            self.assertEqual((stored.status, flushed.status, got.status), (0, 0, 1))


class ListenerTests(SynchronousTestCase):
    """Kinds of listeners."""

    def test_unix_socket_and_ipv6(self) -> None:
        """TCP over IPv4 and IPv6 and a Unix socket serve the same store, all with TLS."""
        path = os.path.join(self.mktemp()[:0] or os.getcwd(), f"kv-{os.getpid()}.sock")
        with KvtlsProcess(
            "--listen",
            "tcp:0:interface=127.0.0.1",
            "--listen",
            r"tcp6:0:interface=\:\:1",
            "--listen",
            f"unix:{path}",
        ) as service:
            context = service.client_context()
            with service.connect() as client:
                client.sendall(packet(SET, b"k", b"v", ITEM))
                self.assertEqual(read_answer(client).status, 0)
            host, port = service.addresses[1]
            with (
                socket.create_connection((host, port), PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname="::1") as client,
            ):
                client.sendall(packet(GET, b"k"))
                self.assertEqual(read_answer(client).value, b"v")
            with socket.socket(socket.AF_UNIX) as plain:
                plain.settimeout(PATIENCE)
                plain.connect(path)
                with context.wrap_socket(plain, server_hostname="localhost") as client:
                    client.sendall(packet(GET, b"k"))
                    self.assertEqual(read_answer(client).value, b"v")


class LoginTests(SynchronousTestCase):
    """Who may work."""

    def test_password(self) -> None:
        """With a user configured, work needs the right password."""
        with KvtlsProcess("--user", "alice:secret") as service:
            with service.connect() as client:
                client.sendall(packet(GET, b"k"))
                self.assertEqual(read_answer(client).status, 0x20)
            with service.connect() as client:
                client.sendall(sasl_plain("alice", "wrong") + packet(GET, b"k"))
                self.assertEqual([a.status for a in read_answers(client, 2)], [0x20, 0x20])
            with service.connect() as client:
                client.sendall(sasl_plain("alice", "secret") + packet(GET, b"k"))
                self.assertEqual([a.status for a in read_answers(client, 2)], [0, 1])
            self.assertNotIn("secret", service.output)

    def test_anonymous_beside_users(self) -> None:
        """``--anonymous`` lets clients work without a login."""
        with (
            KvtlsProcess("--user", "alice:secret", "--anonymous") as service,
            service.connect() as client,
        ):
            client.sendall(packet(GET, b"k"))
            self.assertEqual(read_answer(client).status, 1)


class StopTests(SynchronousTestCase):
    """SIGTERM."""

    def test_exit_status(self) -> None:
        """An idle service stops at once with status 0."""
        with KvtlsProcess() as service, service.connect():
            self.assertEqual(service.terminate(), 0)

    def test_answers_what_was_asked(self) -> None:
        """Requests that were sent before SIGTERM are answered, then the connection is closed."""
        with KvtlsProcess() as service, service.connect() as client:
            client.sendall(packet(SET, b"k", bytes(1000), ITEM))
            self.assertEqual(read_answer(client).status, 0)
            client.sendall(b"".join(packet(GET, b"k", opaque=i) for i in range(1000)))
            first = read_answer(client)
            service.process.send_signal(signal.SIGTERM)
            opaques = [first.opaque] + [a.opaque for a in read_answers(client, 999)]
            self.assertEqual(opaques, list(range(1000)))
            self.assertEqual(client.recv(1), b"")
            self.assertEqual(service.process.wait(PATIENCE), 0)

    def test_deadline(self) -> None:
        """A client that does not read its answers cannot hold up the end."""
        with (
            KvtlsProcess("--drain-timeout", "1") as service,
            service.connect() as client,
        ):
            client.sendall(packet(SET, b"k", bytes(1_000_000), ITEM))
            self.assertEqual(read_answer(client).status, 0)
            client.sendall(packet(GET, b"k") * 50)
            self.assertEqual(service.terminate(), 0)


class GarbageTests(SynchronousTestCase):
    """What is no TLS, or no request, ends that one connection only."""

    def test_plaintext(self) -> None:
        """HTTP and the text protocol in the clear are named in the log; others are served on."""
        with KvtlsProcess() as service, service.connect() as other:
            for first, name in (
                (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
                (b"get some_key\r\n", "127.0.0.1"),
                (os.urandom(400), "127.0.0.1"),
            ):
                before = len(service.output)
                with socket.create_connection(service.addresses[0], 10) as plain:
                    plain.sendall(first)
                    while True:
                        try:
                            if not plain.recv(1000):
                                break
                        except ConnectionResetError:
                            break
                other.sendall(packet(NOOP))
                self.assertEqual(read_answer(other).status, 0)
                service.wait_for_line(re.compile(name))
                self.assertNotIn("Traceback", service.output[before:])

    def test_garbage_inside_tls(self) -> None:
        """A broken frame ends its connection with a reason in the log."""
        with KvtlsProcess() as service, service.connect() as other:
            with service.connect() as client:
                client.sendall(packet(NOOP) + b"\x80\x00\xff\xff" + bytes(20))
                self.assertEqual(read_answer(client).opcode, NOOP)
                rest = b""
                while piece := client.recv(1000):
                    rest += piece
            other.sendall(packet(NOOP))
            self.assertEqual(read_answer(other).status, 0)
            self.assertNotIn("Traceback", service.output)


class BadOptionTests(SynchronousTestCase):
    """One clear line and a status that is not 0, before anything listens."""

    def refused(self, *options: str) -> str:
        done = run_kvtls(*options)
        self.assertNotEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stdout + done.stderr)
        self.assertNotIn("kvtls ready", done.stdout)
        return done.stderr + done.stdout

    def test_unknown_option(self) -> None:
        """The unknown option is named."""
        self.assertIn("--no-such", self.refused("--no-such"))

    def test_missing_file(self) -> None:
        """The option and the file are named."""
        text = self.refused("--certificate", "/nonexistent/chain.pem")
        self.assertIn("--certificate", text)
        self.assertIn("/nonexistent/chain.pem", text)

    def test_port_in_use(self) -> None:
        """The port is named."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            text = self.refused("--listen", f"tcp:{port}:interface=127.0.0.1")
        self.assertIn(str(port), text)

    def test_bad_endpoint(self) -> None:
        """An endpoint that Twisted does not know is named."""
        self.assertIn("nosuch:1", self.refused("--listen", "nosuch:1:interface=127.0.0.1"))

    def test_address_without_kind(self) -> None:
        """What people write out of habit is answered with what to write."""
        text = self.refused("--listen", "127.0.0.1:11207")
        self.assertIn("tcp:11207:interface=127.0.0.1", text)

    def test_paths_too_long_for_sockets(self) -> None:
        """They are refused when the options are looked at, not by the kernel after that."""
        for option, value in (("--state-dir", "x" * 120), ("--listen", f"unix:{'x' * 120}")):
            for check in ([], ["--check"]):
                text = self.refused(option, value, *check)
                self.assertIn(option, text)
                self.assertIn("107 bytes", text)

    def test_file_where_the_socket_should_be(self) -> None:
        """A file in the way of a Unix socket is not taken for another server."""
        with tempfile.NamedTemporaryFile() as file:
            self.assertIn("is no socket", self.refused("--listen", f"unix:{file.name}"))

    def test_check(self) -> None:
        """``--check`` says that a good configuration is good, and starts nothing."""
        done = run_kvtls("--check")
        self.assertEqual((done.returncode, "ready" in done.stdout), (0, False), done.stderr)
        self.refused("--check", "--certificate", "/nonexistent/chain.pem")
        self.refused("--check", "--listen", "unix:/nonexistent/kv.sock")

    def test_check_beside_the_service(self) -> None:
        """What is served already can be tried: its port is not in the way."""
        with KvtlsProcess() as service:
            listen = f"tcp:{service.port}:interface=127.0.0.1"
            done = run_kvtls("--check", "--listen", listen)
            self.assertEqual(done.returncode, 0, done.stderr)


class RunDirectoryTests(SynchronousTestCase):
    """``twistd --rundir`` changes the directory after the options have been looked at."""

    def test_files_stay_where_they_are(self) -> None:
        """Credentials, their reload and the control socket are where the names said at first."""
        with tempfile.TemporaryDirectory() as elsewhere:
            self.patch(service_module, "TWISTD", [*service_module.TWISTD, f"--rundir={elsewhere}"])
            with KvtlsProcess("--state-dir", "state") as service:
                verdict = call(service.state_dir / CONTROL_SOCKET, "reload", {"wait": True})
                self.assertTrue(verdict["ok"], verdict)
                self.assertEqual(os.listdir(elsewhere), [])


class TLSVersionTests(SynchronousTestCase):
    """Both versions of TLS are served."""

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3 work, older versions do not."""
        with KvtlsProcess() as service:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context = service.client_context()
                context.minimum_version = context.maximum_version = version
                with service.connect(context) as client:
                    client.sendall(packet(NOOP))
                    self.assertEqual(read_answer(client).status, 0)


def _content(path: object) -> bytes:
    from pathlib import Path

    assert isinstance(path, Path)
    return path.read_bytes() if path.is_file() else b""
