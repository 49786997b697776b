"""Services in front of a Valkey or Redis server or cluster, on good days and bad ones."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority, Identity
from tests.integration.engine_load import Counting, DurableWriting, TextClient, write_durably
from tests.integration.engines import (
    RedisCluster,
    RedisServer,
    shared_cluster,
    shared_server,
)
from tests.integration.live import eventually, kvtls
from tests.integration.service import (
    FAILOVER_ROUNDS,
    KILL_ROUNDS,
    PATIENCE,
    KvtlsProcess,
    run_kvtls,
)
from tests.integration.test_clients import everything_on
from tests.integration.wire_client import packet, read_answer
from tests.ports import free_port

GONE = re.compile(r"engine \S+ does not answer: .*")
BACK = re.compile(r"engine \S+ is back")
TEMPORARY = b"SERVER_ERROR temporary failure"


def service(url: str, *options: str, mode: str = "couchbase") -> KvtlsProcess:
    """Start a service on an engine, with a listener without TLS, whose port is the second."""
    return KvtlsProcess(
        "--store", url, "--mode", mode, "--allow-flush", "--plain",
        "tcp:0:interface=127.0.0.1", *options,
    )  # fmt: skip


def plain_port(running: KvtlsProcess) -> int:
    """Return the port without TLS."""
    return running.addresses[1][1]


def client(running: KvtlsProcess) -> TextClient:
    """Connect without TLS."""
    return TextClient(plain_port(running))


class _SeveralServices(SynchronousTestCase):
    """Two services on one engine are one service."""

    modes = ("couchbase", "memcached")

    def url(self) -> str:
        raise SkipTest("for those below")

    def two(self, mode: str = "couchbase", *options: str) -> tuple[KvtlsProcess, KvtlsProcess]:
        bucket = f"{type(self).__name__}.{self._testMethodName[5:]}.{mode}"
        first = self.enterContext(service(self.url(), "--bucket", bucket, *options, mode=mode))
        second = self.enterContext(service(self.url(), "--bucket", bucket, *options, mode=mode))
        return first, second

    def test_counters(self) -> None:
        """Counters that many clients change through both services end in exact totals."""
        for mode in self.modes:
            both = self.two(mode)
            with client(both[0]) as one:
                for key in ("a", "b"):
                    self.assertEqual(one.set(key, b"0"), b"STORED")
                load = Counting([plain_port(each) for each in both], ["a", "b"], 8, 250)
                load.join()
                self.assertEqual((load.errors, load.refused), ([], 0))
                self.assertEqual((one.get("a"), one.get("b")), (b"1000", b"1000"))

    def test_compare_and_swap(self) -> None:
        """So do values that are changed by gets and cas, and by append."""
        for mode in self.modes:
            both = self.two(mode)
            won: list[int] = []

            def swap(running: KvtlsProcess, won: list[int] = won) -> None:
                with client(running) as mine:
                    for _ in range(50):
                        while True:
                            value, cas = mine.gets("n")
                            if mine.set("n", b"%d" % (int(value) + 1), cas) == b"STORED":
                                break
                        mine.send(b"append log 0 0 1\r\nx\r\n")
                        assert mine.line() == b"STORED"
                won.append(1)

            with client(both[0]) as one:
                one.set("n", b"0")
                one.set("log", b"")
                threads = [
                    threading.Thread(target=swap, args=(both[number % 2],)) for number in range(4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(PATIENCE)
                self.assertEqual(len(won), 4)
                self.assertEqual((one.get("n"), one.get("log")), (b"200", b"x" * 200))

    def test_locks(self) -> None:
        """A lock taken through one service holds in the other."""
        first, second = self.two()
        with client(first) as one, client(second) as other:
            self.assertEqual(one.set("k", b"v"), b"STORED")
            with client(first) as binary:
                binary.send(packet(0x94, b"k", extras=(20).to_bytes(4)))
                locked = read_answer(binary.socket)
            self.assertEqual(locked.status, 0)
            self.assertEqual(other.set("k", b"w"), TEMPORARY)
            with client(second) as binary:
                binary.send(packet(0x95, b"k", cas=locked.cas))
                self.assertEqual(read_answer(binary.socket).status, 0)
            self.assertEqual(other.set("k", b"w"), b"STORED")
            self.assertEqual(one.get("k"), b"w")

    def test_sub_documents(self) -> None:
        """Sub-document counters and array appends of many clients are all there."""
        both = self.two()

        def mutate(running: KvtlsProcess) -> None:
            with client(running) as mine:
                for _ in range(50):
                    specs = (
                        b"\xcf\0" + b"\0\1\0\0\0\1" + b"n1" + b"\xcb\0" + b"\0\1\0\0\0\1" + b"a7"
                    )
                    mine.send(packet(0xD1, b"k", specs))
                    status = read_answer(mine.socket).status
                    assert status == 0, status

        with client(both[0]) as one:
            one.set("k", b'{"n":0,"a":[]}')
            threads = [
                threading.Thread(target=mutate, args=(both[number % 2],)) for number in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            self.assertEqual(one.get("k"), b'{"n":300,"a":[%b]}' % b",".join([b"7"] * 300))

    def test_flush(self) -> None:
        """A flush through one service is seen through the other at once, every time."""
        for mode in self.modes:
            first, second = self.two(mode)
            with client(first) as one, client(second) as other:
                for turn in range(50):
                    self.assertEqual(one.set("k", b"%d" % turn), b"STORED")
                    self.assertEqual(other.get("k"), b"%d" % turn)
                    self.assertEqual(one.ask(b"flush_all"), b"OK")
                    self.assertIsNone(other.get("k"))
                    self.assertEqual(other.set("k", b"new"), b"STORED")
                    self.assertEqual(one.get("k"), b"new")

    def test_pipelined(self) -> None:
        """Requests that are sent together are answered in order, and much faster."""
        first, _ = self.two("memcached")
        with client(first) as one:
            names = [f"k{number}" for number in range(200)]
            started = time.monotonic()
            for name in names:
                one.set(name, name.encode())
            alone = time.monotonic() - started
            batch = b"".join(b"get %b\r\n" % name.encode() for name in names)
            started = time.monotonic()
            one.send(batch)
            for name in names:
                self.assertEqual(one.line(), f"VALUE {name} 0 {len(name)}".encode())
                self.assertEqual((one.line(), one.line()), (name.encode(), b"END"))
            together = time.monotonic() - started
        # Not a judgement on speed, only that requests do not wait for each other's answers.
        self.assertLess(together, alone)


class ClientTests(SynchronousTestCase):
    """memcached's clients, the documents being in a server or a cluster."""

    def test_clients(self) -> None:
        """Each operation of each client does what it says, in both modes."""
        for engine in (shared_server(), shared_cluster()):
            everything_on(engine.url)


