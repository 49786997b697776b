"""Reload and rollback: one at a time, a verdict for everybody, and nothing changed by failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import ClientAuth
from kvproto.errors import CredentialError
from kvproto.testing.certificates import Authority, Identity, root_authority
from kvproto.tls import rotation as rotation_module
from kvproto.tls.contexts import ServerPolicy, build_client_context
from kvproto.tls.generation import Generation, GenerationError, Stage, build_generation
from kvproto.tls.rotation import RETRIES, RETRY_DELAY, SUBSCRIBER_TIMEOUT, Rotation
from kvproto.tls.verdict import Action, ListenerResult, Verdict
from tests.tls.material import (
    NOW,
    carry,
    credentials_of,
    der_chain,
    folder,
    moment,
    read_error,
    shake_hands,
    write_identity,
)

ROOT = root_authority()
NAMES = ("localhost", "127.0.0.1")


class FakeThread:
    """Keeps what should run in a thread until the test lets it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, function: Callable[[], Any], /) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.calls.append((done, function))
        return done

    def run(self) -> None:
        """Run what has been asked for so far."""
        calls, self.calls = self.calls, []
        for done, function in calls:
            try:
                result = function()
            except Exception:
                done.errback()
            else:
                done.callback(result)


class RotationCase(SynchronousTestCase):
    """A rotation over a directory of good files."""

    policy = ServerPolicy(ClientAuth.OPTIONAL)

    def setUp(self) -> None:
        self.directory = folder(self)
        self.identity = ROOT.issue("node", NAMES)
        self.files = write_identity(self.directory, self.identity, client_ca=ROOT)
        self.clock = Clock()
        self.clock.advance(NOW)
        self.rotation = Rotation(self.files, self.policy, self.clock, now=self.clock.seconds)
        self.rotation.startService()
        self.addCleanup(self.check_clock)

    def check_clock(self) -> None:
        """Nothing is left to happen."""
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def write(self, identity: Identity | None = None, ca: Authority = ROOT) -> Identity:
        identity = identity or ROOT.issue("node", NAMES)
        write_identity(self.directory, identity, client_ca=ca)
        return identity

    def verdict(self, asked: Deferred[Verdict]) -> Verdict:
        return self.successResultOf(asked)


