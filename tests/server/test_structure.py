"""What a reader of the server room may rely on: how short the way is."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import Bucket, KVServer, Manifest, scan
from kvproto.store import MemoryStore
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Feature, Opcode
from kvproto.wire.framing import Durability, RequestFraming, encode_request_framing
from kvproto.wire.hello import encode_features
from tests.server.support import NOW, Link
from tests.test_layers import PACKAGE

MOST_CALLS = 18
"""Calls of ours between the transport's own two: that which reads, and that which writes."""

FEATURES = [Feature.COLLECTIONS, Feature.XERROR, Feature.JSON, Feature.MUTATION_SEQNO]


def calls_of(link: Link, data: bytes) -> list[str]:
    """Return the functions of the package that are called for one read, in order."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(PACKAGE)):
            calls.append(f"{path.removeprefix(str(PACKAGE))}: {frame.f_code.co_qualname}")

    replies: list[bytes] = []
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        taken = link.protocol.answer(data, replies)
    finally:
        sys.setprofile(before)
    assert taken == len(data)
    assert replies
    return calls


class CallsTests(SynchronousTestCase):
    """How many functions a request goes through."""

    def setUp(self) -> None:
        bucket = Bucket("default", MemoryStore(lambda: NOW), Manifest([("scope", "collection")]))
        self.server = KVServer([bucket])

    def check(self, link: Link, data: bytes, most: int = MOST_CALLS) -> None:
        calls = calls_of(link, data)
        if scan.COMPILED:
            self.assertLessEqual(len(calls), most, "\n".join(calls))
        # Bytes are looked at once: whatever reads or writes them is called once.
        of_bytes = sorted(call for call in calls if call.startswith("/wire/"))
        self.assertEqual(of_bytes, sorted(set(of_bytes)))

    def test_getk(self) -> None:
        """A GETK is decoded by the scan and executed by its handler."""
        link = Link(self.server)
        link.call(Opcode.SET, key=b"a", value=b"1", extras=bytes(8))
        self.check(link, encode_request(Opcode.GETK, key=b"a"))

    def test_durable_set_in_a_collection(self) -> None:
        """So is a SET with flexible framing."""
        link = Link(self.server)
        link.call(Opcode.HELLO, value=encode_features(FEATURES))
        framing = encode_request_framing(RequestFraming(durability=Durability(1)))
        put = encode_request(
            Opcode.SET, key=b"\x08a", value=b"1", extras=bytes(8), framing=framing, magic=0x08
        )
        self.check(link, put)
        self.check(link, put)

    def test_text_get(self) -> None:
        """Of a plain get, binary or text, only the store is asked."""
        link = Link(self.server)
        link.ask(b"set a 0 0 1\r\n1\r\n")
        self.check(link, b"get a\r\n", 3)
        link = Link(self.server)
        link.call(Opcode.NOOP)
        self.check(link, encode_request(Opcode.GET, key=b"a"), 3)
