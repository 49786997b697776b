"""Ways to cut a stream: decoders must give the same for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from kvproto.errors import RemoteProtocolError

__all__ = ["Decoder", "cut_at", "cuttings", "decode"]


class Decoder(Protocol):
    """What all decoders of `kvproto.wire` share."""

    error: Any

    @property
    def buffered(self) -> int:
        """Bytes held."""

    def feed(self, data: bytes) -> list[Any]:
        """Decode."""


def cut_at(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return the stream in parts, cut at these offsets."""
    ends = [*sorted({place for place in places if 0 < place < len(stream)}), len(stream)]
    starts = [0, *ends[:-1]]
    return [stream[start:end] for start, end in zip(starts, ends, strict=True)]


def cuttings(stream: bytes) -> Iterator[list[bytes]]:
    """Yield the stream whole, byte by byte, and in two parts for each place to cut."""
    yield [stream]
    yield cut_at(stream, range(len(stream)))
    for place in range(1, len(stream)):
        yield [stream[:place], stream[place:]]


def decode(
    make: Callable[[], Decoder], parts: Iterable[bytes], bound: int | None = None
) -> tuple[list[Any], str | None]:
    """Feed a new decoder until its stream ends or breaks.

    Args:
        make: Makes the decoder.
        parts: What it reads, in turn.
        bound: Most bytes it may hold; None leaves it unchecked.

    Returns:
        What it gave, and why the stream broke, if it did.
    """
    decoder = make()
    given: list[Any] = []
    for part in parts:
        given += decoder.feed(part)
        if bound is not None and decoder.buffered > bound:
            raise AssertionError(f"{decoder.buffered} bytes held, {bound} allowed")
        if decoder.error is not None:
            try:
                decoder.feed(b"more")
            except RemoteProtocolError as e:
                return given, str(e)
            raise AssertionError("a broken stream was read further")
    return given, None
