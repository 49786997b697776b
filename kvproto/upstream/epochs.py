"""Epochs: how a flush, or the end of a collection, is seen by all processes at once.

The names of documents in the engine contain the number of an epoch.  To empty a bucket is to begin
another epoch: nobody looks for the old names any more, and they are removed little by little.

Which epoch it is says a *record* in the engine, and every process that sends commands sends a read
of it before them, in the same write: one read for all commands of a reactor's turn.  A command
whose read says "another epoch" counts for nothing (its name is of the old one, where nobody
looks), and is sent again with the new name.  So a flush that was answered is seen by every command
that any process is asked for afterwards.

Where the record lies is `kvproto.upstream.keeper`'s.

A record is text: 16 digits, its version, then JSON.  The version is unix time in microseconds when
it was made, or one more than the version before, so of two records the larger is the newer, and a
record that an engine has lost is not confused with one that was made later.

A flush with a delay is in the record too, with the epoch that begins then: every process turns
over by its own clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from kvproto.errors import ForeignData

__all__ = ["Epochs", "bucket_prefix", "document_prefix", "name_parts"]

_VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Epochs:
    """A record.

    Attributes:
        version: Of two, the larger is the newer.
        epoch: Of the bucket.
        flush_at: Unix time in seconds when `next_epoch` begins; None for never.
        next_epoch: The epoch then.
        collections: Epochs of collections that were dropped, by their ids.
    """

    version: int
    epoch: int
    flush_at: float | None = None
    next_epoch: int = 0
    collections: dict[int, int] = field(default_factory=dict)

    @classmethod
    def first(cls, micros: int) -> Epochs:
        """Return the record of a new bucket."""
        return cls(micros, micros)

    @classmethod
    def decode(cls, data: bytes) -> Epochs:
        """Read a record.

        Raises:
            ForeignData: It is none.
        """
        try:
            version = int(data[:_VERSION_DIGITS])
            content: dict[str, Any] = json.loads(data[_VERSION_DIGITS:])
            flush_at = content.get("flush_at")
            return cls(
                version,
                int(content["epoch"]),
                None if flush_at is None else float(flush_at),
                int(content.get("next_epoch", 0)),
                {int(number): int(e) for number, e in content.get("collections", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ForeignData(
                f"the engine's record of epochs cannot be read: {data!r:.80}"
            ) from None

    def encode(self) -> bytes:
        """Write it."""
        content: dict[str, Any] = {"epoch": self.epoch}
        if self.flush_at is not None:
            content |= {"flush_at": self.flush_at, "next_epoch": self.next_epoch}
        if self.collections:
            content["collections"] = self.collections
        text = json.dumps(content, separators=(",", ":")).encode()
        return b"%0*d%b" % (_VERSION_DIGITS, self.version, text)

    def at(self, now: float) -> Epochs:
        """Return the same with a flush that is due done."""
        if self.flush_at is None or now < self.flush_at:
            return self
        return replace(self, epoch=self.next_epoch, flush_at=None, next_epoch=0, collections={})

    def flushed(self, now: float, moment: float, micros: int) -> Epochs:
        """Return the record after a flush.

        Args:
            now: Unix time in seconds.
            moment: When the flush is to happen, unix time in seconds.
            micros: The engine's time, for the new version.
        """
        record = self.at(now)
        version = max(micros, self.version + 1)
        if moment <= now:
            return Epochs(version, version)
        return replace(record, version=version, flush_at=moment, next_epoch=version)

    def dropped(self, now: float, collection: int, micros: int) -> Epochs:
        """Return the record after a collection was dropped."""
        record = self.at(now)
        version = max(micros, self.version + 1)
        return replace(
            record, version=version, collections={**record.collections, collection: version}
        )


def bucket_prefix(bucket: bytes) -> bytes:
    """Return what stands before the names of all documents of a bucket, of whatever epoch."""
    return b"kvtls:%b:" % bucket


def document_prefix(bucket: bytes, record: Epochs, collection: int) -> bytes:
    """Return what stands before the names of a collection's documents.

    It has no brace, so a client's own hash tags work.
    """
    epoch = record.collections.get(collection, 0)
    if epoch:
        return b"%b%x:%x.%x:" % (bucket_prefix(bucket), record.epoch, collection, epoch)
    return b"%b%x:%x:" % (bucket_prefix(bucket), record.epoch, collection)


def name_parts(bucket: bytes, name: bytes) -> tuple[int, int, int, bytes] | None:
    """Take the name of a document apart, as `document_prefix` and its key have made it.

    Returns:
        Epoch, collection, epoch of the collection, and key; None for what is no such name.
    """
    try:
        epoch, collection, key = name[len(bucket_prefix(bucket)) :].split(b":", 2)
        number, _, dropped = collection.partition(b".")
        return int(epoch, 16), int(number, 16), int(dropped or b"0", 16), key
    except ValueError:
        return None