class ReloadTests(RotationCase):
    """Reloading good files."""

    def test_first(self) -> None:
        """The first generation serves from the beginning."""
        self.assertEqual(self.rotation.current.number, 1)
        self.assertIs(self.rotation.contexts.current, self.rotation.current)
        self.assertIsNone(self.rotation.previous)
        self.assertFalse(self.rotation.differs_from_disk())

    def test_counted(self) -> None:
        """What became of each reload is counted, and when the last one ended is known."""
        self.assertIsNone(self.rotation.last_verdict_at)
        first = self.rotation.served_since
        self.clock.advance(5)
        for result in ("unchanged", "served", "served", "refused", "unchanged"):
            if result == "served":
                self.write()
                served = self.clock.seconds()
            key = (self.directory / "key.pem").read_bytes()
            if result == "refused":
                (self.directory / "key.pem").unlink()
            asked = self.rotation.reload()
            self.clock.pump([RETRY_DELAY] * RETRIES)
            verdict = self.verdict(asked)
            self.assertIs(self.rotation.last_verdict, verdict)
            (self.directory / "key.pem").write_bytes(key)
        self.assertEqual(dict(self.rotation.verdicts), {"unchanged": 2, "served": 2, "refused": 1})
        ended = self.clock.seconds() - RETRIES * RETRY_DELAY
        self.assertEqual(self.rotation.last_verdict_at, ended)
        self.assertEqual((first, self.rotation.served_since), (NOW, served))

    def test_bad_start(self) -> None:
        """A rotation over bad files is not made; the error is the file's own."""
        (self.directory / "key.pem").unlink()
        error = self.assertRaises(CredentialError, Rotation, self.files, self.policy, self.clock)
        self.assertEqual(error.option, "private_key")

    def test_start_that_fails_late(self) -> None:
        """A first generation that fails its proof is an error of the certificate."""

        def refuse(*_arguments: object, **_options: object) -> None:
            raise GenerationError(Stage.HANDSHAKE, "unheard of")

        self.patch(rotation_module, "build_generation", refuse)
        error = self.assertRaises(CredentialError, Rotation, self.files, self.policy, self.clock)
        self.assertIn("certificate", str(error))
        self.assertIn("handshake: unheard of", str(error))

    def test_new_files(self) -> None:
        """New files serve under the next number, and the verdict says what is served."""
        first = self.rotation.current
        identity = self.write()
        self.assertTrue(self.rotation.differs_from_disk())
        verdict = self.verdict(self.rotation.reload())
        now = self.rotation.current
        self.assertEqual(
            verdict,
            Verdict(
                Action.RELOAD,
                ok=True,
                changed=True,
                generation=2,
                fingerprint=now.credentials.fingerprint,
                not_after=identity.certificate.not_valid_after_utc.timestamp(),
                warnings=now.warnings,
            ),
        )
        self.assertEqual(now.credentials.chain, (identity.certificate,))
        self.assertIs(self.rotation.contexts.current, now)
        self.assertIs(self.rotation.previous, first)
        self.assertIs(self.rotation.last_verdict, verdict)
        self.assertFalse(self.rotation.differs_from_disk())

    def test_unchanged(self) -> None:
        """Unchanged files are a good verdict without a new generation, and nobody is told."""
        told: list[object] = []
        self.rotation.subscribe("data", lambda *generations: told.append(generations))
        verdict = self.verdict(self.rotation.reload())
        self.assertEqual((verdict.ok, verdict.changed, verdict.generation), (True, False, 1))
        self.assertEqual(told, [])

    def test_warnings(self) -> None:
        """The verdict carries the warnings about what serves."""
        self.write(ROOT.issue("node", NAMES, not_before=moment(-20), not_after=moment(3)))
        warnings = self.verdict(self.rotation.reload()).warnings
        self.assertIn("CN=node expires in 2 days", warnings[0])

    def test_fewer_names(self) -> None:
        """A certificate with fewer names needs leave."""
        self.write(ROOT.issue("node", ["localhost"]))
        verdict = self.verdict(self.rotation.reload())
        self.assertEqual((verdict.ok, verdict.stage), (False, "names"))
        verdict = self.verdict(self.rotation.reload(allow_fewer_names=True))
        self.assertEqual((verdict.ok, verdict.generation), (True, 2))

    def test_trust_changes(self) -> None:
        """The new generation judges peers by the new trust."""
        chain = der_chain(ROOT.issue("alice"))
        self.assertIsNone(self.rotation.current.verify_peer(chain, NOW))
        self.write(self.identity, Authority.root("CA 2"))
        self.assertTrue(self.verdict(self.rotation.reload()).changed)
        self.assertIsNotNone(self.rotation.current.verify_peer(chain, NOW))


