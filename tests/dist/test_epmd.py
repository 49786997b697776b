"""epmd: asking for others, being known, doing without."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, TimeoutError
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import Backoff, EpmdClient, EpmdRegistration, FixedPorts
from kvproto.dist.epmd import read_port, read_registration
from kvproto.errors import RemoteProtocolError
from tests.dist.endpoints import ManualEndpoint

PORT_ANSWER = bytes.fromhex("7700 4268 4d 00 0006 0005 0002 6531 0000")
"""epmd of OTP 25 about a node e1 on port 17000."""


class WireTests(SynchronousTestCase):
    """The two answers that are read."""

    def test_port(self) -> None:
        """A known name has a port, an unknown one has none."""
        self.assertEqual(read_port(PORT_ANSWER), 17000)
        self.assertIsNone(read_port(b"\x77\x01"))

    def test_not_an_epmd(self) -> None:
        """Other answers are no epmd's."""
        for data in (b"", b"\x77", b"\x77\x00\x42", b"HTTP/1.1"):
            self.assertRaises(RemoteProtocolError, read_port, data)
        self.assertRaises(RemoteProtocolError, read_registration, b"H")

    def test_registration(self) -> None:
        """Both forms of the answer are read, when they are whole."""
        for data, answer in (
            (b"", None),
            (b"\x76\x00\x01", None),
            (b"\x76\x00" + bytes(4), True),
            (b"\x76\x01" + bytes(4), False),
            (b"\x79\x00\x00", None),
            (b"\x79\x00" + bytes(2), True),
        ):
            self.assertIs(read_registration(data), answer)


