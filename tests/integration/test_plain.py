"""Listeners without TLS, modes of Unix sockets, and what the command line says of mistakes."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from kvproto.testing.certificates import root_authority
from tests.integration.live import CredentialDirectory, new_server_identity
from tests.integration.service import PATIENCE, KvtlsProcess, run_each
from tests.integration.wire_client import read_exactly


class PlainTests(SynchronousTestCase):
    """``--plain``, beside a listener with TLS."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_serves(self) -> None:
        """Clients of both listeners see one store; a rotation leaves plain connections alone."""
        files = CredentialDirectory()
        self.addCleanup(files.remove)
        context = ssl.create_default_context(
            cadata=root_authority().certificate_pem.decode("ascii")
        )
        plain, secured = self.directory / "plain", self.directory / "tls"
        with KvtlsProcess(
            *["--plain", f"unix:{plain}", "--plain", "tcp:0:interface=127.0.0.1"],
            *["--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{secured}"],
            *["--on-rotate", "disconnect", "--watch-interval", "0"],
            *["--certificate", str(files.chain), "--private-key", str(files.key)],
        ) as service:
            self.assertEqual(stat.S_IMODE(plain.stat().st_mode), 0o600)
            self.assertEqual(stat.S_IMODE(secured.stat().st_mode), 0o660)
            with socket.socket(socket.AF_UNIX) as one, service.connect(context) as two:
                one.settimeout(PATIENCE)
                one.connect(str(plain))
                one.sendall(b"set k 0 0 1\r\nx\r\n")
                self.assertEqual(one.recv(100), b"STORED\r\n")
                two.sendall(b"get k\r\n")
                self.assertEqual(two.recv(100), b"VALUE k 0 1\r\nx\r\nEND\r\n")
                control = service.state_dir / CONTROL_SOCKET
                names = {row["name"]: row for row in call(control, "status", {})["listeners"]}
                self.assertEqual(list(names), ["data-1", "data-2", "plain-1", "plain-2"])
                self.assertEqual(names["plain-2"]["on_rotate"], "keep")
                files.serve(new_server_identity())
                answer = call(control, "reload", {"wait": True})
                self.assertTrue(answer["changed"], answer)
                one.sendall(b"get k\r\n")
                self.assertEqual(one.recv(100), b"VALUE k 0 1\r\nx\r\nEND\r\n")

    def test_no_flush(self) -> None:
        """``--no-flush`` refuses flush_all where it is allowed otherwise."""
        path = self.directory / "plain"
        with (
            KvtlsProcess("--plain", f"unix:{path}:mode=640", "--mode", "memcached", "--no-flush"),
            socket.socket(socket.AF_UNIX) as client,
        ):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"flush_all\r\n")
            self.assertRegex(client.recv(100), rb"^(CLIENT_ERROR|SERVER_ERROR|ERROR)")

    def test_shutdown_and_rows(self) -> None:
        """``stats conns`` shows the sockets, and ``--enable-shutdown`` lets a client end it all."""
        path = self.directory / "plain"
        with (
            KvtlsProcess("--plain", f"unix:{path}", "--enable-shutdown") as service,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(str(path))
            replies = client.makefile("rb")
            client.sendall(b"stats conns\r\n")
            rows = b"".join(iter(replies.readline, b"END\r\n")).decode()
            self.assertIn(f":addr tcp:127.0.0.1:{service.port}\r\n", rows)
            self.assertIn(f":addr unix:{path}\r\n", rows)
            self.assertIn(f":listen_addr unix:{path}\r\n", rows)
            self.assertEqual(rows.count(":state conn_listening\r\n"), 2)
            client.sendall(b"shutdown\r\n")
            self.assertEqual(replies.read(), b"")
            self.assertEqual(service.process.wait(PATIENCE), 0)

    def test_debugtime(self) -> None:
        """With ``--faults`` a client moves the clock, as with a memcached for debugging."""
        path = self.directory / "plain"
        with (
            KvtlsProcess("--plain", f"unix:{path}", "--faults"),
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"set k 0 100 1\r\nx\r\nget k\r\ndebugtime 101\r\nget k\r\n")
            expected = b"STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\nOK\r\nEND\r\n"
            self.assertEqual(read_exactly(client, len(expected)), expected)

    def test_config_command(self) -> None:
        """``kvtls config`` shows where values come from."""
        file = self.directory / "kvtls.toml"
        file.write_text("max-connections = 17\n", encoding="utf-8")
        with KvtlsProcess("--config", str(file), "--user", "alice:hunter2") as service:
            done = subprocess.run(
                [
                    *[sys.executable, "-m", "kvproto.cli"],
                    *["--state-dir", str(service.state_dir), "config", "--json"],
                ],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
        rows = {row["name"]: row for row in json.loads(done.stdout)["options"]}
        self.assertEqual(rows["max-connections"]["source"], f"{file}:1")
        self.assertEqual(rows["user"]["value"], ["alice:***"])


class MessageTests(SynchronousTestCase):
    """One line that says what is wrong."""

    def test_command_lines(self) -> None:
        """Each bad command line has its own sentence."""
        listen = "--listen"
        wrong = (
            ([listen, "tcp:x"], "--listen: 'tcp:x' is no endpoint: 'x' is no number"),
            ([listen, "tcp:1:foo=b"], "is no endpoint: it has an argument 'foo' that is not known"),
            ([listen, "tcp"], "is no endpoint: its port is missing"),
            ([listen, "tcp:1:interface=::1"], r"a colon that is not written \:"),
            (["--store", "file:/dev/null"], "--store: /dev/null is no directory"),
            (["--store", "file:/proc/version/data"], "--store: /proc/version"),
            (["--user", "\udcff:secret"], "--user: is not UTF-8"),
            (["--collection", "s.\udcff"], "--collection: is not UTF-8"),
            ([listen, "foo:1"], "is no endpoint: there is no kind of endpoint called 'foo'"),
            ([listen, "tcp:-1"], "a port is a number from 0 to 65535"),
            ([listen, "unix:"], "names no path"),
            ([listen, "haproxy:tcp:1"], "does not name a loopback address"),
            (["--plain", "tcp:0"], "can be reached from other machines"),
            (["--max-connections", "-1"], "--max-connections: must be 0 or more, not -1"),
            (["--max-value", "65MiB"], "--max-value: 68157440 bytes never fit into --memory-limit"),
            (["--certificate="], "--certificate: names no file"),
            (["--no-flush", "--allow-flush"], "--no-flush: contradicts --allow-flush"),
            (["--mode", "memcached", "--mode", "couchbase"], "--mode is given twice"),
        )
        ends = run_each([[*arguments, "--check"] for arguments, _ in wrong])
        for (arguments, words), done in zip(wrong, ends, strict=True):
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