class HandshakeTests(RotationCase):
    """What clients meet before, during and after a rotation."""

    policy = ServerPolicy(ClientAuth.REQUIRED)

    def server(self) -> SSL.Connection:
        protocol = mock.Mock(spec=["generation"])
        return self.rotation.contexts.serverConnectionForTLS(protocol)

    def client(self, identity: Identity, version: int) -> SSL.Connection:
        context = build_client_context(credentials_of(identity), (ROOT.certificate,))
        context.set_max_proto_version(version)
        return SSL.Connection(context, None)

    def welcome(self, server: SSL.Connection, client: SSL.Connection) -> bool:
        return shake_hands(server, client) == (None, None) and read_error(client) is None

    def test_change_of_ca(self) -> None:
        """After CA 1 came CA 2: who has a certificate of the one is in, of the other out."""
        second = Authority.root("CA 2")
        old, new = ROOT.issue("alice"), second.issue("alice")
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.write(ca=ROOT)
            self.verdict(self.rotation.reload())
            self.assertTrue(self.welcome(self.server(), self.client(old, version)))
            self.assertFalse(self.welcome(self.server(), self.client(new, version)))
            self.write(ca=second)
            self.verdict(self.rotation.reload())
            self.assertFalse(self.welcome(self.server(), self.client(old, version)))
            self.assertTrue(self.welcome(self.server(), self.client(new, version)))

    def test_no_ticket_survives(self) -> None:
        """A session of a CA 1 client is not resumed after the change to CA 2."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.write(ca=ROOT)
            self.verdict(self.rotation.reload())
            before = self.client(ROOT.issue("alice"), version)
            server = self.server()
            self.assertTrue(self.welcome(server, before))
            carry(server, before)
            read_error(before)
            session = before.get_session()
            assert session is not None
            self.write(ca=Authority.root("CA 2"))
            self.verdict(self.rotation.reload())
            again = SSL.Connection(before.get_context(), None)
            again.set_session(session)
            self.assertFalse(self.welcome(self.server(), again))

    def test_half_sent_hello(self) -> None:
        """A handshake that began before a rotation ends well, with what it began with."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            before = self.rotation.current.credentials.chain[0]
            server, client = self.server(), self.client(ROOT.issue("alice"), version)
            server.set_accept_state()
            client.set_connect_state()
            self.assertRaises(SSL.WantReadError, client.do_handshake)
            hello = client.bio_read(65536)
            server.bio_write(hello[:50])
            self.assertRaises(SSL.WantReadError, server.do_handshake)
            self.write()
            self.assertTrue(self.verdict(self.rotation.reload()).changed)
            server.bio_write(hello[50:])
            self.assertEqual(shake_hands(server, client, begun=True), (None, None))
            self.assertEqual(client.get_peer_certificate(as_cryptography=True), before)


class FailureTests(RotationCase):
    """A reload that fails changes nothing."""

    def assert_unchanged(self, asked: Deferred[Verdict], stage: str, phrase: str) -> None:
        before = self.rotation.current, self.rotation.previous
        told: list[object] = []
        self.rotation.subscribe("data", lambda *generations: told.append(generations))
        self.clock.pump([RETRY_DELAY] * RETRIES)
        verdict = self.verdict(asked)
        self.assertEqual((verdict.ok, verdict.changed, verdict.stage), (False, False, stage))
        self.assertIn(phrase, verdict.reason)
        self.assertEqual(verdict.generation, before[0].number)
        self.assertEqual(verdict.fingerprint, before[0].fingerprint)
        self.assertEqual((self.rotation.current, self.rotation.previous), before)
        self.assertIs(self.rotation.contexts.current, before[0])
        self.assertEqual(told, [])

    def test_table(self) -> None:
        """Missing, garbage, mismatched and cut off files are retried, then refused."""
        other = ROOT.issue("other", NAMES)
        for name, content, stage, phrase in (
            ("key.pem", other.key_pem, "check", "does not fit"),
            ("key.pem", b"garbage", "check", "is not PEM"),
            ("chain.pem", other.chain_pem[:200], "check", "cut off"),
            ("chain.pem", b"", "read", "is empty"),
            ("ca.pem", b"garbage", "check", "is not PEM"),
        ):
            self.write(self.identity)
            (self.directory / name).write_bytes(content)
            self.assert_unchanged(self.rotation.reload(), stage, phrase)
        (self.directory / "key.pem").unlink()
        self.assert_unchanged(self.rotation.reload(), "read", "no such file")

    def test_dates(self) -> None:
        """Expired and not yet valid certificates are refused at once."""
        for identity, phrase in (
            (ROOT.issue("n", NAMES, not_before=moment(-3), not_after=moment(-1)), "has expired"),
            (ROOT.issue("n", NAMES, not_before=moment(1)), "is not yet valid"),
        ):
            self.write(identity)
            asked = self.rotation.reload()
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assert_unchanged(asked, "check", phrase)

    def test_half_written(self) -> None:
        """A key that follows its certificate a moment later is waited for."""
        identity = ROOT.issue("node", NAMES)
        (self.directory / "chain.pem").write_bytes(identity.chain_pem)
        asked = self.rotation.reload()
        self.assertNoResult(asked)
        self.clock.advance(RETRY_DELAY)
        self.assertNoResult(asked)
        (self.directory / "key.pem").write_bytes(identity.key_pem)
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.verdict(asked).generation, 2)

    def test_numbers_are_not_used_up(self) -> None:
        """A refused generation leaves its number to the next."""
        (self.directory / "key.pem").write_bytes(b"garbage")
        self.assert_unchanged(self.rotation.reload(), "check", "is not PEM")
        self.write()
        self.assertEqual(self.verdict(self.rotation.reload()).generation, 2)

    def test_bug(self) -> None:
        """Even an error of our own is a verdict, and the next reload works."""

        def crash(*_arguments: object, **_options: object) -> None:
            raise ZeroDivisionError("bug")

        self.patch(rotation_module, "build_generation", crash)
        self.assert_unchanged(self.rotation.reload(), "internal", "bug")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.patch(rotation_module, "build_generation", build_generation)
        self.write()
        self.assertTrue(self.verdict(self.rotation.reload()).changed)


