"""What a file of the log looks like: a header, records, zeros.

The header::

    offset  size
         0    16  `MAGIC`
        16     8  number of the segment
        24     8  uuid of the history of sequence numbers
        32     8  the last CAS when the segment was begun
        40     8  the last sequence number then
        48    36  id of the machine's boot then, in ASCII, or zeros
        84     4  CRC-32 of what is before

The number of a segment is in its name, in its header, and in the checksum of each record, so
that a file under another name, and records of another file, are noticed.

What a bad record means.  When only this process died, the kernel has everything that was
appended; at most the very last record is incomplete, and nothing follows it.  When the machine
died, whatever was not forced to the disk may be there or not, in any order; but everything before
the place that a later SYNCED record names was.  So a record that cannot be read is damage if
anything readable follows that was written under the same boot, or if a SYNCED record says that it
was on the disk; otherwise it is the end of what was saved.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from kvproto.store.document import Document
from kvproto.store.file.records import ALIGNMENT, HEAD_SIZE, Kind, body_of, decode, encode

__all__ = [
    "HEADER_SIZE",
    "Fault",
    "Header",
    "boot_id",
    "end_record",
    "find_fault",
    "number_of",
    "segment_name",
]

MAGIC = b"kvproto log 1\n\0\0"

_HEADER = Struct("<16sQQQQ36s")

HEADER_SIZE = _HEADER.size + 4

_SUFFIX = ".log"

_NAME = re.compile(r"([0-9]{16})\.log")


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes of a segment."""

    number: int
    uuid: int
    cas: int
    seqno: int
    boot: bytes = b""

    def encode(self) -> bytes:
        """Return it as bytes."""
        data = _HEADER.pack(MAGIC, self.number, self.uuid, self.cas, self.seqno, self.boot)
        return data + zlib.crc32(data).to_bytes(4, "little")

    @classmethod
    def decode(cls, data: bytes) -> Header | None:
        """Read it from the beginning of a file; None when that is no header."""
        if len(data) < HEADER_SIZE:
            return None
        body = data[: _HEADER.size]
        magic, number, uuid, cas, seqno, boot = _HEADER.unpack(body)
        if magic != MAGIC or data[_HEADER.size : HEADER_SIZE] != zlib.crc32(body).to_bytes(
            4, "little"
        ):
            return None
        return cls(number, uuid, cas, seqno, boot.rstrip(b"\0"))


def boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> bytes:
    """Return what names the time since the machine was started; b"" where nothing does."""
    try:
        return Path(path).read_bytes().strip()[:36]
    except OSError:
        return b""


def segment_name(number: int) -> str:
    """Return the name of a segment's file; names sort as numbers do."""
    return f"{number:016d}{_SUFFIX}"


def number_of(name: str) -> int | None:
    """Return the number of a segment by its file's name; None when it is no segment."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def seed_of(number: int) -> int:
    """Return what the checksums of a segment's records begin with."""
    return number & 0xFFFFFFFF


def first_record() -> int:
    """Return where the first record begins."""
    return HEADER_SIZE + (-HEADER_SIZE % ALIGNMENT)


def end_record(number: int) -> bytes:
    """Return the record that ends a segment."""
    return encode(body_of(Kind.END, b"", Document(b"")), seed_of(number))


END_SIZE = len(end_record(0))


@dataclass(frozen=True, slots=True)
class Fault:
    """What is behind the last record that can be read.

    Attributes:
        at: Where it begins.
        lost: How many bytes are left out; 0 when there is nothing but zeros.
        damage: Whether what is left out had been written for good.
    """

    at: int
    lost: int
    damage: bool


def find_fault(data: bytes, at: int, header: Header, boot: bytes) -> Fault:
    """Look at what is behind the last record of a segment that has no END.

    Args:
        data: The file.
        at: Behind its last readable record.
        header: Of the segment.
        boot: The current boot.
    """
    rest = data[at:].rstrip(b"\0")
    if not rest:
        return Fault(at, 0, False)
    same_boot = bool(boot) and boot == header.boot
    damage = False
    seed = seed_of(header.number)
    for place in range(at + ALIGNMENT, at + len(rest), ALIGNMENT):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if size < HEAD_SIZE or (found := decode(data, place, seed)) is None:
            continue
        record = found[0]
        if same_boot or (
            record.kind == Kind.SYNCED
            and record.document.seqno == header.number
            and record.document.cas > at
        ):
            damage = True
            break
    return Fault(at, len(rest), damage)
