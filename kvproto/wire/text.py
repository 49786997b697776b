"""memcached's text protocol: bytes in, commands out; replies are encoded here too."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TextCommand", "TextRefusal"]


@dataclass(slots=True)
class TextCommand:
    """One command, checked; a retrieval of several keys is one command for each and an ``end``.

    Attributes:
        verb: ``get gets gat gats end set add replace append prepend cas delete incr decr touch
            flush_all stats version verbosity quit mn``; ``end`` closes a retrieval.
        expiry: As the binary protocol's u32; a negative one has become one long past.
        delta: Of incr and decr.
        noreply: The client does not want the usual answer.
        args: The arguments of ``stats``.
    """

    verb: str
    key: bytes = b""
    value: bytes = b""
    flags: int = 0
    expiry: int = 0
    cas: int = 0
    delta: int = 0
    noreply: bool = False
    args: tuple[bytes, ...] = ()


@dataclass(slots=True)
class TextRefusal:
    """What the decoder itself has to say to a line; send `line`, unless it is empty, and go on.

    Attributes:
        line: The whole answer with its line end, ``b""`` when the client asked for none.
        verb: The command refused, ``""`` when it was none.
        key: Set with `too_large` only.
        too_large: The value was longer than allowed and has been thrown away.  memcached then
            deletes the old value under `key` when the verb is ``set``.
    """

    line: bytes
    verb: str = ""
    key: bytes = b""
    too_large: bool = False