class RollbackTests(RotationCase):
    """Back to the generation before."""

    def test_nothing_before(self) -> None:
        """At first there is nothing to return to."""
        verdict = self.verdict(self.rotation.rollback())
        self.assertEqual((verdict.ok, verdict.stage), (False, "history"))
        self.assertIn("no generation before 1", verdict.reason)

    def test_back_and_forth(self) -> None:
        """A rollback serves the earlier certificate under a new number; a second one undoes it."""
        new = self.write()
        self.verdict(self.rotation.reload())
        for number, identity in ((3, self.identity), (4, new)):
            verdict = self.verdict(self.rotation.rollback())
            self.assertEqual(
                (verdict.action, verdict.ok, verdict.changed, verdict.generation),
                (Action.ROLLBACK, True, True, number),
            )
            self.assertEqual(self.rotation.current.credentials.chain[0], identity.certificate)

    def test_differs_from_disk(self) -> None:
        """After a rollback the disk differs, and a reload serves it again."""
        self.write()
        self.verdict(self.rotation.reload())
        self.verdict(self.rotation.rollback())
        self.assertTrue(self.rotation.differs_from_disk())
        self.assertEqual(self.verdict(self.rotation.reload()).generation, 4)
        self.assertFalse(self.rotation.differs_from_disk())

    def test_expired_meanwhile(self) -> None:
        """What has expired is not returned to."""
        self.write(ROOT.issue("node", NAMES, not_after=moment(90)))
        self.verdict(self.rotation.reload())
        self.clock.advance(40 * 86400)
        verdict = self.verdict(self.rotation.rollback())
        self.assertEqual((verdict.ok, verdict.stage, verdict.generation), (False, "check", 2))


