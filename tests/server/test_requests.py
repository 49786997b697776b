"""Each request is counted once, whichever way it takes."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from kvproto.server.requests import MEASURED, OPERATIONS, RESULTS, RequestCounts
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Request
from tests.server.support import Link

ITEM = bytes(8)
ALICE = {"alice": "secret"}


class CountTests(SynchronousTestCase):
    """What a bucket says of its requests."""

    def counts(self, link: Link) -> dict[tuple[str, str], int]:
        (bucket,) = link.server.buckets.values()
        return bucket.requests.report()

    def test_binary(self) -> None:
        """Short way and usual way together count each request once, quiet ones too."""
        link = Link()
        plain = [
            encode_request(Opcode.SET, key=b"a", extras=ITEM, value=b"1"),
            encode_request(Opcode.GET, key=b"a"),
            encode_request(Opcode.GET, key=b"none"),
        ]
        # The first read takes the usual way, which finds out what is spoken.
        for _ in range(3):
            link.ask(b"".join(plain))
        link.ask(encode_request(Opcode.SET, key=b"a", extras=ITEM, value=b"1", cas=77))
        link.ask(encode_request(Opcode.GETQ, key=b"none") + encode_request(Opcode.GETKQ, key=b"a"))
        link.ask(encode_request(Opcode.DELETE, key=b"none"))
        link.ask(encode_request(Opcode.ADDQ, key=b"b", extras=ITEM, value=b"x"))
        link.ask(encode_request(Opcode.ADD, key=b"b", extras=ITEM, value=b"x"))
        link.ask(encode_request(Opcode.GAT, key=b"b", extras=bytes(4)))
        link.ask(encode_request(0x77))
        self.assertEqual(
            self.counts(link),
            {
                ("set", "ok"): 3,
                ("set", "exists"): 1,
                ("get", "hit"): 4,
                ("get", "miss"): 4,
                ("delete", "miss"): 1,
                ("add", "ok"): 1,
                ("add", "exists"): 1,
                ("get_and_touch", "hit"): 1,
                ("other", "error"): 1,
            },
        )

    def test_text(self) -> None:
        """Keys of a retrieval count one by one, commands by their verb."""
        link = Link()
        for _ in range(3):
            link.ask(b"set a 0 0 1\r\n1\r\nget a\r\nget none\r\n")
        link.ask(b"get a none a\r\ngets a\r\n")
        link.ask(b"incr a 1\r\ndecr none 1\r\nadd a 0 0 1 noreply\r\nx\r\nbogus\r\n")
        self.assertEqual(
            self.counts(link),
            {
                ("set", "ok"): 3,
                ("get", "hit"): 6,
                ("get", "miss"): 4,
                ("increment", "ok"): 1,
                ("decrement", "miss"): 1,
                ("add", "ok"): 1,  # nothing was said, so nothing is known
                ("other", "error"): 1,
            },
        )

    def test_outside_of_buckets(self) -> None:
        """What a stranger asks is in no bucket, and no label is of its choosing."""
        link = Link(users=ALICE)
        link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0guess")
        link.call(Opcode.GET, key=b"k")
        self.assertEqual(self.counts(link), {})
        self.assertEqual(
            link.server.requests.report(),
            {("sasl_auth", "auth_error"): 1, ("get", "auth_error"): 1},
        )

    def test_misshapen(self) -> None:
        """A plain request that is refused for its shape is counted: the store never sees it."""
        link = Link()
        link.call(Opcode.GET, key=b"k", extras=bytes(4))
        link.call(Opcode.GETK)
        link.call(Opcode.SET, key=b"k")
        self.assertEqual(self.counts(link), {("get", "error"): 2, ("set", "error"): 1})

    def test_later(self) -> None:
        """A request that is answered later is counted then, one that fails as an error."""
        counts = RequestCounts()
        waiting: Deferred[bytes] = Deferred()
        counts.binary(lambda *_: waiting, None, Request(opcode=Opcode.GET))
        self.assertEqual(counts.report(), {})
        waiting.callback(b"\x81\0\0\0\0\0" + int(Status.NOT_FOUND).to_bytes(2) + bytes(16))
        failing: Deferred[bytes] = fail(ValueError())
        counts.binary(lambda *_: failing, None, Request(opcode=Opcode.GET))
        self.failureResultOf(failing, ValueError)
        self.assertEqual(counts.report(), {("get", "miss"): 1, ("get", "error"): 1})

    def test_times(self) -> None:
        """One request in so many is timed, the first one included."""
        counts = RequestCounts()
        for _ in range(2 * MEASURED):
            counts.binary(lambda *_: bytes(24), None, Request(opcode=Opcode.NOOP))
        self.assertEqual(counts.times["noop"].cumulative()[-1][1], 2)

    def test_times_of_reads(self) -> None:
        """A read that is one plain GET or SET is timed under its name, any other is not."""
        counts = RequestCounts()
        for data in (
            encode_request(Opcode.GET, key=b"k"),
            encode_request(Opcode.SET, key=b"k", extras=ITEM, value=b"v"),
            b"get k\r\n",
            b"set k 0 0 1\r\nv\r\n",
            2 * encode_request(Opcode.GET, key=b"k"),
            encode_request(Opcode.GET, key=b"k")[:24],
            encode_request(Opcode.DELETE, key=b"k"),
            b"get k\r\nget k\r\n",
            b"\xff",
        ):
            counts.took_read(data, 0.001)
        found = {name: times.cumulative()[-1][1] for name, times in counts.times.items()}
        self.assertEqual(found, {"get": 2, "set": 2})

    def test_labels(self) -> None:
        """Operations and results are from fixed sets."""
        self.assertLessEqual(
            {"get", "set", "replace", "mutate_in", "lookup_in", "increment", "flush"}, OPERATIONS
        )
        counts = RequestCounts()
        for opcode in range(256):
            for status in range(256):
                reply = bytes(6) + status.to_bytes(2) + bytes(16)
                counts.binary(lambda *_, reply=reply: reply, None, Request(opcode=opcode))
        self.assertLessEqual({operation for operation, _ in counts.report()}, OPERATIONS)
        self.assertLessEqual({result for _, result in counts.report()}, RESULTS)
