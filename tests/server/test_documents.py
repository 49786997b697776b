"""Every binary operation on documents, with every outcome it can have."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import KVServer
from kvproto.store import LOCKED_CAS
from kvproto.wire.constants import LOUD, QUIET_ON_MISS, Opcode, Status
from tests.server.support import NOW, Link, SlowStore

FLAGS_EXPIRY = struct.Struct(">II")
COUNTER = struct.Struct(">QQI")
K, V = b"key", b"value"
PUT = FLAGS_EXPIRY.pack(7, 0)
ONE = COUNTER.pack(1, 5, 0)
NO_CREATE = COUNTER.pack(1, 5, 0xFFFFFFFF)
SOON = (60).to_bytes(4)

# Before each row there are: "key" = value (flags 9), "n" = 41, "locked" = value, locked.
# opcode, fields, status, (extras, key, value) of a success
TABLE: list[tuple[Opcode, dict[str, object], Status, tuple[bytes, bytes, bytes]]] = [
    (Opcode.GET, {"key": K}, Status.SUCCESS, (b"\0\0\0\x09", b"", V)),
    (Opcode.GET, {"key": b"-"}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GET, {}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GET, {"key": K, "extras": SOON}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GET, {"key": K, "value": V}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GET, {"key": b"k" * 251}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GET, {"key": b"k" * 250}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GETK, {"key": K}, Status.SUCCESS, (b"\0\0\0\x09", K, V)),
    (Opcode.GETK, {"key": b"-"}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GETK, {}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GAT, {"key": K, "extras": SOON}, Status.SUCCESS, (b"\0\0\0\x09", b"", V)),
    (Opcode.GAT, {"key": b"-", "extras": SOON}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GAT, {"key": b"locked", "extras": SOON}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.GAT, {"key": K}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GATK, {"key": K, "extras": SOON}, Status.SUCCESS, (b"\0\0\0\x09", K, V)),
    (Opcode.GATK, {"key": b"-", "extras": SOON}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GATK, {"extras": SOON}, Status.INVALID, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "value": V, "extras": PUT}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.SET, {"key": b"-", "value": b"", "extras": PUT}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "extras": PUT, "cas": 5}, Status.EXISTS, (b"", b"", b"")),
    (Opcode.SET, {"key": b"-", "extras": PUT, "cas": 5}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.SET, {"key": b"locked", "extras": PUT}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "value": V}, Status.INVALID, (b"", b"", b"")),
    (Opcode.SET, {"value": V, "extras": PUT}, Status.INVALID, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "extras": PUT, "datatype": 1}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "extras": PUT, "datatype": 2}, Status.INVALID, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "extras": PUT, "datatype": 4}, Status.INVALID, (b"", b"", b"")),
    (Opcode.SET, {"key": K, "extras": PUT, "value": bytes(1001)}, Status.TOO_BIG, (b"", b"", b"")),
    (Opcode.ADD, {"key": b"-", "value": V, "extras": PUT}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.ADD, {"key": K, "value": V, "extras": PUT}, Status.EXISTS, (b"", b"", b"")),
    (Opcode.ADD, {"key": K, "value": V}, Status.INVALID, (b"", b"", b"")),
    (Opcode.REPLACE, {"key": K, "value": V, "extras": PUT}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.REPLACE, {"key": b"-", "value": V, "extras": PUT}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.REPLACE, {"key": K, "extras": PUT, "cas": 5}, Status.EXISTS, (b"", b"", b"")),
    (Opcode.DELETE, {"key": K}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.DELETE, {"key": b"-"}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.DELETE, {"key": K, "cas": 5}, Status.EXISTS, (b"", b"", b"")),
    (Opcode.DELETE, {"key": b"locked"}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.DELETE, {"key": K, "extras": SOON}, Status.INVALID, (b"", b"", b"")),
    (Opcode.INCREMENT, {"key": b"n", "extras": ONE}, Status.SUCCESS, (b"", b"", bytes(7) + b"*")),
    (Opcode.INCREMENT, {"key": b"-", "extras": ONE}, Status.SUCCESS, (b"", b"", bytes(7) + b"\5")),
    (Opcode.INCREMENT, {"key": b"-", "extras": NO_CREATE}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.INCREMENT, {"key": K, "extras": ONE}, Status.NOT_A_NUMBER, (b"", b"", b"")),
    (Opcode.INCREMENT, {"key": b"n"}, Status.INVALID, (b"", b"", b"")),
    (Opcode.DECREMENT, {"key": b"n", "extras": ONE}, Status.SUCCESS, (b"", b"", bytes(7) + b"(")),
    (Opcode.DECREMENT, {"key": K, "extras": ONE}, Status.NOT_A_NUMBER, (b"", b"", b"")),
    (Opcode.DECREMENT, {"key": b"n", "value": V, "extras": ONE}, Status.INVALID, (b"", b"", b"")),
    (Opcode.APPEND, {"key": K, "value": V}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.APPEND, {"key": b"-", "value": V}, Status.NOT_STORED, (b"", b"", b"")),
    (Opcode.APPEND, {"key": K, "value": V, "cas": 5}, Status.EXISTS, (b"", b"", b"")),
    (Opcode.APPEND, {"key": K, "value": bytes(1000)}, Status.TOO_BIG, (b"", b"", b"")),
    (Opcode.APPEND, {"key": K, "value": V, "extras": PUT}, Status.INVALID, (b"", b"", b"")),
    (Opcode.APPEND, {"key": K, "value": V, "datatype": 2}, Status.INVALID, (b"", b"", b"")),
    (Opcode.PREPEND, {"key": K, "value": V}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.PREPEND, {"key": b"-", "value": V}, Status.NOT_STORED, (b"", b"", b"")),
    (Opcode.TOUCH, {"key": K, "extras": SOON}, Status.SUCCESS, (b"", b"", b"")),
    (Opcode.TOUCH, {"key": b"-", "extras": SOON}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.TOUCH, {"key": b"locked", "extras": SOON}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.TOUCH, {"key": K}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GET_LOCKED, {"key": K, "extras": SOON}, Status.SUCCESS, (b"\0\0\0\x09", b"", V)),
    (Opcode.GET_LOCKED, {"key": K}, Status.SUCCESS, (b"\0\0\0\x09", b"", V)),
    (Opcode.GET_LOCKED, {"key": b"-"}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GET_LOCKED, {"key": b"locked"}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.GET_LOCKED, {"key": K, "extras": b"1"}, Status.INVALID, (b"", b"", b"")),
    (Opcode.UNLOCK, {"key": b"locked", "cas": 5}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.UNLOCK, {"key": K, "cas": 5}, Status.TEMPORARY_FAILURE, (b"", b"", b"")),
    (Opcode.UNLOCK, {"key": b"-", "cas": 5}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.UNLOCK, {"key": b"locked"}, Status.INVALID, (b"", b"", b"")),
    (Opcode.GET_META, {"key": b"-", "extras": b"\2"}, Status.NOT_FOUND, (b"", b"", b"")),
    (Opcode.GET_META, {"key": K, "extras": b"\3"}, Status.INVALID, (b"", b"", b"")),
]

QUIET_OF = {loud: quiet for quiet, loud in LOUD.items()}


def link() -> Link:
    """Make a link whose store holds what `TABLE` says."""
    made = Link(max_value=1000)
    made.store.set(K, V, 9)
    made.store.set(b"n", b"41")
    made.store.set(b"locked", V)
    made.store.get_and_lock(b"locked", 15)
    return made


class OutcomeTests(SynchronousTestCase):
    """Opcode by outcome."""

    def test_loud(self) -> None:
        """Each request gets the status and the body that the table says."""
        for opcode, fields, status, body in TABLE:
            with self.subTest(opcode=opcode.name, fields=fields):
                response = link().call(opcode, opaque=0xDEADBEEF, **fields)
                self.assertEqual(response.status, status)
                self.assertEqual((response.opcode, response.opaque), (opcode, 0xDEADBEEF))
                if status:
                    names_key = opcode in {Opcode.GETK, Opcode.GATK} and status == Status.NOT_FOUND
                    self.assertEqual(response.key, fields["key"] if names_key else b"")
                    self.assertEqual(response.value == b"", names_key)
                    self.assertEqual(response.extras, b"")
                    self.assertEqual(response.cas, 0)
                else:
                    self.assertEqual((response.extras, response.key, response.value), body)
                    self.assertEqual(response.cas == 0, opcode is Opcode.DELETE)

    def test_quiet(self) -> None:
        """A quiet opcode is silent exactly when it should be, and otherwise says the same."""
        for opcode, fields, status, body in TABLE:
            if opcode not in QUIET_OF:
                continue
            quiet = QUIET_OF[opcode]
            silent = Status.NOT_FOUND if quiet in QUIET_ON_MISS else Status.SUCCESS
            with self.subTest(opcode=quiet, fields=fields):
                one = link()
                if status == silent:
                    self.assertTrue(one.silent(quiet, **fields))
                    continue
                response = one.call(quiet, **fields)
                self.assertEqual((response.opcode, response.status), (quiet, status))
                if not status:
                    self.assertEqual((response.extras, response.key, response.value), body)

    def test_quiet_does_the_same(self) -> None:
        """A quiet mutation leaves the same documents behind as the loud one."""
        for opcode, fields, _, _ in TABLE:
            if opcode not in QUIET_OF or QUIET_OF[opcode] in QUIET_ON_MISS:
                continue
            with self.subTest(opcode=opcode.name, fields=fields):
                loud, quiet = link(), link()
                loud.responses(self.request(opcode, fields))
                quiet.responses(self.request(QUIET_OF[opcode], fields))
                for key in (K, b"-", b"n", b"locked"):
                    self.assertEqual(loud.store.get(key), quiet.store.get(key))

    def request(self, opcode: int, fields: dict[str, object]) -> bytes:
        from kvproto.wire.binary import encode_request

        return encode_request(opcode, **fields)  # type: ignore[arg-type]

    def test_slow_store(self) -> None:
        """A store that answers later gets the same replies."""
        for opcode, fields, status, body in TABLE:
            with self.subTest(opcode=opcode.name, fields=fields):
                one = link()
                slow = SlowStore(one.store)
                one = Link(KVServer(slow, one.server.settings))
                responses = one.responses(self.request(opcode, fields))
                while slow.waiting:
                    self.assertEqual(responses, [])
                    slow.release()
                    responses = one.responses()
                [response] = responses
                self.assertEqual(response.status, status)
                if not status:
                    self.assertEqual((response.extras, response.key, response.value), body)


class ValueTests(SynchronousTestCase):
    """What comes back is what was stored."""

    def test_round_trip(self) -> None:
        """Flags, value and CAS survive, whatever bits they have."""
        link = Link()
        for value in (b"", b"\0\r\n\xff", bytes(range(256)) * 1000, b"x" * 16384, b"x" * 16385):
            extras = FLAGS_EXPIRY.pack(0xDEADBEEF, 0)
            stored = link.call(Opcode.SET, key=K, value=value, extras=extras)
            for opcode in (Opcode.GET, Opcode.GETK, Opcode.GETQ, Opcode.GETKQ):
                found = link.call(opcode, key=K)
                self.assertEqual(found.value, value)
                self.assertEqual(found.extras, b"\xde\xad\xbe\xef")
                self.assertEqual(found.cas, stored.cas)
            found = link.call(Opcode.GAT, key=K, extras=bytes(4))
            self.assertEqual(found.value, value)

    def test_large_value_is_not_copied(self) -> None:
        """A long value is handed to the transport as the very object that the store has."""
        link = Link(max_value=1 << 20)
        value = bytes(100_000)
        link.store.set(K, value)
        link.transport.peer_reads = False
        link.ask(b"\x80\0\0\3" + bytes(4) + b"\0\0\0\3" + bytes(12) + K)
        self.assertTrue(any(part is value for part in link.transport.unsent))

    def test_cas_protects(self) -> None:
        """A mutation with the CAS that was read succeeds, once."""
        link = Link()
        cas = link.call(Opcode.SET, key=K, value=b"1", extras=PUT).cas
        fields = {"key": K, "value": b"2", "extras": PUT, "cas": cas}
        self.assertEqual(link.call(Opcode.SET, **fields).status, 0)
        self.assertEqual(link.call(Opcode.SET, **fields).status, Status.EXISTS)

    def test_expiry(self) -> None:
        """A document vanishes when its time has come."""
        link = Link()
        link.call(Opcode.SET, key=K, value=V, extras=FLAGS_EXPIRY.pack(0, 10))
        link.time = NOW + 9
        self.assertEqual(link.call(Opcode.GET, key=K).status, 0)
        link.time = NOW + 11
        self.assertEqual(link.call(Opcode.GET, key=K).status, Status.NOT_FOUND)

    def test_touch_moves_expiry(self) -> None:
        """TOUCH, GAT and GATK give a document another expiry."""
        for opcode in (Opcode.TOUCH, Opcode.GAT, Opcode.GATK):
            link = Link()
            link.store.set(K, V)
            self.assertEqual(link.call(opcode, key=K, extras=SOON).status, 0)
            self.assertEqual(link.store.get(K).expiry, NOW + 60)

    def test_counter_wraps_and_stops(self) -> None:
        """INCREMENT wraps at 64 bits, DECREMENT stops at zero."""
        link = Link()
        link.store.set(b"n", b"18446744073709551615")
        response = link.call(Opcode.INCREMENT, key=b"n", extras=ONE)
        self.assertEqual(response.value, bytes(8))
        response = link.call(Opcode.DECREMENT, key=b"n", extras=ONE)
        self.assertEqual(response.value, bytes(8))


class LockTests(SynchronousTestCase):
    """A locked document, as a client sees it."""

    def test_cas_is_hidden(self) -> None:
        """Reading a locked document shows no CAS that would open it."""
        link = Link()
        link.store.set(K, V)
        lock = link.call(Opcode.GET_LOCKED, key=K).cas
        self.assertNotIn(lock, {0, LOCKED_CAS})
        for opcode, extras in ((Opcode.GET, b""), (Opcode.GETK, b""), (Opcode.GET_META, b"\2")):
            self.assertEqual(link.call(opcode, key=K, extras=extras).cas, LOCKED_CAS)

    def test_unlock(self) -> None:
        """The CAS of the lock opens it; then there is none to open."""
        link = Link()
        link.store.set(K, V)
        lock = link.call(Opcode.GET_LOCKED, key=K).cas
        self.assertEqual(link.call(Opcode.UNLOCK, key=K, cas=lock).status, 0)
        self.assertEqual(link.call(Opcode.SET, key=K, value=V, extras=PUT).status, 0)

    def test_mutation_with_lock(self) -> None:
        """A mutation with the lock's CAS succeeds and unlocks."""
        link = Link()
        link.store.set(K, V)
        lock = link.call(Opcode.GET_LOCKED, key=K).cas
        self.assertEqual(link.call(Opcode.SET, key=K, extras=PUT, cas=lock).status, 0)
        self.assertEqual(link.call(Opcode.SET, key=K, extras=PUT).status, 0)

    def test_lapses(self) -> None:
        """A lock ends by itself after the seconds that were asked for."""
        link = Link()
        link.store.set(K, V)
        link.call(Opcode.GET_LOCKED, key=K, extras=(20).to_bytes(4))
        link.time = NOW + 19
        self.assertEqual(link.call(Opcode.SET, key=K, extras=PUT).status, Status.TEMPORARY_FAILURE)
        link.time = NOW + 21
        self.assertEqual(link.call(Opcode.SET, key=K, extras=PUT).status, 0)


