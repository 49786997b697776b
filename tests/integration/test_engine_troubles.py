"""Engines that answer, but not what is wanted: what clients hear, what the log says, and the end.

Each trouble is made by the real server.  Clients get the contract's answer, the log has one line
that names the server and the reason, and when the trouble is over clients are served, without a
restart.
"""

from __future__ import annotations

import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority
from tests.integration.engine_load import TextClient
from tests.integration.engines import RedisCluster, RedisServer
from tests.integration.live import eventually, kvtls
from tests.integration.service import KvtlsProcess
from tests.integration.test_engines import GONE, TEMPORARY, client, service
from tests.ports import free_port

BACK = re.compile(r"engine \S+ (is back|answers)")


def refuses(reason: str, text: str) -> re.Pattern[str]:
    """Return what the log says when an engine that is there refuses commands."""
    return re.compile(rf"engine (\S+) refuses commands: {reason}: .*{text}")


class Silence:
    """Passes connections on to a server until it is silenced: then nothing, not even their end.

    Args:
        port: Of the server.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[tuple[socket.socket, threading.Event]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            silent = threading.Event()
            self._open += [(near, silent), (far, silent)]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(*pair, silent), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if not silent.is_set():
                    target.sendall(data)
            if not silent.is_set():
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def silence(self) -> None:
        """Pass nothing on any more, on the connections that are there."""
        for _, silent in self._open:
            silent.set()

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        for end, _ in self._open:
            end.close()


class TroubleTests(SynchronousTestCase):
    """One server."""

    def setUp(self) -> None:
        self.engine = self.enterContext(RedisServer())

    def serve(self, url: str = "", *options: str) -> KvtlsProcess:
        return self.enterContext(service(url or self.engine.url, *options))

    def lines(self, running: KvtlsProcess, pattern: re.Pattern[str]) -> int:
        return len(pattern.findall(running.output))

    def stored(self, one: TextClient) -> None:
        """Wait until clients are served again."""
        eventually(lambda: one.set("k", b"again") == b"STORED")
        self.assertEqual(one.get("k"), b"again")

    def is_refused(self, one: TextClient) -> bool:
        """Whether a read is answered with a temporary failure."""
        one.send(b"get k\r\n")
        head = one.line()
        if head.startswith(b"VALUE "):
            self.assertEqual((one.line(), one.line()), (b"1", b"END"))
        return head == TEMPORARY

    def check_refused(
        self, running: KvtlsProcess, one: TextClient, said: re.Pattern[str], *, reads: bool = True
    ) -> None:
        """Hold what clients hear, and what the log says once, to the contract."""
        for _ in range(3):
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
            for line in (b"incr k 1", b"touch k 100", b"delete k"):
                self.assertEqual(one.ask(line), TEMPORARY)
        if reads:
            self.assertEqual(one.get("k"), b"1")
        else:
            self.assertEqual(one.ask(b"get k"), TEMPORARY)
        running.wait_for_line(said)
        self.assertEqual(self.lines(running, said), 1, running.output)
        self.assertNotIn("Traceback", running.output)

    def test_replica(self) -> None:
        """A server that has become a replica serves reads, and writes when it is promoted."""
        primary = self.enterContext(RedisServer())
        running = self.serve()
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            self.engine.cli("config", "set", "replica-serve-stale-data", "yes")
            primary.kill()  # nobody whose contents could replace those that are here
            self.engine.cli("replicaof", "127.0.0.1", str(primary.port))
            self.check_refused(running, one, refuses("read-only", "READONLY"))
            self.engine.cli("replicaof", "no", "one")
            self.stored(one)

    def test_replica_from_the_start(self) -> None:
        """A service that finds a replica starts, says so, and serves when it is promoted."""
        self.engine.cli("replicaof", "127.0.0.1", str(free_port()))
        running = self.serve()
        with client(running) as one:
            self.check_refused(running, one, refuses("read-only", "READONLY"), reads=False)
            self.engine.cli("replicaof", "no", "one")
            self.stored(one)

    def test_permissions(self) -> None:
        """A command that the user may not use is named, and used once it may be."""
        engine = self.engine
        password = engine.directory / "password"
        password.write_text("sesame\n")
        engine.cli("acl", "setuser", "kv", "on", ">sesame", "~kvtls*", "+@all")
        url = f"redis://kv@127.0.0.1:{engine.port}?password-file={password}"
        running = self.serve(url)
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            engine.cli("acl", "setuser", "kv", "-evalsha")
            self.check_refused(running, one, refuses("login", "'?evalsha"))
            engine.cli("acl", "setuser", "kv", "+evalsha")
            self.stored(one)
            # A key that it may not touch, and a command that only the script uses.
            engine.cli("acl", "setuser", "kv", "resetkeys", "~other*")
            self.assertEqual(one.ask(b"get k"), TEMPORARY)
            engine.cli("acl", "setuser", "kv", "~kvtls*", "-getrange")
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
            engine.cli("acl", "setuser", "kv", "+@all")
            self.stored(one)
        self.assertNotIn("sesame", running.output)

    def test_few_permissions(self) -> None:
        """The permissions that the documentation lists are enough."""
        page = Path(__file__).parents[2] / "docs" / "reference" / "engines.md"
        found = re.search(r"ACL SETUSER kvtls .*", page.read_text("utf-8"))
        assert found is not None
        words = found[0].rstrip("`").replace("PASSWORD", "sesame").split()
        engine = self.engine
        self.assertEqual(engine.cli(*words).strip(), "OK")
        password = engine.directory / "password"
        password.write_text("sesame\n")
        running = self.serve(f"redis://kvtls@127.0.0.1:{engine.port}?password-file={password}")
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            self.assertEqual(one.ask(b"incr k 1"), b"2")
            self.assertEqual(one.ask(b"touch k 100"), b"TOUCHED")
            self.assertEqual(one.ask(b"delete k"), b"DELETED")
            self.assertEqual(one.ask(b"flush_all"), b"OK")
            self.stored(one)
            one.send(b"stats\r\n")
            while one.line() != b"END":
                pass
        path = Path(self.mktemp()).absolute()
        said = kvtls(running, "backup", str(path))
        self.assertEqual(said.returncode, 0, said)
        self.assertNotRegex(running.output, "refuses commands")

    def test_password_changed(self) -> None:
        """A password that was changed while it ran: said, and used when the file has it."""
        engine = self.engine
        engine.cli("config", "set", "requirepass", "old")
        password = engine.directory / "password"
        password.write_text("old\n")
        running = self.serve(f"{engine.url}?password-file={password}", "--watch-interval", "0.2")
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            engine.cli("-a", "old", "config", "set", "requirepass", "new")
            engine.cli("-a", "new", "client", "kill", "type", "normal")
            said = re.compile(r"engine \S+ does not answer: login: WRONGPASS")
            running.wait_for_line(said)
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
            self.assertEqual(self.lines(running, said), 1)
            password.write_text("new\n")
            self.stored(one)

    def test_database(self) -> None:
        """A database that is not there is said, with the server's words."""
        running = self.serve(f"{self.engine.url}/99")
        running.wait_for_line(re.compile(r"does not answer: refused: .*out of range"))
        with client(running) as one:
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
        self.assertIn("out of range", kvtls(running, "status", "--ready").stderr)
        self.assertEqual(self.lines(running, GONE), 1)

    def test_busy(self) -> None:
        """A script that runs for long costs answers while it runs, and nothing afterwards."""
        engine = self.engine
        engine.cli("config", "set", "lua-time-limit", "50")
        running = self.serve(f"{engine.url}?timeout=1&connect-timeout=1")
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            script = threading.Thread(target=engine.cli, args=("eval", "while true do end", "0"))
            script.start()
            try:
                eventually(lambda: self.is_refused(one))
                running.wait_for_line(re.compile(r"engine \S+ .*: overload: BUSY"))
                self.assertEqual(one.set("k", b"x"), TEMPORARY)
            finally:
                engine.cli("script", "kill")
                script.join()
            self.stored(one)
        self.assertEqual(self.lines(running, re.compile("overload: BUSY")), 1, running.output)

    def test_disk(self) -> None:
        """A server that refuses writes since its disk is in trouble serves reads."""
        self.engine.cli("ping")  # it has looked for that file by now
        (self.engine.directory / "dump.rdb").mkdir()
        running = self.serve()
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            self.engine.cli("config", "set", "save", "3600 1")
            self.engine.cli("bgsave")
            failed = "rdb_last_bgsave_status:err"
            eventually(lambda: failed in self.engine.cli("info", "persistence"))
            self.check_refused(running, one, refuses("no-disk", "MISCONF"))
            self.engine.cli("config", "set", "stop-writes-on-bgsave-error", "no")
            self.stored(one)

    def test_no_replicas(self) -> None:
        """A server that wants replicas for writes, and has none, serves reads."""
        running = self.serve()
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            self.engine.cli("config", "set", "min-replicas-to-write", "1")
            self.check_refused(running, one, refuses("no-replicas", "NOREPLICAS"))
            self.engine.cli("config", "set", "min-replicas-to-write", "0")
            self.stored(one)

    def test_loading(self) -> None:
        """A server that loads its data is said to, and serves when it has."""
        running = self.serve()
        with client(running) as one:
            self.assertEqual(one.set("k", b"1"), b"STORED")
            self.engine.cli("eval", "for i = 1, 2000 do redis.call('SET', i, i) end", "0")
            self.engine.cli("save")
            self.engine.kill()
            running.wait_for_line(GONE)
            self.engine.start(
                "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"
            )
            loading = re.compile(r"engine \S+ does not answer: loading: LOADING")
            running.wait_for_line(loading)
            self.assertEqual(one.ask(b"get k"), TEMPORARY)
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
            self.stored(one)
            self.assertEqual(self.lines(running, loading), 1)

    def test_half_open(self) -> None:
        """Connections that have died without a word cost one timeout; new ones are made."""
        between = Silence(self.engine.port)
        self.addCleanup(between.close)
        running = self.serve(f"redis://127.0.0.1:{between.port}?timeout=0.5")
        with client(running) as one:
            for _ in range(3):
                self.stored(one)
                between.silence()
                self.assertEqual(one.ask(b"get k"), TEMPORARY)
                eventually(lambda: one.get("k") == b"again")
        self.assertNotIn("Traceback", running.output)

    def test_member_of_a_cluster(self) -> None:
        """A server of a cluster that is named as if it were alone: said, with what to write."""
        cluster = self.enterContext(RedisCluster(replicas=0))
        running = self.serve(cluster.servers[0].url)
        with client(running) as one:
            for number in range(20):
                one.set(f"k{number}", b"v")
            line = running.wait_for_line(re.compile("engine .*redirected: MOVED .*"))
            self.assertIn("redis+cluster://", line)

    def test_no_cluster(self) -> None:
        """A server that is alone, named as a cluster: said."""
        running = self.serve(f"redis+cluster://127.0.0.1:{self.engine.port}")
        with client(running) as one:
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
            running.wait_for_line(re.compile("engine .*cluster support disabled"))
        self.assertIn("cluster support disabled", kvtls(running, "status", "--ready").stderr)


