"""Commands on the wire, what errors mean, and slots of a cluster."""

from __future__ import annotations

from typing import Any

import hiredis
from hiredis import ReplyError
from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.resp import REASONS, Fate, command, failure_of
from kvproto.upstream.scripts import REPLACE_IF, SET_NEWER, SET_PLAIN, with_text
from kvproto.upstream.slots import Shard, parse_shards, parse_slots, slot_of, tags

pack_command: Any = hiredis.pack_command


class CommandTests(SynchronousTestCase):
    """Commands are what hiredis would send."""

    def test_command(self) -> None:
        """Any bytes may be in a command."""
        for parts in ((b"PING",), (b"SET", b"", b"\r\n$1\r\n\0\xff"), (b"x" * 100_000,)):
            self.assertEqual(command(*parts), pack_command(parts))

    def test_script(self) -> None:
        """A script is called by its digest, or sent as a whole."""
        for script in (SET_PLAIN, REPLACE_IF, SET_NEWER):
            call = script.call(b"key", b"1", b"", b"x" * 100)
            parts = (b"1", b"key", b"1", b"", b"x" * 100)
            self.assertEqual(call, pack_command((b"EVALSHA", script.digest, *parts)))
            self.assertEqual(with_text(call), pack_command((b"EVAL", script.text, *parts)))
        self.assertEqual(with_text(command(b"PING")), command(b"PING"))


class FailureTests(SynchronousTestCase):
    """Error replies, in the words of Redis 7.0 (and 6.2, from within scripts)."""

    def test_errors(self) -> None:
        """Each error means that nothing was changed; some have another status."""
        for text, fate, reason in (
            ("LOADING Redis is loading the dataset in memory", Fate.NOT_PERFORMED, "loading"),
            (
                "READONLY You can't write against a replica.",
                Fate.NOT_PERFORMED,
                "read-only",
            ),
            ("CLUSTERDOWN Hash slot not served", Fate.NOT_PERFORMED, "cluster-down"),
            ("NOAUTH Authentication required.", Fate.NOT_PERFORMED, "login"),
            ("MISCONF Redis is configured to save RDB snapshots", Fate.NOT_PERFORMED, "no-disk"),
            ("NOREPLICAS Not enough good replicas to write.", Fate.NOT_PERFORMED, "no-replicas"),
            ("MOVED 1 127.0.0.1:7", Fate.NOT_PERFORMED, "redirected"),
            ("BUSY Redis is busy running a script.", Fate.NOT_PERFORMED, "overload"),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: 1f.",
                Fate.NO_MEMORY,
                "no-memory",
            ),
            (
                "ERR Error running script: @user_script: 3: -OOM command not allowed",
                Fate.NO_MEMORY,
                "no-memory",
            ),
            ("ERR string exceeds maximum allowed size (512MB)", Fate.TOO_BIG, "too-big"),
            ("WRONGTYPE Operation against a key", Fate.NOT_PERFORMED, "refused"),
            ("", Fate.NOT_PERFORMED, "refused"),
        ):
            failure = failure_of(ReplyError(text))
            self.assertEqual((failure.fate, failure.reason), (fate, reason), text)
            self.assertIn(failure.reason, REASONS)


class SlotTests(SynchronousTestCase):
    """Slots, as the cluster specification has them."""

    def test_slots(self) -> None:
        """Only what is between the first braces counts, if anything is."""
        self.assertEqual(slot_of(b"123456789"), 0x31C3)
        for key, same_as in (
            (b"{user1000}.following", b"user1000"),
            (b"foo{}{bar}", None),
            (b"foo{{bar}}zap", b"{bar"),
            (b"foo{bar}{zap}", b"bar"),
            (b"foo{bar", None),
            (b"}foo{bar}", b"bar"),
        ):
            expected = slot_of(same_as) if same_as else _whole(key)
            self.assertEqual(slot_of(key), expected, key)

    def test_tags(self) -> None:
        """Tags lie in the slots that they say, spread evenly."""
        found = tags(256)
        for place, (slot, text) in enumerate(found):
            self.assertEqual((slot // 64, slot_of(b"x{%b}" % text)), (place, slot))

    def test_shards(self) -> None:
        """CLUSTER SHARDS, as 7.0.15 gives it: a failed primary beside the one in its place."""

        def node(
            port: int, role: bytes, health: bytes, endpoint: bytes = b"10.0.0.1"
        ) -> list[object]:
            return [
                b"id", b"x", b"port", port, b"ip", b"10.0.0.1", b"endpoint", endpoint,
                b"role", role, b"replication-offset", 7, b"health", health,
            ]  # fmt: skip

        reply = [
            [
                b"slots", [0, 5, 10, 11],
                b"nodes", [
                    node(1, b"replica", b"online"),
                    node(2, b"master", b"fail"),
                    node(3, b"master", b"online"),
                    node(4, b"replica", b"fail"),
                ],
            ],
            [b"slots", [], b"nodes", [node(5, b"master", b"fail", b"")]],
        ]  # fmt: skip
        self.assertEqual(
            parse_shards(reply, "asked", tls=False),
            [
                Shard(
                    ("10.0.0.1", 3),
                    [(0, 5), (10, 11)],
                    [("10.0.0.1", 1), ("10.0.0.1", 4)],
                    1,
                ),
                Shard(("10.0.0.1", 5), [], [], 0),
            ],
        )

    def test_slots_reply(self) -> None:
        """CLUSTER SLOTS; a server may leave out its own name."""
        reply = [
            [0, 5, [b"", 1, b"id"], [b"b", 2, b"id"]],
            [6, 9, [b"b", 3, b"id", []]],
            [10, 10, [None, 1, b"id"], [b"b", 2, b"id"]],
        ]
        self.assertEqual(
            parse_slots(reply, "asked"),
            [
                Shard(("asked", 1), [(0, 5), (10, 10)], [("b", 2)], 1),
                Shard(("b", 3), [(6, 9)], [], 0),
            ],
        )


def _whole(key: bytes) -> int:
    return slot_of(b"{%b}" % key) if b"}" not in key else _crc(key)


def _crc(key: bytes) -> int:
    crc = 0
    for byte in key:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc % 16384