class MetaTests(SynchronousTestCase):
    """GET_META, which the SDK's ``exists`` is made of."""

    def test_version_two(self) -> None:
        """The answer has exactly 21 bytes, or the SDK misreads it."""
        link = Link()
        document = link.store.set(K, b"{}", 5, 60)
        response = link.call(Opcode.GET_META, key=K, extras=b"\2")
        fields = struct.unpack(">IIIQB", response.extras)
        self.assertEqual(fields, (0, 5, int(NOW) + 60, document.seqno, 1))
        self.assertEqual(response.cas, document.cas)
        self.assertEqual(response.value, b"")

    def test_version_one(self) -> None:
        """Whoever does not ask for the datatype gets 20 bytes."""
        link = Link()
        link.store.set(K, V)
        for extras in (b"", b"\1"):
            response = link.call(Opcode.GET_META, key=K, extras=extras)
            self.assertEqual(len(response.extras), 20)


class OversizeTests(SynchronousTestCase):
    """Bodies that are larger than allowed."""

    def test_discarded_and_answered(self) -> None:
        """A body beyond the decoder's limit is answered, and the connection goes on."""
        link = Link(max_value=1000)
        link.store.set(K, b"old")
        for opcode in (Opcode.SET, Opcode.SETQ, Opcode.ADD, Opcode.APPEND, Opcode.GET):
            response = link.call(opcode, key=K, value=bytes(100_000), extras=PUT, opaque=3)
            self.assertEqual(
                (response.opcode, response.status, response.opaque), (opcode, Status.TOO_BIG, 3)
            )
        self.assertEqual(link.call(Opcode.GET, key=K).value, b"old")

    def test_memcached_mode_deletes(self) -> None:
        """There, a SET that is too large removes the old value; other operations do not."""
        from kvproto.config import Mode

        for size in (1001, 100_000):
            link = Link(max_value=1000, mode=Mode.MEMCACHED)
            for opcode in (Opcode.ADD, Opcode.REPLACE, Opcode.APPEND):
                link.store.set(K, b"old")
                link.responses(self.request(opcode, size))
                self.assertEqual(link.call(Opcode.GET, key=K).value, b"old")
            for opcode in (Opcode.SET, Opcode.SETQ):
                link.store.set(K, b"old")
                [response] = link.responses(self.request(opcode, size))
                self.assertEqual(response.status, Status.TOO_BIG)
                self.assertEqual(link.call(Opcode.GET, key=K).status, Status.NOT_FOUND)

    def request(self, opcode: int, size: int) -> bytes:
        from kvproto.wire.binary import encode_request

        extras = b"" if opcode == Opcode.APPEND else PUT
        return encode_request(opcode, key=K, value=bytes(size), extras=extras)

    def test_long_key(self) -> None:
        """A key that no decoder keeps is answered too."""
        link = Link()
        response = link.call(Opcode.GET, key=b"k" * 365, opaque=9)
        self.assertEqual((response.status, response.opaque), (Status.INVALID, 9))
        self.assertEqual(link.call(Opcode.NOOP).status, 0)