class ClusterTroubleTests(SynchronousTestCase):
    """A cluster."""

    def test_down(self) -> None:
        """A cluster that lacks a primary refuses everything, and serves when it is back."""
        cluster = self.enterContext(RedisCluster(replicas=0))
        running = self.enterContext(service(f"{cluster.url}?timeout=1"))
        with client(running) as one:
            names = [f"k{number}" for number in range(20)]
            for name in names:
                self.assertEqual(one.set(name, b"1"), b"STORED")
            cluster.servers[2].kill()
            for name in names:
                eventually(lambda: one.set(name, b"x") == TEMPORARY)  # noqa: B023
            down = refuses("cluster-down", "CLUSTERDOWN")
            running.wait_for_line(down)
            cluster.servers[2].start()
            for name in names:
                eventually(lambda: one.set(name, b"2") == b"STORED")  # noqa: B023
                self.assertEqual(one.get(name), b"2")
        # One for each server: the one that was gone refuses too until it sees the others.
        told = down.findall(running.output)
        self.assertEqual(len(told), len(set(told)))
        self.assertNotIn("Traceback", running.output)


class CertificateTests(SynchronousTestCase):
    """A server whose certificate is no good any more."""

    def test_expired(self) -> None:
        """A certificate that has expired is said; with another one clients are served."""
        files = Path(self.mktemp()).absolute()
        files.mkdir()
        authority = Authority.root("engine CA")
        (files / "ca.pem").write_bytes(authority.certificate_pem)

        def write(**options: Any) -> None:
            identity = authority.issue("engine", ("127.0.0.1",), **options)
            (files / "server.pem").write_bytes(identity.chain_pem)
            (files / "server.key").write_bytes(identity.key_pem)

        now = datetime.now(UTC)
        write(not_before=now - timedelta(days=2), not_after=now - timedelta(days=1))
        port = free_port()
        engine = self.enterContext(
            RedisServer(
                "--tls-port", str(port), "--tls-cert-file", str(files / "server.pem"),
                "--tls-key-file", str(files / "server.key"),
                "--tls-ca-cert-file", str(files / "ca.pem"), "--tls-auth-clients", "no",
            )
        )  # fmt: skip
        running = self.enterContext(service(f"rediss://127.0.0.1:{port}?ca={files / 'ca.pem'}"))
        line = running.wait_for_line(GONE)
        self.assertIn("certificate verify failed", line)
        with client(running) as one:
            self.assertEqual(one.set("k", b"x"), TEMPORARY)
            write()
            # The server reads its files again when it is told to.
            engine.cli("config", "set", "tls-cert-file", str(files / "server.pem"))
            eventually(lambda: one.set("k", b"v") == b"STORED")
        self.assertEqual(len(GONE.findall(running.output)), 1)