class RedisTests(_SeveralServices):
    """Several services on one server."""

    def url(self) -> str:
        return shared_server().url


class ClusterTests(_SeveralServices):
    """Several services on a cluster."""

    def url(self) -> str:
        return shared_cluster().url


class BackupTests(SynchronousTestCase):
    """``kvtls backup`` and ``kvtls restore`` of what is in an engine."""

    def check(self, url: str) -> None:
        path = str(Path(self.mktemp()).absolute())
        bucket = f"backup.{type(self).__name__}.{self._testMethodName[5:]}"
        running = self.enterContext(service(url, "--bucket", bucket))
        with client(running) as one:
            # Before anybody has asked the engine nothing is known, and never told as 0.
            for number in range(500):
                self.assertEqual(one.set(f"k{number}", b"%d" % number), b"STORED")
            said = kvtls(running, "backup", path, "--json")
            self.assertEqual(
                (said.returncode, json.loads(said.stdout)["documents"]), (0, 500), said
            )
            self.assertEqual(one.ask(b"flush_all"), b"OK")
            self.assertEqual(one.set("k1", b"other"), b"STORED")
            self.assertEqual(one.set("stays", b"here"), b"STORED")
            said = kvtls(running, "restore", path, "--json")
            self.assertEqual(
                (said.returncode, json.loads(said.stdout)["documents"]), (0, 500), said
            )
            for number in (0, 1, 250, 499):
                self.assertEqual(one.get(f"k{number}"), b"%d" % number)
            self.assertEqual(one.get("stays"), b"here")

            def items() -> Any:
                (row,) = json.loads(kvtls(running, "status", "--json").stdout)["buckets"]
                return row["items"]

            eventually(lambda: items() == 501)
        self.assertNotIn("Traceback", running.output)

    def test_single(self) -> None:
        """One server."""
        self.check(shared_server().url)

    def test_cluster(self) -> None:
        """A cluster: the documents of all its servers."""
        self.check(shared_cluster().url)

    def test_away(self) -> None:
        """A backup of an engine that is away fails, and says so; numbers are not known."""
        engine = self.enterContext(RedisServer())
        running = self.enterContext(service(engine.url))
        engine.kill()
        running.wait_for_line(GONE)
        path = Path(self.mktemp()).absolute()
        said = kvtls(running, "backup", str(path))
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("engine", said.stdout + said.stderr)
        self.assertFalse(path.exists())
        self.assertIn("unknown", kvtls(running, "status").stdout)


