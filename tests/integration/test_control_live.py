"""The command ``kvtls`` and signals, against a service that runs."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import NoServiceError, call
from kvproto.ops.commands import CONTROL_SOCKET
from tests.integration.live import (
    Command,
    CredentialDirectory,
    ask,
    eventually,
    kvtls,
    new_server_identity,
    noop,
    status,
)
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer, sasl_plain

GET, SET = 0x00, 0x01
CALLERS = 20
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "control.md"


class ControlCase(SynchronousTestCase):
    """A directory of credentials for each test, and threads for commands that wait."""

    def setUp(self) -> None:
        self.files = CredentialDirectory()
        self.addCleanup(self.files.remove)
        self.aside = ThreadPoolExecutor(CALLERS)
        self.addCleanup(self.aside.shutdown)

    def run_service(self, *options: str) -> KvtlsProcess:
        """Start a service that does not watch its files; it ends with the test."""
        service = KvtlsProcess(*self.files.options, "--watch-interval", "0", *options)
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def later(self, service: KvtlsProcess, *arguments: str) -> Future[Command]:
        """Run a command while the test does something else."""
        return self.aside.submit(kvtls, service, *arguments)

    def stuck(self, service: KvtlsProcess) -> socket.socket:
        """Return a connection that asks for much and reads nothing: it cannot drain."""
        peer = service.connect(self.files.client())
        self.addCleanup(peer.close)
        peer.sendall(packet(SET, b"k", bytes(1_000_000), bytes(8)))
        self.assertEqual(read_answer(peer).status, 0)
        peer.sendall(packet(GET, b"k") * 30)
        return peer


class ManyCallersTests(ControlCase):
    """Requests that meet."""

    def test_twenty_reloads(self) -> None:
        """Twenty commands at once are twenty verdicts, and few readings of the files."""
        service = self.run_service()
        served = self.files.serve(new_server_identity())
        commands = [self.later(service, "reload", "--wait", "--json") for _ in range(CALLERS)]
        answers = [json.loads(one.result(PATIENCE).stdout) for one in commands]
        self.assertEqual(
            {(one["ok"], one["generation"], one["fingerprint_sha256"]) for one in answers},
            {(True, 2, served)},
        )
        self.assertIn(True, [one["changed"] for one in answers])

    def test_twenty_at_the_same_moment(self) -> None:
        """Those that are under way together share one job: two readings for all of them."""
        service = self.run_service()
        self.files.serve(new_server_identity())
        asked = threading.Barrier(CALLERS + 1)

        def reload() -> dict[str, Any]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(str(service.state_dir / CONTROL_SOCKET))
                connection.sendall(b'{"command":"reload","arguments":{"wait":true}}\n')
                asked.wait(PATIENCE)
                with connection.makefile("rb") as stream:
                    answer: dict[str, Any] = json.loads(stream.readline())
                    return answer

        # Stopped, so that it finds all of them at once however busy the machine is.
        service.process.send_signal(signal.SIGSTOP)
        answers = [self.aside.submit(reload) for _ in range(CALLERS)]
        asked.wait(PATIENCE)
        service.process.send_signal(signal.SIGCONT)
        self.assertEqual(
            {(one["ok"], one["generation"]) for one in [one.result(PATIENCE) for one in answers]},
            {(True, 2)},
        )
        self.assertLessEqual(len(re.findall(r"] reload: ", service.output)), CALLERS // 2)

    def test_reload_and_restart_together(self) -> None:
        """Commands of different kinds that meet are all carried out."""
        service = self.run_service()
        commands = []
        for number in range(CALLERS):
            self.files.serve(new_server_identity())
            words = ("reload", "--wait") if number % 2 else ("restart", "all")
            commands.append(self.later(service, *words))
        outcomes = Counter(one.result(PATIENCE).returncode for one in commands)
        self.assertEqual(outcomes, {0: CALLERS})
        ask(service, self.files.client())


class MomentTests(ControlCase):
    """A reload that comes at a bad moment."""

    def test_during_start(self) -> None:
        """A service that has hardly begun to start answers with a verdict."""
        path = self.files.path / "state"
        asked = self.aside.submit(self.reload_first, path / CONTROL_SOCKET)
        self.run_service("--state-dir", str(path))
        answer = asked.result(PATIENCE)
        self.assertEqual((answer["ok"], answer["changed"], answer["generation"]), (True, False, 1))

    def reload_first(self, path: Path) -> dict[str, Any]:
        """Ask as soon as anybody listens."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call(path, "reload", {"wait": True})
            except NoServiceError:
                assert time.monotonic() < deadline

    def test_during_drain(self) -> None:
        """While a drain waits for a client that does not read, certificates still rotate."""
        service = self.run_service("--drain-timeout", "2")
        self.stuck(service)
        idle = service.connect(self.files.client())
        self.addCleanup(idle.close)
        silent = socket.create_connection(service.addresses[0])
        self.addCleanup(silent.close)
        eventually(lambda: status(service)["connections"]["total"] == 3)
        drained = self.later(service, "drain", "--wait", "--json")
        self.assertEqual(idle.recv(1), b"")
        idle.close()
        eventually(lambda: status(service)["service"]["state"] == "draining")
        served = self.files.serve(new_server_identity())
        done = kvtls(service, "reload", "--wait", "--json")
        answer = json.loads(done.stdout)
        self.assertEqual((done.returncode, answer["fingerprint_sha256"]), (0, served))
        answer = json.loads(drained.result(PATIENCE).stdout)
        self.assertEqual((answer["ok"], answer["drained"], answer["aborted"]), (True, 1, 1))
        self.assertEqual(status(service)["service"]["state"], "drained")
        self.assertRaises(OSError, service.connect, self.files.client())
        self.assertEqual(kvtls(service, "restart", "all").returncode, 0)
        self.assertEqual(status(service)["service"]["state"], "ready")
        # The system chose the port, and has chosen another one.
        host, _, port = status(service)["listeners"][0]["address"].rpartition(":")
        service.addresses[0] = (host, int(port))
        self.assertEqual(ask(service, self.files.client()), served)

    def test_during_stop(self) -> None:
        """While the service stops, whoever asks gets a verdict, and the stop its end."""
        service = self.run_service("--drain-timeout", "2")
        self.stuck(service)
        stopped = self.later(service, "stop", "--wait")
        eventually(lambda: status(service)["service"]["state"] == "stopping")
        served = self.files.serve(new_server_identity())
        done = kvtls(service, "reload", "--wait", "--json")
        answer = json.loads(done.stdout)
        self.assertEqual((done.returncode, answer["fingerprint_sha256"]), (0, served))
        self.assertEqual(stopped.result(PATIENCE).returncode, 0)
        self.assertEqual(service.process.wait(PATIENCE), 0)
        self.assertEqual(kvtls(service, "status").returncode, 3)


