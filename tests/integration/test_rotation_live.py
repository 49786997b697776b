"""Rotation of credentials, as operators and clients of a running service see it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority, Identity
from tests.examples import THOROUGH
from tests.integration.live import (
    CredentialDirectory,
    HalfHello,
    ask,
    eventually,
    fingerprint,
    kvtls,
    new_server_identity,
    noop,
    status,
)
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

GET, SET = 0x00, 0x01
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
BOTH_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
UNWATCHED = ("--watch-interval", "0")

THREADS = 4
RELOADS = RESTARTS = 20 if THOROUGH else 5
INTERVAL = 0.25


class Crowd:
    """Threads that connect, set, get and leave, and remember when they saw what.

    Args:
        service: Whom they visit.
        context: How.

    Attributes:
        visits: Moment before connecting, fingerprint that was shown.
        faults: Everything else.
    """

    def __init__(self, service: KvtlsProcess, context: ssl.SSLContext) -> None:
        self._service = service
        self._context = context
        self._leaving = threading.Event()
        self.visits: list[tuple[float, str]] = []
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        key = b"crowd-%d" % number
        count = 0
        while not self._leaving.is_set():
            count += 1
            began = time.monotonic()
            try:
                with self._service.connect(self._context) as peer:
                    value = b"%d" % count
                    peer.sendall(packet(SET, key, value, bytes(8)) + packet(GET, key))
                    stored, got = read_answer(peer), read_answer(peer)
                    if (stored.status, got.status, got.value) != (0, 0, value):
                        self.faults.append(f"{stored} {got}")
                    shown = peer.getpeercert(binary_form=True) or b""
                self.visits.append((began, fingerprint(shown)))
            except (OSError, EOFError) as error:
                self.faults.append(repr(error))

    def leave(self) -> None:
        """Stop, and wait for all."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class LiveCase(SynchronousTestCase):
    """A directory of credentials for each test."""

    def setUp(self) -> None:
        self.files = CredentialDirectory()
        self.addCleanup(self.files.remove)

    def run_service(self, *options: str) -> KvtlsProcess:
        """Start a service on these credentials; it ends with the test."""
        service = KvtlsProcess(*self.files.options, *options)
        self.addCleanup(service.__exit__, None, None, None)
        return service


class ConnectLoopTests(LiveCase):
    """Clients that never stop coming."""

    def test_reloads_and_restarts(self) -> None:
        """Nobody is refused or reset, and whoever comes next sees the new certificate."""
        service = self.run_service(*UNWATCHED, "--handshake-timeout", "600")
        context = self.files.client()
        verdicts = [(0.0, ask(service, context))]
        halves, silent = self._strangers(service, context)
        crowd = Crowd(service, context)
        try:
            for number in range(RELOADS):
                due = time.monotonic() + INTERVAL
                served = self.files.serve(new_server_identity())
                done = kvtls(service, "reload", "--wait", "--json")
                verdicts.append((time.monotonic(), served))
                self.assertEqual(done.returncode, 0, done.stdout)
                answer = json.loads(done.stdout)
                self.assertEqual(
                    (answer["generation"], answer["fingerprint_sha256"]), (number + 2, served)
                )
                time.sleep(max(0.0, due - time.monotonic()))
            for _ in range(RESTARTS):
                done = kvtls(service, "restart", "all")
                self.assertEqual(done.returncode, 0, done.stderr)
        finally:
            crowd.leave()
        self.assertEqual(crowd.faults, [])
        self.assertGreater(len(crowd.visits), RELOADS + RESTARTS)
        self._check_visits(crowd.visits, verdicts)
        known = {served for _, served in verdicts}
        for half in halves:
            self.assertIn(half.finish(), known)
        for plain in silent:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as peer:
                noop(peer)
        self.assertEqual(status(service)["listeners"][0]["restarts"], RESTARTS)

    def _strangers(
        self, service: KvtlsProcess, context: ssl.SSLContext
    ) -> tuple[list[HalfHello], list[socket.socket]]:
        """Return clients in the midst of a ClientHello, and some that have said nothing.

        They outlive every reload and restart; only the handshake deadline ends them.
        """
        halves = [HalfHello(service, context) for _ in range(4)]
        silent = [socket.create_connection(service.addresses[0], 10) for _ in range(4)]
        for plain in silent:
            self.addCleanup(plain.close)
        return halves, silent

    def _check_visits(
        self, visits: list[tuple[float, str]], verdicts: list[tuple[float, str]]
    ) -> None:
        """Who began after a verdict must not have seen a certificate from before it."""
        order = {served: number for number, (_, served) in enumerate(verdicts)}
        for began, seen in visits:
            latest = max(n for n, (at, _) in enumerate(verdicts) if at <= began)
            self.assertGreaterEqual(order[seen], latest)