class SerialTests(RotationCase):
    """One job at a time, shared by those who ask."""

    def setUp(self) -> None:
        super().setUp()
        self.thread = FakeThread()
        self.rotation = Rotation(
            self.files, self.policy, self.clock, self.thread, now=self.clock.seconds
        )
        self.rotation.startService()

    def test_twenty_at_once(self) -> None:
        """Twenty requests share two readings, and each gets a verdict."""
        self.write()
        asked = [self.rotation.reload() for _ in range(20)]
        self.assertEqual(len(self.thread.calls), 1)
        self.thread.run()
        self.assertEqual(self.verdict(asked[0]).generation, 2)
        self.assertEqual(len(self.thread.calls), 1)
        self.thread.run()
        self.assertEqual(self.thread.calls, [])
        verdicts = [self.verdict(one) for one in asked[1:]]
        self.assertEqual(
            {(one.ok, one.changed, one.generation) for one in verdicts}, {(True, False, 2)}
        )

    def test_reading_begins_after_the_request(self) -> None:
        """Whoever asks while files are being read hears about what they hold now."""
        before = self.rotation.reload()
        identity = ROOT.issue("node", NAMES)
        done, function = self.thread.calls.pop()
        built = function()
        self.write(identity)
        after = self.rotation.reload()
        done.callback(built)
        self.assertFalse(self.verdict(before).changed)
        self.thread.run()
        self.assertTrue(self.verdict(after).changed)
        self.assertEqual(self.rotation.current.credentials.chain[0], identity.certificate)

    def test_order(self) -> None:
        """Reload, rollback and reload take place in the order in which they were asked for."""
        self.write()
        order: list[tuple[str, int]] = []
        for ask in (self.rotation.reload, self.rotation.rollback, self.rotation.reload):
            ask().addCallback(
                lambda verdict: order.append((verdict.action.value, verdict.generation))
            )
        for _ in range(3):
            self.thread.run()
        self.assertEqual(order, [("reload", 2), ("rollback", 3), ("reload", 4)])

    def test_different_leave_is_not_shared(self) -> None:
        """A request with leave for fewer names is not answered by one without."""
        self.rotation.reload()
        strict, lax = self.rotation.reload(), self.rotation.reload(allow_fewer_names=True)
        self.write(ROOT.issue("node", ["localhost"]))
        for _ in range(3):
            self.thread.run()
        self.assertFalse(self.verdict(strict).ok)
        self.assertTrue(self.verdict(lax).ok)

    def test_cancel(self) -> None:
        """A caller who gives up takes nothing from the others."""
        asked = [self.rotation.reload() for _ in range(4)]
        asked[0].cancel()
        asked[2].cancel()
        self.failureResultOf(asked[0], CancelledError)
        self.failureResultOf(asked[2], CancelledError)
        self.thread.run()
        self.thread.run()
        self.assertTrue(self.verdict(asked[1]).ok)
        self.assertTrue(self.verdict(asked[3]).ok)

    def test_cancel_by_another_caller(self) -> None:
        """A caller may give up while the verdicts are being told."""
        self.rotation.reload()
        first, second = self.rotation.reload(), self.rotation.reload()
        first.addCallback(lambda _verdict: second.cancel())
        self.thread.run()
        self.thread.run()
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)

    def test_ask_again_from_a_verdict(self) -> None:
        """A caller may ask again when told, and is served by a job of its own."""
        again = self.rotation.reload().addCallback(lambda _verdict: self.rotation.reload())
        self.thread.run()
        self.assertNoResult(again)
        self.thread.run()
        self.assertTrue(self.verdict(again).ok)

    def test_reactor_is_free_meanwhile(self) -> None:
        """The old generation serves while the new one is being built."""
        self.write()
        asked = self.rotation.reload()
        self.assertEqual(self.rotation.contexts.current.number, 1)
        self.assertNoResult(asked)
        self.thread.run()
        self.assertEqual(self.rotation.contexts.current.number, 2)