class SignalTests(ControlCase):
    """SIGTERM, once and twice."""

    def test_in_a_hurry(self) -> None:
        """The first SIGTERM waits for who does not read, the second for nobody."""
        forever = str(100 * PATIENCE)
        service = self.run_service("--drain-timeout", forever, "--close-timeout", forever)
        self.stuck(service)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_line(re.compile("a second signal stops at once"))
        eventually(lambda: status(service)["service"]["state"] == "stopping")
        self.assertIsNone(service.process.poll())
        service.process.send_signal(signal.SIGTERM)
        self.assertEqual(service.process.wait(PATIENCE), 0)


def names_in(value: object) -> set[str]:
    """Return the name of each field of an answer, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*(names_in(one) for one in value.values()))
    if isinstance(value, list):
        return set[str]().union(*(names_in(one) for one in value))
    return set()


class ReadingTests(ControlCase):
    """What operators and programs read."""

    def crowded(self) -> KvtlsProcess:
        """Return a service with listeners, connections and a past worth showing."""
        sock = self.files.path / ("a-rather-long-name-" * 2 + "of-a-socket")
        user = "somebody.with.a.rather.long.name@internal.example.com"
        listeners = ("tcp:0:interface=127.0.0.1", r"tcp6:0:interface=\:\:1", f"unix:{sock}")
        options = [word for one in listeners for word in ("--listen", one)]
        service = self.run_service(*options, "--user", f"{user}:secret", "--anonymous")
        context = self.files.client()
        for family, address in (
            (socket.AF_INET, service.addresses[0]),
            (socket.AF_INET6, service.addresses[1]),
            (socket.AF_UNIX, str(sock)),
        ):
            plain = socket.socket(family)
            plain.settimeout(PATIENCE)
            plain.connect(address)
            peer = context.wrap_socket(plain, server_hostname="localhost")
            self.addCleanup(peer.close)
            peer.sendall(sasl_plain(user, "secret"))
            self.assertEqual(read_answer(peer).status, 0)
        silent = socket.create_connection(service.addresses[0])
        self.addCleanup(silent.close)
        self.files.key.write_bytes(new_server_identity().key_pem)
        self.assertEqual(kvtls(service, "reload", "--wait").returncode, 1)
        return service

    def test_text_and_json(self) -> None:
        """Text fits 80 columns; every name of the JSON is in the reference."""
        service = self.crowded()
        page = PAGE.read_text(encoding="utf-8")
        documented = set(re.findall(r"`([a-z0-9_]+)`", page))
        for command in ("status", "connections"):
            done = kvtls(service, command)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertLessEqual(max(map(len, done.stdout.splitlines())), 80, done.stdout)
            answer = json.loads(kvtls(service, command, "--json").stdout)
            by_name = self.without_counters(answer)
            self.assertEqual(names_in(by_name) - documented, set(), command)
        rows = answer["connections"]
        self.assertEqual(
            [row["listener"] for row in rows], ["data-1", "data-2", "data-3", "data-1"]
        )
        self.assertEqual([row["state"] for row in rows], ["owned"] * 3 + ["handshaking"])
        self.assertEqual({row["tls"] for row in rows[:3]}, {"TLSv1.3"})
        self.assertEqual(len({row["user"] for row in rows[:3]}), 1)
        only = json.loads(kvtls(service, "connections", "--json", "--listener", "data-2").stdout)
        self.assertEqual((only["shown"], only["connections"][0]["listener"]), (1, "data-2"))
        done = kvtls(service, "connections", "--listener", "nowhere")
        self.assertEqual(done.returncode, 1)
        self.assertIn("data-1", done.stderr)

    def without_counters(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Leave out the fields that are named after what they count."""
        for container, names in (
            ("counters", ("ended", "deadline_expired")),
            ("connections", ("by_state", "oldest_s")),
        ):
            if isinstance(answer.get(container), dict):
                for name in names:
                    answer[container][name] = None
        return answer


class KeyLogTests(ControlCase):
    """``--keylog``."""

    def test_secrets(self) -> None:
        """The file is private, and holds the same secrets as the client's own key log."""
        path, mine = self.files.path / "keys.log", self.files.path / "client.log"
        service = self.run_service("--keylog", str(path))
        context = self.files.client()
        context.keylog_filename = str(mine)
        with service.connect(context) as peer:
            noop(peer)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        secrets = {line for line in mine.read_text().splitlines() if not line.startswith("#")}
        self.assertIn("CLIENT_TRAFFIC_SECRET_0", {line.split()[0] for line in secrets})
        self.assertTrue(secrets <= set(path.read_text().splitlines()))

    def test_off(self) -> None:
        """Without the option nobody writes any."""
        service = self.run_service()
        ask(service, self.files.client())
        written = [path for path in service.state_dir.parent.rglob("*") if path.is_file()]
        self.assertEqual([p for p in written if b"CLIENT_TRAFFIC" in p.read_bytes()], [])
