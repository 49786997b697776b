"""Faults on demand: what happens to requests that meet one."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import KVController, KVServer, ServerSettings
from kvproto.server.faults import MOST_FAULTS, Fault, FaultKind, FaultPlan
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.constants import Opcode
from kvproto.wire.encoding import encode_request

TMPFAIL = 0x86
GET, SET = (
    encode_request(Opcode.GET, key=b"k"),
    encode_request(Opcode.SET, key=b"k", value=b"v", extras=bytes(8)),
)


class FaultTests(SynchronousTestCase):
    """One connection whose requests meet what a test has arranged."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.plan = FaultPlan(self.clock, lambda: 1000.0)
        store = MemoryStore(self.plan.moved_clock().seconds)
        controller = KVController(KVServer(store, ServerSettings()), self.plan)
        self.protocol = controller.claim(None)
        self.transport = ScriptedTransport()
        self.transport.connect(self.protocol)

    def statuses(self) -> list[int]:
        """Return the status of each reply so far, and forget them."""
        data, found = bytes(self.transport.received), []
        self.transport.received.clear()
        while data:
            found.append(int.from_bytes(data[6:8]))
            data = data[24 + int.from_bytes(data[8:12]) :]
        return found

    def ask(self, *requests: bytes) -> list[int]:
        """Send requests in one read; return the status of each reply."""
        self.protocol.dataReceived(b"".join(requests))
        return self.statuses()

    def test_nothing_arranged(self) -> None:
        """Requests are served as ever."""
        self.assertEqual(self.ask(GET, SET, GET), [1, 0, 0])

    def test_status(self) -> None:
        """So many requests of the kind are answered with it, and not carried out."""
        self.plan.add(Fault(FaultKind.STATUS, "set", status=TMPFAIL, times=2))
        self.assertEqual(self.ask(SET, GET, SET, GET, SET, GET), [TMPFAIL, 1, TMPFAIL, 1, 0, 0])

    def test_any_operation_with_a_key(self) -> None:
        """Without an operation it is the next request that has a key."""
        self.plan.add(Fault(FaultKind.STATUS, status=TMPFAIL))
        self.assertEqual(self.ask(encode_request(Opcode.NOOP), GET), [0, TMPFAIL])

    def test_key(self) -> None:
        """Only requests for the key are concerned, in a collection too."""
        self.plan.add(Fault(FaultKind.STATUS, "get", b"k", TMPFAIL, times=2))
        self.assertEqual(self.ask(encode_request(Opcode.GET, key=b"other"), GET), [1, TMPFAIL])
        hello = encode_request(Opcode.HELLO, key=b"test", value=b"\x00\x12")
        named = encode_request(Opcode.GET, key=b"\x00k")
        self.assertEqual(self.ask(hello, named), [0, TMPFAIL])

    def test_delay(self) -> None:
        """It is carried out when its time has come, what follows it for its key waits."""
        self.plan.add(Fault(FaultKind.DELAY, "set", seconds=2.0))
        self.assertEqual(self.ask(SET, GET), [])
        self.clock.advance(1.5)
        self.assertEqual(self.statuses(), [])
        self.clock.advance(0.5)
        self.assertEqual(self.statuses(), [0, 0])

    def test_delay_of_a_lost_connection(self) -> None:
        """Nothing is carried out, and no timer stays."""
        self.plan.add(Fault(FaultKind.DELAY, "set", seconds=2.0))
        self.ask(SET)
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_disconnect(self) -> None:
        """The connection is closed without an answer, and nothing is carried out."""
        self.ask(SET)
        self.plan.add(Fault(FaultKind.DISCONNECT, "delete"))
        self.assertEqual(self.ask(encode_request(Opcode.DELETE, key=b"k")), [])
        self.assertTrue(self.transport.disconnecting)

    def test_truncate(self) -> None:
        """Half of the answer comes, then the end."""
        self.ask(SET)
        self.plan.add(Fault(FaultKind.TRUNCATE, "get"))
        self.protocol.dataReceived(GET)
        self.assertEqual(len(self.transport.received), (24 + 4 + 1) // 2)
        self.assertTrue(self.transport.disconnecting)

    def test_silence(self) -> None:
        """No answer comes, nor one to what follows."""
        self.plan.add(Fault(FaultKind.SILENCE, "get"))
        self.assertEqual(self.ask(GET, SET), [])
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def test_text(self) -> None:
        """The text protocol names the status."""
        self.plan.add(Fault(FaultKind.STATUS, "set", status=TMPFAIL))
        self.protocol.dataReceived(b"set k 0 0 1\r\nv\r\nset k 0 0 1\r\nw\r\nget k\r\n")
        self.assertEqual(
            self.transport.received,
            b"SERVER_ERROR fault 0x86\r\nSTORED\r\nVALUE k 0 1\r\nw\r\nEND\r\n",
        )

    def test_clock(self) -> None:
        """Time that has passed is seen by expiry."""
        short = encode_request(
            Opcode.SET, key=b"k", value=b"v", extras=bytes(4) + (100).to_bytes(4)
        )
        self.assertEqual(self.ask(short, GET), [0, 0])
        self.plan.advance(101)
        self.assertEqual(self.ask(GET), [1])

    def test_clear(self) -> None:
        """What was arranged is forgotten."""
        self.plan.add(Fault(FaultKind.STATUS, "get", status=TMPFAIL))
        self.plan.clear()
        self.assertEqual(self.ask(GET), [1])

    def test_refused(self) -> None:
        """Operations that are none, and faults without end, are errors that say so."""
        with self.assertRaises(ValueError) as caught:
            self.plan.add(Fault(FaultKind.STATUS, "gte", status=TMPFAIL))
        self.assertIn("mutate_in", str(caught.exception))
        for _ in range(MOST_FAULTS):
            self.plan.add(Fault(FaultKind.SILENCE, "get"))
        self.assertRaises(ValueError, self.plan.add, Fault(FaultKind.SILENCE, "get"))