class ClientTests(SynchronousTestCase):
    """Looking nodes up."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = ManualEndpoint()
        self.client = EpmdClient(self.endpoint, self.clock)
        self.answer = self.client.locate("e1", "host")
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def test_found(self) -> None:
        """The answer may come in pieces; epmd closes after it."""
        wire = self.endpoint.accept()
        self.assertEqual(self.endpoint.asked, [("host",)])
        self.assertEqual(wire.read(), b"\x00\x03\x7ae1")
        for byte in PORT_ANSWER:
            wire.say(bytes([byte]))
        self.assertNoResult(self.answer)
        wire.lose()
        self.assertEqual(self.successResultOf(self.answer), 17000)

    def test_no_epmd(self) -> None:
        """Without an epmd nothing is found."""
        self.endpoint.refuse()
        self.failureResultOf(self.answer, ConnectionRefusedError)

    def test_silent_epmd(self) -> None:
        """An epmd that does not answer is left after five seconds."""
        wire = self.endpoint.accept()
        self.clock.advance(5)
        self.failureResultOf(self.answer, TimeoutError)
        self.assertTrue(wire.aborted)

    def test_slow_connect(self) -> None:
        """The five seconds include the connecting."""
        self.clock.advance(5)
        self.failureResultOf(self.answer, TimeoutError)
        self.assertEqual(self.endpoint.cancelled, 1)

    def test_cancel(self) -> None:
        """A question can be taken back."""
        wire = self.endpoint.accept()
        self.answer.cancel()
        self.failureResultOf(self.answer, CancelledError)
        self.assertTrue(wire.aborted)

    def test_endless_answer(self) -> None:
        """An answer that does not end is not collected."""
        wire = self.endpoint.accept()
        wire.say(b"\x00" * 5000)
        self.assertTrue(wire.aborted)
        self.failureResultOf(self.answer, RemoteProtocolError)


class FixedPortsTests(SynchronousTestCase):
    """Doing without."""

    def test_locate(self) -> None:
        """A port of its own goes before the one for all."""
        ports = FixedPorts(17000, {"a@host": 17001})
        self.assertEqual(self.successResultOf(ports.locate("a", "host")), 17001)
        self.assertEqual(self.successResultOf(ports.locate("b", "host")), 17000)
        self.assertIsNone(self.successResultOf(FixedPorts().locate("b", "host")))


class RegistrationTests(SynchronousTestCase):
    """Being known."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = ManualEndpoint()
        self.service = EpmdRegistration(
            self.endpoint, self.clock, "kv", 17000, Backoff(0.5, 4.0, jitter=lambda: 0.0)
        )
        self.service.startService()

    def tearDown(self) -> None:
        if self.service.running:
            self.successResultOf(self.service.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_registers_hidden(self) -> None:
        """The request is a hidden node's, the connection stays open."""
        wire = self.endpoint.accept()
        self.assertEqual(
            wire.read(),
            bytes.fromhex("000f 78 4268 48 00 0006 0005 0002 6b76 0000"),
        )
        wire.say(b"\x76")
        wire.say(b"\x00\x00\x00\x00\x01")
        self.assertTrue(self.service.registered)
        self.clock.advance(1000)
        self.assertFalse(wire.aborted)
        wire.say(b"more")
        self.assertEqual(
            self.service.status(),
            {"name": "kv", "port": 17000, "registered": True, "problem": ""},
        )

    def test_stop_unregisters(self) -> None:
        """The end of the connection is the end of the registration."""
        wire = self.endpoint.accept()
        wire.say(b"\x76\x00" + bytes(4))
        self.successResultOf(self.service.stopService())
        self.assertTrue(wire.aborted)
        self.assertFalse(self.service.registered)

    def test_lost_epmd(self) -> None:
        """A lost epmd is asked again, at growing intervals, until it answers."""
        self.endpoint.accept().lose()
        waits = []
        for _ in range(5):
            before = self.clock.seconds()
            while not self.endpoint.waiting:
                self.clock.advance(0.25)
            waits.append(self.clock.seconds() - before)
            self.endpoint.refuse()
        self.assertEqual(waits, [0.5, 1.0, 2.0, 4.0, 4.0])
        self.assertNotEqual(self.service.problem, "")
        self.clock.advance(4)
        self.endpoint.accept().say(b"\x76\x00" + bytes(4))
        self.assertEqual(self.service.problem, "")
        self.endpoint.wires[-1].lose()
        self.clock.advance(0.5)
        self.assertEqual(len(self.endpoint.waiting), 1)

    def test_taken_name(self) -> None:
        """A name that somebody else has is said in the status, and tried again."""
        wire = self.endpoint.accept()
        wire.say(b"\x76\x01" + bytes(4))
        self.assertTrue(wire.aborted)
        self.assertIn("taken", self.service.problem)
        self.clock.advance(0.5)
        self.assertEqual(len(self.endpoint.waiting), 1)

    def test_no_epmd_there(self) -> None:
        """Something else on that port is left alone."""
        wire = self.endpoint.accept()
        wire.say(b"HTTP/1.1 400")
        self.assertTrue(wire.aborted)
        self.assertIn("no answer of an epmd", self.service.problem)

    def test_silent_epmd(self) -> None:
        """An epmd that takes the request and says nothing is left after five seconds."""
        wire = self.endpoint.accept()
        self.clock.advance(5)
        self.assertTrue(wire.aborted)
        self.assertIn("does not answer", self.service.problem)

    def test_slow_connect(self) -> None:
        """Connecting is bounded, too."""
        self.clock.advance(5)
        self.assertEqual(self.endpoint.cancelled, 1)
        self.clock.advance(0.5)
        self.assertEqual(len(self.endpoint.waiting), 1)

    def test_stop_while_waiting(self) -> None:
        """A stop ends the wait for the next attempt, and an attempt under way."""
        self.endpoint.refuse()
        self.successResultOf(self.service.stopService())
        self.service.startService()
        self.successResultOf(self.service.stopService())
        self.assertEqual(self.endpoint.cancelled, 1)
        self.clock.advance(100)
        self.assertEqual(self.endpoint.waiting, [])