class SubscriberTests(RotationCase):
    """Those who are told of a swap."""

    def reload(self) -> Deferred[Verdict]:
        self.write()
        return self.rotation.reload()

    def test_told(self) -> None:
        """Subscribers hear of old and new after the swap, and their answers are in the verdict."""
        told: list[tuple[Generation, Generation, int]] = []

        def hear(old: Generation, new: Generation) -> Deferred[str]:
            told.append((old, new, self.rotation.contexts.current.number))
            return succeed("3 closed")

        first = self.rotation.current
        self.rotation.subscribe("data", hear)
        self.rotation.subscribe("node", lambda _old, _new: {"ended": 2})
        verdict = self.verdict(self.reload())
        self.assertEqual(told, [(first, self.rotation.current, 2)])
        self.assertEqual(
            verdict.listeners,
            (
                ListenerResult("data", ok=True, done=True, detail="3 closed"),
                ListenerResult("node", ok=True, done=True, detail={"ended": 2}),
            ),
        )

    def test_failure(self) -> None:
        """A subscriber that fails or raises is in the verdict; the others are told all the same."""

        def crash(_old: Generation, _new: Generation) -> None:
            raise ZeroDivisionError("crash")

        self.rotation.subscribe("crash", crash)
        self.rotation.subscribe("fails", lambda _old, _new: fail(ZeroDivisionError("fails")))
        self.rotation.subscribe("works", lambda _old, _new: "fine")
        verdict = self.verdict(self.reload())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(
            (verdict.ok, verdict.changed, verdict.generation, verdict.stage),
            (False, True, 2, "listeners"),
        )
        self.assertEqual(verdict.reason, "crash: crash; fails: fails")
        self.assertEqual([one.ok for one in verdict.listeners], [False, False, True])
        self.assertTrue(all(one.done for one in verdict.listeners))

    def test_slow(self) -> None:
        """A verdict waits a bounded time for a subscriber, whose work goes on."""
        work: Deferred[str] = Deferred()
        self.rotation.subscribe("slow", lambda _old, _new: work)
        asked = self.reload()
        self.clock.advance(SUBSCRIBER_TIMEOUT - 0.1)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        verdict = self.verdict(asked)
        self.assertTrue(verdict.ok)
        self.assertEqual(
            verdict.listeners,
            (ListenerResult("slow", ok=True, done=False, detail="still at work"),),
        )
        work.callback("at last")
        self.assertEqual(self.rotation.current.number, 2)

    def test_slow_failure(self) -> None:
        """A failure after the verdict is logged."""
        work: Deferred[str] = Deferred()
        self.rotation.subscribe("slow", lambda _old, _new: work)
        asked = self.reload()
        self.clock.advance(SUBSCRIBER_TIMEOUT)
        self.verdict(asked)
        work.errback(ZeroDivisionError("late"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_unsubscribe(self) -> None:
        """Whoever has left is not told; leaving twice, or after being replaced, does nothing."""
        told: list[str] = []
        leave = self.rotation.subscribe("data", lambda _old, _new: told.append("old"))
        self.rotation.subscribe("data", lambda _old, _new: told.append("new"))
        leave()
        self.verdict(self.reload())
        self.assertEqual(told, ["new"])
        leave_new = self.rotation.subscribe("data", lambda _old, _new: told.append("third"))
        leave_new()
        leave_new()
        self.verdict(self.reload())
        self.assertEqual(told, ["new"])

    def test_reload_from_a_subscriber(self) -> None:
        """A subscriber that asks for a reload waits for its turn, not for itself."""
        asked: list[Deferred[Verdict]] = []
        self.rotation.subscribe("data", lambda _old, _new: asked.append(self.rotation.reload()))
        self.assertTrue(self.verdict(self.reload()).ok)
        self.assertFalse(self.verdict(asked[0]).changed)


class StopTests(RotationCase):
    """Stopping answers everybody."""

    def test_idle(self) -> None:
        """Stopping when nothing is under way is done at once."""
        self.successResultOf(self.rotation.stopService())

    def test_while_waiting_for_a_file(self) -> None:
        """A retry is not waited for; those who asked hear that the service stops."""
        (self.directory / "key.pem").unlink()
        asked = [self.rotation.reload(), self.rotation.reload()]
        stopped = self.rotation.stopService()
        self.successResultOf(stopped)
        for one in asked:
            self.assertEqual(self.verdict(one).stage, "stopped")

    def test_while_building(self) -> None:
        """What a thread builds meanwhile is dropped; stopping waits for the thread."""
        thread = FakeThread()
        rotation = Rotation(self.files, self.policy, self.clock, thread, now=self.clock.seconds)
        rotation.startService()
        self.write()
        asked = rotation.reload()
        stopped = rotation.stopService()
        self.assertNoResult(stopped)
        thread.run()
        self.successResultOf(stopped)
        self.assertEqual(self.verdict(asked).stage, "stopped")
        self.assertEqual(rotation.current.number, 1)

    def test_after_stop(self) -> None:
        """A request after the stop is answered, not kept."""
        self.rotation.stopService()
        self.assertEqual(self.verdict(self.rotation.reload()).stage, "stopped")

    def test_start_again(self) -> None:
        """A service that was started again reloads."""
        self.rotation.stopService()
        self.rotation.startService()
        self.write()
        self.assertTrue(self.verdict(self.rotation.reload()).changed)

    def test_before_start(self) -> None:
        """A rotation that is not started yet reloads: signals may come early."""
        rotation = Rotation(self.files, self.policy, self.clock, now=self.clock.seconds)
        self.write()
        self.assertTrue(self.verdict(rotation.reload()).changed)
