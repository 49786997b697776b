"""The capabilities that two nodes show one another in the handshake.

Source: Erlang, "Distribution Protocol", and OTP's ``dist.h``: the guide's value
of ``MANDATORY_25_DIGEST`` is wrong, the header's is used here.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

__all__ = ["MANDATORY", "OURS", "Flag", "effective", "missing_flags"]


class Flag(IntFlag):
    """Distribution flags that this node knows by name."""

    PUBLISHED = 0x1
    EXTENDED_REFERENCES = 0x4
    DIST_MONITOR = 0x8
    FUN_TAGS = 0x10
    DIST_MONITOR_NAME = 0x20
    NEW_FUN_TAGS = 0x80
    EXTENDED_PIDS_PORTS = 0x100
    EXPORT_PTR_TAG = 0x200
    BIT_BINARIES = 0x400
    NEW_FLOATS = 0x800
    DIST_HDR_ATOM_CACHE = 0x2000
    SMALL_ATOM_TAGS = 0x4000
    UTF8_ATOMS = 0x10000
    MAP_TAG = 0x20000
    BIG_CREATION = 0x40000
    FRAGMENTS = 0x800000
    HANDSHAKE_23 = 0x1000000
    UNLINK_ID = 0x2000000
    MANDATORY_25_DIGEST = 1 << 26
    SPAWN = 1 << 32
    NAME_ME = 1 << 33
    V4_NC = 1 << 34
    ALIAS = 1 << 35


_MANDATORY_25 = (
    Flag.EXTENDED_REFERENCES
    | Flag.FUN_TAGS
    | Flag.NEW_FUN_TAGS
    | Flag.EXTENDED_PIDS_PORTS
    | Flag.EXPORT_PTR_TAG
    | Flag.BIT_BINARIES
    | Flag.NEW_FLOATS
    | Flag.UTF8_ATOMS
    | Flag.MAP_TAG
    | Flag.BIG_CREATION
    | Flag.HANDSHAKE_23
)

MANDATORY: Final = _MANDATORY_25
"""What a peer must have: OTP 25's set.  We show OTP 26's additions too, peers need not."""

OURS: Final = (
    _MANDATORY_25
    | Flag.UNLINK_ID
    | Flag.V4_NC
    | Flag.MANDATORY_25_DIGEST
    | Flag.DIST_MONITOR
    | Flag.DIST_MONITOR_NAME
    | Flag.SMALL_ATOM_TAGS
    | Flag.ALIAS
)
"""Left out on purpose: PUBLISHED (we are a hidden node), the atom cache and
FRAGMENTS (so that frames are whole and plain), SPAWN (no code runs here for
peers), NAME_ME (we refuse to invent names)."""


def expand(flags: int) -> int:
    """Spell out what the one-bit digest of OTP 25's mandatory flags stands for."""
    return flags | _MANDATORY_25 if flags & Flag.MANDATORY_25_DIGEST else flags


def missing_flags(theirs: int) -> Flag:
    """Return the mandatory flags that a peer did not show."""
    return MANDATORY & ~expand(theirs)


def effective(ours: int, theirs: int) -> Flag:
    """Return what both sides have."""
    return Flag(expand(ours) & expand(theirs) & sum(Flag))
