"""Requests told in meta commands, and the same ones as frames: memcached answers both alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.meta_frames import MetaTranslation
from tests.integration.memcached import Memcached
from tests.integration.service import PATIENCE

KEYS = (b"plain", b"with space", b"\x00\x01\xff\r\n", b"k" * 250, b" " * 186, b"b")
VALUES = (b"", b"7", b"18446744073709551615", b"text", b"\r\nEND\r\n", bytes(range(256)) * 300)
EXPIRIES = (0, 1000, 2_592_001, 0x7FFF_FFFF, 0xFFFF_FFFE)

STORING = (Opcode.SET, Opcode.ADD, Opcode.REPLACE)
EXTENDING = (Opcode.APPEND, Opcode.PREPEND)
COUNTING = (Opcode.INCREMENT, Opcode.DECREMENT)
READING = (Opcode.GET, Opcode.GETK)
TOUCHING = (Opcode.GAT, Opcode.TOUCH)
KINDS = (*STORING, *EXTENDING, *COUNTING, *READING, *TOUCHING, Opcode.DELETE)


class Asker:
    """A connection to a server that answers binary requests, by itself or by a translation."""

    def __init__(
        self,
        server: Memcached,
        tell: Callable[[bytes], bytes] = bytes,
        hear: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.socket = server.connect()
        self.socket.settimeout(PATIENCE)
        self._tell, self._hear = tell, hear
        self._decoder = ResponseDecoder()
        self.cas = dict.fromkeys(KEYS, 0)

    def ask(self, opcode: int, key: bytes, cas: str, **fields: Any) -> Any:
        """Ask; return the reply."""
        number = {"none": 0, "right": self.cas[key], "wrong": self.cas[key] + 1000}[cas]
        data = self._tell(encode_request(opcode, key=key, cas=number, opaque=77, **fields))
        self.socket.sendall(data)
        found: list[Any] = []
        while not found:
            heard = self.socket.recv(1 << 16)
            assert heard
            found = list(self._decoder.feed(self._hear(heard)))
        (reply,) = found
        if not reply.status and opcode != Opcode.TOUCH:
            self.cas[key] = reply.cas
        return reply


class SameAnswersTests(SynchronousTestCase):
    """Two servers, one of which speaks text alone."""

    def start(self, *arguments: str) -> Memcached:
        server = Memcached(*arguments)
        self.addCleanup(server.kill)
        return server

    def askers(self) -> tuple[Asker, Asker]:
        translation = MetaTranslation()
        both = (
            Asker(self.start()),
            Asker(self.start("-B", "ascii"), translation.requests, translation.replies),
        )
        for one in both:
            self.addCleanup(one.socket.close)
        return both

    def essence(self, reply: Any) -> tuple[Any, ...]:
        """Return what must be the same: all but the CAS itself and the words of an error."""
        extras = b"" if reply.opcode == Opcode.TOUCH else reply.extras
        value = reply.value if not reply.status else b""
        return reply.opcode, reply.opaque, reply.status, reply.key, extras, value, bool(reply.cas)

    def test_random_requests(self) -> None:
        """Each request, in each state of a document, with each kind of CAS."""
        chosen = random.Random(23)
        frames, lines = self.askers()
        seen = set()
        for _ in range(6000):
            opcode, key = chosen.choice(KINDS), chosen.choice(KEYS)
            extras, value = b"", b""
            expiry = chosen.choice(EXPIRIES).to_bytes(4)
            cas = chosen.choice(("none", "none", "right", "wrong"))
            if opcode in STORING:
                extras, value = chosen.randbytes(4) + expiry, chosen.choice(VALUES)
            elif opcode in EXTENDING:
                value = chosen.choice((b"1", b"x"))
            elif opcode in COUNTING:
                extras = chosen.choice((1, 1 << 63)).to_bytes(8) + (5).to_bytes(8)
                extras += chosen.choice((expiry, b"\xff" * 4))
            elif opcode in TOUCHING:
                extras = expiry
            if opcode in READING or opcode in TOUCHING:
                cas = "none"
            asked = {"extras": extras, "value": value}
            wanted = frames.ask(opcode, key, cas, **asked)
            found = lines.ask(opcode, key, cas, **asked)
            case = f"{opcode!r} {key[:20]!r} {cas} {asked}: {wanted} {found}"
            self.assertEqual(self.essence(found), self.essence(wanted), case[:800])
            seen.add((opcode, cas, wanted.status))
            if opcode in COUNTING and not wanted.status:
                # Whether a counter that has become shorter is padded depends on who looks at it
                # meanwhile, memcached's own threads included.
                for one in frames, lines:
                    one.ask(Opcode.SET, key, "none", extras=bytes(8), value=b"7")
        self.assertGreaterEqual(
            {status for _, _, status in seen},
            {0, Status.NOT_FOUND, Status.EXISTS, Status.NOT_STORED, Status.NOT_A_NUMBER},
        )

    def test_too_large(self) -> None:
        """What does not fit is refused alike, what was there is gone, and the next is answered."""
        for one in self.askers():
            one.ask(Opcode.SET, b"b", "none", extras=bytes(8), value=b"old")
            reply = one.ask(Opcode.SET, b"b", "none", extras=bytes(8), value=bytes(1_100_000))
            self.assertEqual(reply.status, Status.TOO_BIG)
            self.assertEqual(one.ask(Opcode.GET, b"b", "none").status, Status.NOT_FOUND)