class RefusalTests(LiveCase):
    """Credentials that cannot be served."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority.root("clients")
        self.files.trust(self.authority)

    def _expired(self) -> None:
        now = datetime.now(UTC)
        self.files.serve(new_server_identity(not_after=now - timedelta(seconds=2)))

    def _not_yet_valid(self) -> None:
        now = datetime.now(UTC)
        self.files.serve(new_server_identity(not_before=now + timedelta(hours=1)))

    def _mismatched(self) -> None:
        self.files.key.write_bytes(new_server_identity().key_pem)

    def _half_written(self) -> None:
        chain = new_server_identity().chain_pem
        self.files.chain.write_bytes(chain[: len(chain) // 2])

    def _directory(self) -> None:
        self.files.chain.unlink()
        self.files.chain.mkdir()

    def _other_host(self) -> None:
        self.files.serve(new_server_identity(["elsewhere.example"]))

    CASES: tuple[tuple[str, Callable[[RefusalTests], object], str, str], ...] = (
        ("mismatched key", _mismatched, "check", "key"),
        ("garbage", lambda self: self.files.chain.write_bytes(os.urandom(999)), "check", "chain"),
        ("expired", _expired, "check", "expired"),
        ("not yet valid", _not_yet_valid, "check", "not yet valid"),
        ("missing", lambda self: self.files.key.unlink(), "read", "key.pem"),
        ("a directory", _directory, "read", "chain.pem"),
        ("half written", _half_written, "check", "chain.pem"),
        (
            "a CA that does not parse",
            lambda self: self.files.client_ca.write_bytes(
                b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
            ),
            "check",
            "client-ca.pem",
        ),
        ("a certificate for another host", _other_host, "names", "127.0.0.1"),
    )

    def test_old_generation_serves_on(self) -> None:
        """Status 1 and the reason; clients notice nothing; the status says what is the matter."""
        first = new_server_identity()
        served = self.files.serve(first)
        service = self.run_service(*UNWATCHED)
        context = self.files.client()
        with service.connect(context) as established:
            for name, damage, stage, words in self.CASES:
                damage(self)
                done = kvtls(service, "reload", "--wait")
                self.assertEqual((done.returncode, done.stdout), (1, ""), name)
                self.assertIn(words, " ".join(done.stderr.split()), name)
                self.assertEqual(ask(service, context), served, name)
                noop(established)
                self._check_status(service, served, stage, name)
                self._repair(first)
            done = kvtls(service, "reload", "--wait", "--json")
            self.assertEqual((done.returncode, json.loads(done.stdout)["changed"]), (0, False))
            self.assertFalse(status(service)["generation"]["disk_differs"])
            self.assertNotIn("Traceback", service.output)

    def _check_status(self, service: KvtlsProcess, served: str, stage: str, name: str) -> None:
        generation = status(service)["generation"]
        self.assertEqual((generation["number"], generation["fingerprint_sha256"]), (1, served))
        self.assertTrue(generation["disk_differs"], name)
        verdict = generation["last_verdict"]
        self.assertEqual((verdict["ok"], verdict["stage"]), (False, stage), (name, verdict))
        self.assertIn(f"reload refused, generation 1 serves on: {stage}: ", service.output)

    def _repair(self, identity: Identity) -> None:
        if self.files.chain.is_dir():
            self.files.chain.rmdir()
        self.files.serve(identity)
        self.files.trust(self.authority)

    def test_written_slowly(self) -> None:
        """A file that is still being written is waited for, and then served."""
        service = self.run_service(*UNWATCHED)
        identity = new_server_identity()
        self._half_written()
        later = threading.Timer(0.8, self.files.serve, [identity])
        later.start()
        done = kvtls(service, "reload", "--wait")
        later.join()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(ask(service, self.files.client()), fingerprint(identity.der))


class TrustTests(LiveCase):
    """Certificates of clients."""

    def setUp(self) -> None:
        super().setUp()
        self.old, self.new = Authority.root("old CA"), Authority.root("new CA")
        self.files.trust(self.old)
        self.alice = self.old.issue("alice", usages=CLIENT)

    def wanted(self, service: KvtlsProcess, context: ssl.SSLContext) -> bool:
        """Return whether a client is let in."""
        try:
            ask(service, context)
        except (ssl.SSLError, ConnectionError, EOFError):
            return False
        return True

    def connected(self, service: KvtlsProcess, identity: Identity) -> ssl.SSLSocket:
        """Return a connection that has been served once."""
        peer = service.connect(self.files.client(identity))
        self.addCleanup(peer.close)
        noop(peer)
        return peer

    def reload(self, service: KvtlsProcess) -> dict[str, object]:
        """Reload and return what the listener made of it."""
        done = kvtls(service, "reload", "--wait", "--json")
        self.assertEqual(done.returncode, 0, done.stdout)
        detail: dict[str, object] = json.loads(done.stdout)["listeners"][0]["detail"]
        return detail

    def closed_by_reload(self, service: KvtlsProcess, peer: ssl.SSLSocket) -> dict[str, object]:
        """Reload; a peer that is to be closed hears of it before anybody waits for its answer."""
        with ThreadPoolExecutor(1) as aside:
            reloaded = aside.submit(self.reload, service)
            self.assertEqual(peer.recv(1), b"")
            peer.close()
            return reloaded.result(PATIENCE)

    def test_another_authority_with_recheck(self) -> None:
        """Clients of the removed CA are refused, closed, and do not come back by a session."""
        service = self.run_service("--client-auth", "required", *UNWATCHED)
        both = (
            self.files.client(self.alice),
            self.files.client(self.new.issue("bob", usages=CLIENT)),
        )
        self.assertEqual([self.wanted(service, one) for one in both], [True, False])
        sessions = [self._session(service, version) for version in BOTH_VERSIONS]
        peer = self.connected(service, self.alice)
        self.files.trust(self.new)
        self.assertEqual(self.closed_by_reload(service, peer)["ended"], 1)
        self.assertEqual([self.wanted(service, one) for one in both], [False, True])
        service.wait_for_line(
            re.compile(r"connection \d+ from \S+ on data is ended: .*certificate")
        )
        for context, session in sessions:
            self.assertFalse(self._resumed(service, context, session))

    def _session(
        self, service: KvtlsProcess, version: ssl.TLSVersion
    ) -> tuple[ssl.SSLContext, ssl.SSLSession | None]:
        """Return a session to come back with; already now it saves nobody the handshake."""
        context = self.files.client(self.alice, version)
        with service.connect(context) as peer:
            noop(peer)
            session = peer.session
        host, port = service.addresses[0]
        with (
            socket.create_connection((host, port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host, session=session) as peer,
        ):
            noop(peer)
            self.assertFalse(peer.session_reused)
        return context, session

    def _resumed(
        self, service: KvtlsProcess, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> bool:
        """Return whether a session gets its client past the check of its certificate."""
        host, port = service.addresses[0]
        try:
            with (
                socket.create_connection((host, port), PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname=host, session=session) as peer,
            ):
                noop(peer)
                return True
        except (ssl.SSLError, ConnectionError, EOFError):
            return False

    def test_another_authority_with_keep(self) -> None:
        """With ``keep`` connections stay until they end of themselves; new ones are refused."""
        service = self.run_service("--on-rotate", "keep", *UNWATCHED)
        peer = self.connected(service, self.alice)
        self.files.trust(self.new)
        self.assertEqual(self.reload(service)["ended"], 0)
        noop(peer)
        self.assertFalse(self.wanted(service, self.files.client(self.alice)))
        noop(peer)

    def test_revocation(self) -> None:
        """A revoked peer is closed and refused, on both versions; others are left alone."""
        self.files.revoke(self.old)
        service = self.run_service(*UNWATCHED)
        bob = self.old.issue("bob", usages=CLIENT)
        revoked, other = self.connected(service, self.alice), self.connected(service, bob)
        anonymous = service.connect(self.files.client())
        self.addCleanup(anonymous.close)
        noop(anonymous)
        sessions = [self._session(service, version) for version in BOTH_VERSIONS]
        self.files.revoke(self.old, self.alice)
        detail = self.closed_by_reload(service, revoked)
        self.assertEqual((detail["connections"], detail["ended"]), (3, 1))
        self.assertIn("revoked", service.output)
        noop(other)
        noop(anonymous)
        for version in BOTH_VERSIONS:
            self.assertFalse(self.wanted(service, self.files.client(self.alice, version)))
            self.assertTrue(self.wanted(service, self.files.client(bob, version)))
        for context, session in sessions:
            self.assertFalse(self._resumed(service, context, session))

    def test_revocation_with_keep(self) -> None:
        """``keep`` keeps revoked ones, too: it means what it says."""
        self.files.revoke(self.old)
        service = self.run_service("--on-rotate", "keep", *UNWATCHED)
        peer = self.connected(service, self.alice)
        self.files.revoke(self.old, self.alice)
        self.assertEqual(self.reload(service)["ended"], 0)
        noop(peer)
        self.assertFalse(self.wanted(service, self.files.client(self.alice)))

    def test_expiry_of_a_connected_peer(self) -> None:
        """A connection ends with its peer's certificate, under every policy."""
        service = self.run_service("--on-rotate", "keep", *UNWATCHED)
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=10)
        peer = self.connected(service, self.old.issue("carol", not_after=ends, usages=CLIENT))
        rows = json.loads(kvtls(service, "connections", "--json").stdout)["connections"]
        self.assertLess(rows[0]["deadline_in_s"], 10)
        noop(peer)
        self.assertEqual(peer.recv(1), b"")
        self.assertGreaterEqual(datetime.now(UTC), ends)
        eventually(lambda: status(service)["counters"]["deadline_expired"].get("owned") == 1)


