"""Small fixed layouts."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.binary import ResponseDecoder
from kvproto.wire.constants import Status
from kvproto.wire.extras import (
    Meta,
    config_push,
    config_version,
    meta_extras,
    mutation_token,
    split_meta_extras,
    split_mutation_token,
)
from kvproto.wire.frames import Request


class LayoutTests(SynchronousTestCase):
    """Each layout, byte by byte."""

    def test_mutation_token(self):
        """Sixteen bytes, or none."""
        self.assertEqual(mutation_token(1, 2), bytes(7) + b"\x01" + bytes(7) + b"\x02")
        self.assertEqual(split_mutation_token(mutation_token(2**64 - 1, 2)), (2**64 - 1, 2))
        self.assertIsNone(split_mutation_token(b""))
        self.assertRaises(RemoteProtocolError, split_mutation_token, bytes(15))

    def test_meta(self):
        """Exactly 21 bytes: deleted, flags, expiry, seqno, datatype."""
        meta = Meta(True, 0x02000000, 1700000000, 42, 1)
        wire = bytes.fromhex("00000001 02000000 6553f100 000000000000002a 01")
        self.assertEqual(meta_extras(meta), wire)
        self.assertEqual(split_meta_extras(wire), meta)
        self.assertEqual(split_meta_extras(wire[:20]).datatype, 0)
        self.assertRaises(RemoteProtocolError, split_meta_extras, wire[:19])

    def test_config_version(self):
        """Signed epoch and revision, or nothing."""
        self.assertIsNone(config_version(b""))
        self.assertEqual(config_version(b"\xff" * 8 + bytes(7) + b"\x05"), (-1, 5))
        with self.assertRaises(RemoteProtocolError) as caught:
            config_version(bytes(4))
        self.assertEqual(caught.exception.status, Status.INVALID)

    def test_config_push(self):
        """A client reads a pushed configuration as a request of the server."""
        extras = bytes(7) + b"\x01" + bytes(7) + b"\x02"
        self.assertEqual(
            ResponseDecoder().feed(config_push(b"default", b"{}", 1, 2, 3)),
            [Request(0x82, 0x01, 0, 1, 3, 0, extras, b"default", b"{}")],
        )
        [brief] = ResponseDecoder().feed(config_push(b"", b"", 1, 2))
        self.assertEqual(brief, Request(0x82, 0x01, extras=extras))
        self.assertRaises(LocalProtocolError, config_push, bytes(0x10000), b"{}", 1, 2)
