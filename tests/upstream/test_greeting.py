"""What an engine must answer at the beginning of a connection."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.engine import SingleEngine
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.resp import ReplyError, command

HELLO = command(b"HELLO")


def hello(version: bytes, mode: bytes = b"standalone") -> list[bytes]:
    """Return what a server tells about itself, as Redis 7.0 answers HELLO in RESP2."""
    return [b"server", b"redis", b"version", version, b"proto", b"2", b"mode", mode]


class GreetingTests(SynchronousTestCase):
    """What is said of a server that cannot be used."""

    def setUp(self) -> None:
        self.engine = SingleEngine(EngineOptions(servers=(("h", 1),)), Clock(), 0)

    def judge(self, reply: object, data: bytes = HELLO) -> str | None:
        failure = self.engine._judge(data, reply)
        return None if failure is None else f"{failure.reason}: {failure.text}"

    def test_it_is_asked(self) -> None:
        """A connection begins with what is judged."""
        self.assertEqual(self.engine._greeting(), [HELLO, command(b"PING")])

    def test_good(self) -> None:
        """Servers that are new enough, whatever else they tell, and those that may not tell."""
        for version in (b"6.2.0", b"7.0.15", b"255.255.255", b"10.0", b"", b"unstable"):
            self.assertIsNone(self.judge(hello(version)))
        self.assertIsNone(self.judge([b"server"]))
        self.assertIsNone(self.judge(hello(b"7.0.15", b"cluster")))
        error = ReplyError("NOPERM this user has no permissions to run the 'hello' command")
        self.assertIsNone(self.judge(error))

    def test_too_old(self) -> None:
        """Those that are too old: by their number, or as they do not know the question."""
        text = "refused: its version is 6.0.16, and Redis 6.2 is the oldest that can be used"
        self.assertEqual(self.judge(hello(b"6.0.16")), text)
        for words in ("ERR unknown command `HELLO`", "ERR wrong number of arguments for 'hello'"):
            said = self.judge(ReplyError(words))
            self.assertEqual(
                said, f"refused: it is older than Redis 6.2, or something else: {words}"
            )

    def test_sentinel(self) -> None:
        """A Sentinel has no documents."""
        self.assertIn("name the server that it watches", self.judge(hello(b"7.0.15", b"sentinel")))

    def test_other_errors(self) -> None:
        """What every command is told is what counts."""
        self.assertEqual(self.judge(ReplyError("NOAUTH no")), "login: NOAUTH no")
        self.assertEqual(self.judge(ReplyError("BUSY x"), command(b"PING")), "overload: BUSY x")
        self.assertIsNone(self.judge(b"PONG", command(b"PING")))