class BadDaysTests(SynchronousTestCase):
    """What clients, operators and data see when a server is in trouble."""

    def server(self, *options: str) -> RedisServer:
        return self.enterContext(RedisServer(*options))

    def test_killed_and_started_again_empty(self) -> None:
        """While the engine is gone clients hear so at once; when it is back they are served."""
        engine = self.server()
        running = self.enterContext(service(engine.url))
        with client(running) as one:
            for turn in range(1, KILL_ROUNDS + 1):
                self.assertEqual(one.set("k", b"v"), b"STORED")
                engine.kill()
                eventually(lambda: len(GONE.findall(running.output)) == turn)  # noqa: B023
                for line in (b"get k", b"incr k 1", b"delete k", b"touch k 0"):
                    self.assertEqual(one.ask(line), TEMPORARY)
                self.assertEqual(one.set("k", b"v"), TEMPORARY)
                engine.start()
                eventually(lambda: len(BACK.findall(running.output)) == turn)  # noqa: B023
                self.assertIsNone(one.get("k"))
                self.assertEqual(one.set("k", b"w"), b"STORED")
                self.assertEqual(one.get("k"), b"w")
        self.assertEqual(len(GONE.findall(running.output)), KILL_ROUNDS)
        self.assertEqual(len(BACK.findall(running.output)), KILL_ROUNDS)
        self.assertNotIn("Traceback", running.output)

    def test_restart_under_load(self) -> None:
        """Counters that many clients change while the engine is killed are right afterwards."""
        engine = self.server("--appendonly", "yes", "--appendfsync", "always")
        running = self.enterContext(service(engine.url))
        with client(running) as one:
            one.set("n", b"0")
            load = Counting([plain_port(running)], ["n"], 8)
            for _ in range(KILL_ROUNDS):
                load.wait_for_more(200)
                engine.kill()
                engine.start()
            load.wait_for_more(200)
            load.stop()
            load.check({"n": int(one.get("n") or b"0")})
        self.assertNotIn("Traceback", running.output)

    def test_stopped(self) -> None:
        """An engine that is stopped (SIGSTOP) makes nobody wait longer than the timeout, or so."""
        engine = self.server()
        running = self.enterContext(service(f"{engine.url}?timeout=0.5&connect-timeout=0.5"))
        with client(running) as one:
            one.set("n", b"0")
            load = Counting([plain_port(running)], ["n"], 4)
            for turn in range(1, KILL_ROUNDS + 1):
                load.wait_for_more(50)
                engine.freeze()
                eventually(lambda: len(GONE.findall(running.output)) == turn)  # noqa: B023
                with client(running) as reader:
                    self.assertEqual(reader.ask(b"get n"), TEMPORARY)
                engine.thaw()
                eventually(lambda: len(BACK.findall(running.output)) == turn)  # noqa: B023
            load.wait_for_more(50)
            load.stop()
            load.check({"n": int(one.get("n") or b"0")})
            self.assertLess(load.longest, PATIENCE / 2)
        self.assertNotIn("Traceback", running.output)

    def test_full(self) -> None:
        """An engine whose memory is full refuses writes as such, and goes on serving reads."""
        engine = self.server("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
        running = self.enterContext(service(engine.url))
        with client(running) as one:
            self.assertEqual(one.set("k", b"v"), b"STORED")
            for number in range(200):
                answer = one.set(f"big{number}", b"x" * 100_000)
                if answer != b"STORED":
                    break
            self.assertEqual(answer, b"SERVER_ERROR out of memory storing object")
            self.assertEqual(one.get("k"), b"v")
            one.send(b"append k 0 0 100000\r\n%b\r\n" % (b"x" * 100_000))
            self.assertEqual(one.line(), b"SERVER_ERROR out of memory storing object")
        with client(running) as one:
            self.assertEqual(one.ask(b"flush_all"), b"OK")
            eventually(lambda: one.set("again", b"x" * 100_000) == b"STORED")

    def test_loses_scripts(self) -> None:
        """An engine that has lost its scripts gets them again, and no client notices."""
        engine = self.server()
        running = self.enterContext(service(engine.url))
        with client(running) as one:
            one.set("n", b"0")
            for turn in range(1, 4):
                self.assertEqual(engine.cli("script", "flush").strip(), "OK")
                self.assertEqual(one.ask(b"incr n 1"), b"%d" % turn)
                self.assertEqual(engine.cli("script", "flush").strip(), "OK")
                self.assertEqual(one.set("k", b"v"), b"STORED")

    def test_wrong_password(self) -> None:
        """A wrong password is said; with the right one in the file clients are served."""
        engine = self.server("--requirepass", "sesame")
        password = engine.directory / "password"
        password.write_text("wrong\n")
        url = f"{engine.url}?password-file={password}"
        running = self.enterContext(service(url, "--watch-interval", "0.2"))
        running.wait_for_line(re.compile(r"does not answer: login: WRONGPASS"))
        with client(running) as one:
            self.assertEqual(one.set("k", b"v"), TEMPORARY)
            password.write_text("sesame\n")
            running.wait_for_line(BACK)
            eventually(lambda: one.set("k", b"v") == b"STORED")
        self.assertNotIn("sesame", running.output)

    def test_no_password_file(self) -> None:
        """A password file that is not there refuses the start."""
        done = run_kvtls("--store", "redis://127.0.0.1:1?password-file=/nonexistent")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/nonexistent", done.stdout + done.stderr)

    def test_readiness(self) -> None:
        """Who asks whether clients are served hears no, and why, while the engine is away."""
        engine = self.server()
        engine.kill()
        running = self.enterContext(service(engine.url, "--http", "tcp:0:interface=127.0.0.1"))
        self.assertIn(str(engine.port), running.wait_for_line(GONE))
        engine.start()
        with client(running) as one:
            eventually(lambda: one.set("k", b"v") == b"STORED")


class ClusterBadDaysTests(SynchronousTestCase):
    """A cluster that changes under load."""

    def cluster(self, *options: str, **more: Any) -> RedisCluster:
        return self.enterContext(RedisCluster(*options, **more))

    def names(self, number: int) -> list[str]:
        """Return counters that are spread over all slots."""
        return [f"n{place}" for place in range(number)]

    def values(self, running: KvtlsProcess, keys: list[str]) -> dict[str, int]:
        with client(running) as one:
            return {key: int(one.get(key) or b"0") for key in keys}

    def fill(self, running: KvtlsProcess, keys: list[str]) -> None:
        with client(running) as one:
            for key in keys:
                self.assertEqual(one.set(key, b"0"), b"STORED")

    def test_resharding(self) -> None:
        """Slots that move under load cost no client an error, and no count."""
        cluster = self.cluster(replicas=0)
        both = [self.enterContext(service(cluster.url)) for _ in range(2)]
        keys = self.names(60)
        self.fill(both[0], keys)
        load = Counting([plain_port(each) for each in both], keys, 8)
        try:
            load.wait_for_more(500)
            ids = [server.cli("cluster", "myid").strip() for server in cluster.servers]
            for source, target in ((0, 1), (1, 2)):
                said = cluster.servers[0].cli(
                    "--cluster", "reshard", f"127.0.0.1:{cluster.servers[0].port}",
                    "--cluster-from", ids[source], "--cluster-to", ids[target],
                    "--cluster-slots", "400", "--cluster-yes", "--cluster-pipeline", "1",
                )  # fmt: skip
                self.assertNotIn("[ERR]", said)
            load.wait_for_more(500)
        finally:
            load.stop()
        load.check(self.values(both[1], keys))
        self.assertEqual((load.refused, sum(load.unknown.values())), (0, 0))
        for running in both:
            self.assertNotIn("Traceback", running.output)

    def test_failover(self) -> None:
        """A primary that is killed under load: a replica takes over, and counts go on from its own.

        Replication is asynchronous, so what the replica had not got is lost; nothing else may be.
        """
        cluster = self.cluster("--cluster-replica-validity-factor", "0")
        running = self.enterContext(service(f"{cluster.url}?timeout=1"))
        keys = self.names(30)
        self.fill(running, keys)
        cluster.wait_for_replicas()
        load = Counting([plain_port(running)], keys, 8)
        # What is there, less what was acknowledged; and of how many increments nobody knew then.
        off, unknown = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
        try:
            for number in range(FAILOVER_ROUNDS):
                load.wait_for_more(1000)
                cluster.allow_failover(False)
                victim = random.choice(cluster.primaries())
                replica = cluster.replica_of(victim)
                names = victim.cli("--raw", "keys", "kvtls:default:*:n*").split()
                # At random on purpose: it decides nothing but what is cut.
                time.sleep(random.uniform(0, 0.1))
                victim.kill()
                load.wait_for_answers()
                eventually(lambda: "master_link_status:down" in replica.replication())  # noqa: B023
                for name, had in zip(names, replica.values(names, 48), strict=True):
                    key = name.rpartition(":")[2]
                    most = load.done[key] + off[key] + load.unknown[key] - unknown[key]
                    self.assertLessEqual(int(had), most)
                    off[key], unknown[key] = int(had) - load.done[key], load.unknown[key]
                cluster.allow_failover(True)
                # Every counter must move on again.
                before = dict(load.done)
                load.wait_for(lambda: all(load.done[k] > before[k] + 5 for k in keys), PATIENCE)  # noqa: B023
                if number + 1 < FAILOVER_ROUNDS:
                    victim.start()
                    cluster.wait_until_well()
        finally:
            load.stop()
        self.assertEqual(load.errors, [])
        for key, value in self.values(running, keys).items():
            least = load.done[key] + off[key]
            self.assertLessEqual(least, value, key)
            self.assertLessEqual(value, least + load.unknown[key] - unknown[key], key)
        self.assertNotIn("Traceback", running.output)


class DurabilityTests(SynchronousTestCase):
    """Durable writes wait for a majority of the servers that have a document."""

    def durable(self, running: KvtlsProcess, key: bytes, value: bytes) -> int:
        """Store a value durably; return the status."""
        with client(running) as one:
            return write_durably(one, key, value)

    def test_single(self) -> None:
        """On one server without replicas durable writes succeed."""
        running = self.enterContext(service(shared_server().url))
        self.assertEqual(self.durable(running, b"k", b"v"), 0)

    def test_replica_that_goes(self) -> None:
        """With a replica durable writes succeed; without it they are impossible, or ambiguous."""
        primary = self.enterContext(RedisServer("--repl-diskless-sync-delay", "0"))
        replica = self.enterContext(RedisServer("--replicaof", "127.0.0.1", str(primary.port)))
        running = self.enterContext(service(primary.url))
        eventually(lambda: "state=online" in primary.cli("info", "replication"))
        for number in range(20):
            self.assertEqual(self.durable(running, b"k", b"%d" % number), 0)
            self.assertEqual(replica.cli("--raw", "exists", "x").strip(), "0")
        replica.freeze()
        self.assertEqual(self.durable(running, b"k", b"ambiguous"), 0xA3)
        replica.kill()
        eventually(lambda: "connected_slaves:0" in primary.cli("info", "replication"))
        self.assertEqual(self.durable(running, b"k", b"impossible"), 0xA1)
        with client(running) as one:
            self.assertEqual(one.get("k"), b"ambiguous")
            self.assertEqual(one.set("k", b"plain"), b"STORED")
        self.assertNotIn("Traceback", running.output)

    def test_new_cluster(self) -> None:
        """A cluster that was just made is held to replicas that its map may not have yet."""
        cluster = self.enterContext(RedisCluster())
        for server in cluster.servers:
            if "role:slave" in server.replication():
                server.freeze()
        running = self.enterContext(service(cluster.url))
        self.assertIn(self.durable(running, b"k", b"v"), {0xA1, 0xA3})

    def test_failover(self) -> None:
        """What was durable is there when replicas have taken over from killed primaries."""
        cluster = self.enterContext(RedisCluster())
        running = self.enterContext(service(f"{cluster.url}?timeout=1"))
        load = DurableWriting(plain_port(running), 6, 10)
        try:
            for number in range(FAILOVER_ROUNDS):
                more = load.acknowledged + 500
                eventually(lambda: load.errors or load.acknowledged > more)  # noqa: B023
                # At random on purpose: it decides nothing but what is cut.
                time.sleep(random.uniform(0, 0.1))
                victim = random.choice(cluster.primaries())
                victim.kill()
                self.check_kept(running, load)
                if number + 1 < FAILOVER_ROUNDS:
                    victim.start()
                    cluster.wait_until_well()
        finally:
            load.stop()
        self.assertEqual(load.errors, [])
        self.check_kept(running, load)
        statuses = {self.durable(running, key.encode(), b"again") for key in load.kept}
        # The shard that has lost its replica cannot promise anything; the others can.
        self.assertIn(0, statuses)
        self.assertTrue(statuses & {0xA1, 0xA3}, statuses)
        self.assertLessEqual(statuses, {0, 0xA1, 0xA3})
        self.assertNotIn("Traceback", running.output)

    def check_kept(self, running: KvtlsProcess, load: DurableWriting) -> None:
        """Wait until all keys are served; hold them to what was acknowledged."""
        kept = dict(load.kept)
        with client(running) as one:
            for key, least in kept.items():
                head = b""

                def served(key: str = key) -> bool:
                    nonlocal head
                    head = one.ask(f"get {key}".encode())
                    return head != TEMPORARY

                eventually(served)
                self.assertTrue(head.startswith(b"VALUE "), (key, least, head))
                value = int(one.line())
                self.assertEqual(one.line(), b"END")
                self.assertLessEqual(least, value, key)
                self.assertLessEqual(value, load.tried[key], key)


class TLSTests(SynchronousTestCase):
    """An engine behind TLS, with client certificates."""

    def write(self, directory: Path, name: str, identity: Identity) -> None:
        (directory / f"{name}.key").write_bytes(identity.key_pem)
        (directory / f"{name}.pem").write_bytes(identity.chain_pem)

    def make_files(self, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Path:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.files = directory
        self.authority = Authority.root("engine CA")
        self.write(directory, "server", self.authority.issue("engine", names))
        self.write(directory, "client", self.authority.issue("kvtls", ("kvtls",)))
        (directory / "ca.pem").write_bytes(self.authority.certificate_pem)
        return directory

    def server(
        self, names: tuple[str, ...] = ("localhost", "127.0.0.1")
    ) -> tuple[RedisServer, int]:
        directory = self.make_files(names)
        port = free_port()
        engine = RedisServer(
            "--tls-port", str(port), "--tls-cert-file", str(directory / "server.pem"),
            "--tls-key-file", str(directory / "server.key"),
            "--tls-ca-cert-file", str(directory / "ca.pem"), "--tls-auth-clients", "yes",
        )  # fmt: skip
        return self.enterContext(engine), port

    def parameters(self) -> str:
        return "&".join(
            f"{name}={self.files / path}"
            for name, path in (("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key"))
        )

    def url(self, port: int, host: str = "localhost") -> str:
        return f"rediss://{host}:{port}?{self.parameters()}"

    def test_cluster(self) -> None:
        """A cluster all of whose connections are TLS: all slots, and a failover under load."""
        cluster = self.enterContext(RedisCluster(files=self.make_files()))
        running = self.enterContext(service(f"{cluster.url}?{self.parameters()}&timeout=1"))
        keys = [f"n{number}" for number in range(30)]
        with client(running) as one:
            for key in keys:
                self.assertEqual(one.set(key, b"0"), b"STORED")
        cluster.wait_for_replicas()
        load = Counting([plain_port(running)], keys, 4)
        try:
            load.wait_for_more(300)
            cluster.server_of("kvtls:x:{n0}").kill()
            load.wait_for(lambda: load.refused > 0, 20)
            before = dict(load.done)
            load.wait_for(lambda: all(load.done[key] > before[key] for key in keys), 30)
        finally:
            load.stop()
        self.assertEqual(load.errors, [])
        self.assertNotIn("Traceback", running.output)

    def test_verified(self) -> None:
        """Names and addresses are verified; another key is used when the files have changed."""
        _, port = self.server()
        for host in ("localhost", "127.0.0.1"):
            running = self.enterContext(service(self.url(port, host), "--watch-interval", "0.2"))
            with client(running) as one:
                self.assertEqual(one.set("k", b"v"), b"STORED")
                # A key that does not belong to the certificate changes nothing ...
                good = (self.files / "client.key").read_bytes()
                other = self.authority.issue("kvtls", ("kvtls",))
                (self.files / "client.key").write_bytes(other.key_pem)
                running.wait_for_line(re.compile("files cannot be used, the old ones stay: .*"))
                self.assertEqual(one.get("k"), b"v")
                # ... and the pair that belongs together is used.
                (self.files / "client.pem").write_bytes(other.chain_pem)
                running.wait_for_line(re.compile("files have changed: connections are made anew"))
                self.assertEqual(one.set("k", good[:5]), b"STORED")
            self.assertNotIn("Traceback", running.output)
            running.terminate()

    def test_another_name(self) -> None:
        """A server whose certificate has another name is not trusted, and the log says why."""
        _, port = self.server(("elsewhere.example",))
        running = self.enterContext(service(self.url(port)))
        line = running.wait_for_line(GONE)
        self.assertRegex(line, "(?i)verif|hostname|mismatch")
        with client(running) as one:
            self.assertEqual(one.set("k", b"v"), TEMPORARY)

    def test_another_authority(self) -> None:
        """Nor is one whose certificate comes from elsewhere."""
        _, port = self.server()
        (self.files / "ca.pem").write_bytes(Authority.root("other").certificate_pem)
        running = self.enterContext(service(self.url(port)))
        self.assertIn("certificate verify failed", running.wait_for_line(GONE))

    def test_files_that_are_none(self) -> None:
        """Files that cannot be used refuse the start."""
        _, port = self.server()
        url = self.url(port)
        (self.files / "client.pem").write_bytes(b"nothing")
        done = run_kvtls("--store", url)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("client.pem", done.stdout + done.stderr)
