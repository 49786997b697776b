"""Frames out of bytes, however they are cut."""

from __future__ import annotations

import sys

from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist.framing import TICK, FrameDecoder, frame
from kvproto.errors import RemoteProtocolError


def frames_of(decoder: FrameDecoder) -> list[bytes]:
    """Return all frames that are whole."""
    found = []
    while (payload := decoder.next_frame()) is not None:
        found.append(payload)
    return found


class FrameDecoderTests(SynchronousTestCase):
    """Bytes in, frames out."""

    STREAM = frame(b"one") + TICK + frame(b"") + frame(b"x" * 300)
    FRAMES = [b"one", b"", b"", b"x" * 300]

    def test_whole(self) -> None:
        """All frames of one read come out."""
        decoder = FrameDecoder(1000)
        decoder.feed(self.STREAM)
        self.assertEqual(frames_of(decoder), self.FRAMES)

    def test_split_at_each_offset(self) -> None:
        """Two reads, cut anywhere, give the same frames."""
        for cut in range(len(self.STREAM)):
            decoder = FrameDecoder(1000)
            decoder.feed(self.STREAM[:cut])
            found = frames_of(decoder)
            decoder.feed(self.STREAM[cut:])
            self.assertEqual(found + frames_of(decoder), self.FRAMES)

    def test_byte_by_byte(self) -> None:
        """One byte at a time gives the same frames."""
        decoder = FrameDecoder(1000)
        found = []
        for position in range(len(self.STREAM)):
            decoder.feed(self.STREAM[position : position + 1])
            found += frames_of(decoder)
        self.assertEqual(found, self.FRAMES)

    def test_limit(self) -> None:
        """A frame beyond the limit is refused by its length alone."""
        decoder = FrameDecoder(4)
        decoder.feed(b"\x00\x00\x00\x05")
        self.assertRaises(RemoteProtocolError, decoder.next_frame)

    def test_limit_grows_between_frames_of_one_read(self) -> None:
        """What follows the handshake in the same read has the limit of after it."""
        decoder = FrameDecoder(4)
        decoder.feed(frame(b"ack") + frame(b"x" * 100))
        self.assertEqual(decoder.next_frame(), b"ack")
        decoder.limit = 100
        self.assertEqual(decoder.next_frame(), b"x" * 100)

    def test_large_frame_in_small_pieces_is_linear(self) -> None:
        """Twenty megabytes in pieces of 4 KiB are moved a few times, not once for each piece."""
        decoder = FrameDecoder(1 << 28)
        piece = bytes(4096)
        sizes = set()
        decoder.feed(frame(piece * 5000)[:4])
        for _ in range(5000):
            self.assertIsNone(decoder.next_frame())
            decoder.feed(piece)
            sizes.add(sys.getsizeof(decoder._buffer))
        payload = decoder.next_frame()
        # The same buffer, made larger now and then: each growth by a part of what it holds.
        self.assertLess(len(sizes), 200)
        self.assertEqual(len(payload or b""), 5000 * 4096)

    def test_clear(self) -> None:
        """After the end nothing comes out."""
        decoder = FrameDecoder(100)
        decoder.feed(frame(b"one"))
        decoder.clear()
        self.assertIsNone(decoder.next_frame())