class FramingTests(SynchronousTestCase):
    """Flexible framing: durability is never ignored, preserve-TTL is done, the rest is refused."""

    def test_durability(self) -> None:
        """Level 1 holds on one node; 2 and 3 cannot; others do not exist; nothing is stored."""
        for framing, status in (
            (b"\x11\x01", 0),
            (b"\x13\x01\x08\x00", 0),
            (b"\x13\x02\x08\x00", Status.DURABILITY_IMPOSSIBLE),
            (b"\x11\x03", Status.DURABILITY_IMPOSSIBLE),
            (b"\x11\x00", Status.DURABILITY_INVALID_LEVEL),
            (b"\x11\x04", Status.DURABILITY_INVALID_LEVEL),
            (b"\x13\x01\x00\x00", Status.INVALID),
            (b"\x12\x01\x00", Status.INVALID),
        ):
            with self.subTest(framing=framing):
                link = Link()
                response = link.call(
                    Opcode.SET, key=K, value=V, extras=PUT, framing=framing, magic=0x08
                )
                self.assertEqual(response.status, status)
                self.assertEqual(link.store.get(K) is not None, status == 0)

    def test_durable_read(self) -> None:
        """A durability level on what is no mutation is refused."""
        link = Link()
        response = link.call(Opcode.GET, key=K, framing=b"\x11\x01", magic=0x08)
        self.assertEqual(response.status, Status.INVALID)

    def test_preserve_expiry(self) -> None:
        """The frame id 5 keeps the expiry of an existing document, for that request only."""
        link = Link()
        link.store.set(K, V, 0, 60)
        for opcode in (Opcode.SET, Opcode.SETQ, Opcode.REPLACE):
            link.responses(self.put(opcode, b"\x50"))
            self.assertEqual(link.store.get(K).expiry, NOW + 60)
        link.responses(self.put(Opcode.SET, b""))
        self.assertEqual(link.store.get(K).expiry, 0)

    def put(self, opcode: int, framing: bytes) -> bytes:
        from kvproto.wire.binary import encode_request

        return encode_request(
            opcode, key=K, value=V, extras=PUT, framing=framing, magic=0x08 if framing else 0x80
        )

    def test_refused(self) -> None:
        """What is unknown gets 0x80, what does not fit 0x04, impersonation 0x24."""
        for framing, status in (
            (b"\x60", Status.UNKNOWN_FRAME_INFO),
            (b"\xf0\x00", Status.UNKNOWN_FRAME_INFO),
            (b"\x13\x01", Status.INVALID),
            (b"\x22\x00\x01", Status.INVALID),
            (b"\x43bob", Status.NO_ACCESS),
        ):
            with self.subTest(framing=framing):
                link = Link()
                response = link.call(Opcode.GET, key=K, framing=framing, magic=0x08, opaque=4)
                self.assertEqual((response.status, response.opaque), (status, 4))
                self.assertEqual(link.call(Opcode.NOOP).status, 0)
        response = Link().call(Opcode.GET, key=K, framing=b"\x50", magic=0x08)
        self.assertEqual(response.status, Status.NOT_SUPPORTED)

    def test_barrier(self) -> None:
        """Replies are in order anyway, so a barrier is always satisfied."""
        response = Link().call(Opcode.NOOP, framing=b"\x00", magic=0x08)
        self.assertEqual(response.status, 0)

    def test_empty_framing(self) -> None:
        """The flexible magic without framing is an ordinary request."""
        self.assertEqual(Link().call(Opcode.NOOP, magic=0x08).status, 0)