class TriggerTests(LiveCase):
    """What makes a service read its files again, and what takes it back."""

    def test_kubernetes(self) -> None:
        """A volume whose link ``..data`` is swapped is noticed by the watch, CA included."""
        volume = self.files.path / "volume"
        old, new = Authority.root("old CA"), Authority.root("new CA")
        first, second = new_server_identity(), new_server_identity()
        self._publish(volume, "..2026_01", first, old)
        service = KvtlsProcess(
            "--certificate",
            str(volume / "tls.crt"),
            "--private-key",
            str(volume / "tls.key"),
            "--client-ca",
            str(volume / "ca.crt"),
            "--watch-interval",
            "0.2",
        )
        self.addCleanup(service.__exit__, None, None, None)
        client = self.files.client(old.issue("alice", usages=CLIENT))
        self.assertEqual(ask(service, client), fingerprint(first.der))
        self._publish(volume, "..2026_02", second, new)
        service.wait_for_line(re.compile("generation 2 serves"))
        client = self.files.client(new.issue("alice", usages=CLIENT))
        self.assertEqual(ask(service, client), fingerprint(second.der))

    def _publish(self, volume: Path, name: str, identity: Identity, clients: Authority) -> None:
        """Do as kubelet does: a new directory, one link swapped by a rename."""
        volume.mkdir(exist_ok=True)
        directory = volume / name
        directory.mkdir()
        (directory / "tls.crt").write_bytes(identity.chain_pem)
        (directory / "tls.key").write_bytes(identity.key_pem)
        (directory / "ca.crt").write_bytes(clients.certificate_pem)
        (volume / "..data_tmp").symlink_to(name)
        (volume / "..data_tmp").rename(volume / "..data")
        for file in ("tls.crt", "tls.key", "ca.crt"):
            if not (volume / file).is_symlink():
                (volume / file).symlink_to(f"..data/{file}")

    def test_sighup(self) -> None:
        """SIGHUP reloads, as often as it comes; a bad file is refused in the log."""
        service = self.run_service(*UNWATCHED)
        served = self.files.serve(new_server_identity())
        for _ in range(20):
            service.process.send_signal(signal.SIGHUP)
        service.wait_for_line(re.compile("generation 2 serves"))
        self.assertEqual(ask(service, self.files.client()), served)
        self.files.key.write_bytes(
            Identity(
                new_server_identity().certificate, ec.generate_private_key(ec.SECP256R1())
            ).key_pem
        )
        service.process.send_signal(signal.SIGHUP)
        service.wait_for_line(re.compile("reload refused, generation 2 serves on: check"))
        self.assertEqual(ask(service, self.files.client()), served)

    def test_rollback(self) -> None:
        """The generation before serves again, and the watch leaves that alone."""
        service = self.run_service("--watch-interval", "0.1")
        context = self.files.client()
        first = ask(service, context)
        done = kvtls(service, "rollback")
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing was rotated", done.stderr)
        second = self.files.serve(new_server_identity())
        service.wait_for_line(re.compile("generation 2 serves"))
        self.assertEqual(ask(service, context), second)
        done = kvtls(service, "rollback")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(ask(service, context), first)
        # The watch looks every 0.1 s and acts after 0.5 s of rest.
        until = time.monotonic() + 1
        while time.monotonic() < until:
            generation = status(service)["generation"]
            self.assertEqual((generation["number"], generation["disk_differs"]), (3, True))
        self.assertEqual(kvtls(service, "rollback").returncode, 0)
        self.assertEqual(ask(service, context), second)
        generation = status(service)["generation"]
        self.assertEqual((generation["number"], generation["disk_differs"]), (4, False))
