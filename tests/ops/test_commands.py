"""Requests and answers of the control socket."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import CommandError
from kvproto.ops.commands import (
    COMMANDS,
    encode,
    encode_error,
    encode_request,
    parse_request,
)
from kvproto.ops.interfaces import IControl
from tests.examples import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


class ParseTests(SynchronousTestCase):
    """A line becomes a request, or a reason why not."""

    def refused(self, line: bytes | dict[str, Any]) -> CommandError:
        data = line if isinstance(line, bytes) else json.dumps(line).encode()
        error = self.assertRaises(CommandError, parse_request, data)
        assert isinstance(error, CommandError)
        return error

    def test_defaults(self) -> None:
        """What is not given has its default; without ``wait`` nobody waits."""
        request = parse_request(b'{"command": "reload"}')
        self.assertEqual(
            (request.id, request.command, request.arguments, request.wait, request.seconds),
            (None, "reload", {"allow_fewer_names": False}, False, COMMANDS["reload"].seconds),
        )

    def test_given(self) -> None:
        """What is given is used."""
        request = parse_request(
            b'{"protocol": 1, "id": "a", "command": "reload", "timeout": 3,'
            b' "arguments": {"wait": true, "allow_fewer_names": true}}'
        )
        self.assertEqual(
            (request.id, request.arguments, request.wait, request.seconds),
            ("a", {"allow_fewer_names": True}, True, 3.0),
        )

    def test_commands_without_wait(self) -> None:
        """A command that cannot be left alone is always waited for."""
        self.assertTrue(parse_request(b'{"command": "rollback"}').wait)

    def test_round_trip(self) -> None:
        """What the client encodes the service understands, for every command."""
        for name, command in COMMANDS.items():
            given_ = {
                key: "all" for key, argument in command.arguments.items() if argument.required
            }
            request = parse_request(encode_request(name, given_, 1.5).rstrip(b"\n"))
            self.assertEqual((request.command, request.seconds), (name, 1.5))

    def test_every_command_has_a_verb(self) -> None:
        """The table and the interface name the same commands and arguments."""
        self.assertEqual(set(COMMANDS), set(IControl.names()))
        for name, command in COMMANDS.items():
            takes = set(IControl[name].getSignatureInfo()["positional"])
            self.assertEqual(takes, set(command.arguments) - {"wait"}, name)

    def test_no_json(self) -> None:
        """What is no JSON object is refused, however it is built."""
        for line in (b"", b"status", b"\xff\xfe", b"[" * 60_000, b"[]", b"1", b'"status"', b"null"):
            self.assertEqual(self.refused(line).code, "bad-request", line[:20])

    def test_other_protocol(self) -> None:
        """Another version is refused by its number."""
        error = self.refused({"protocol": 2, "command": "status"})
        self.assertEqual(error.code, "unknown-protocol")
        self.assertIn("not 2", str(error))

    def test_unknown_command(self) -> None:
        """The unknown command is named, and those that are known."""
        names: tuple[Any, ...] = ("no-such", "__init__", None, ["status"], {})
        for name in names:
            error = self.refused({"command": name})
            self.assertEqual(error.code, "unknown-command")
            self.assertIn("restart", str(error))

    def test_arguments(self) -> None:
        """Arguments that are missing, unknown or of another type are named."""
        for command, arguments, word in (
            ("restart", {}, "listener"),
            ("restart", {"listener": 3}, "listener"),
            ("status", {"wait": True}, "wait"),
            ("reload", {"wait": 1}, "wait"),
            ("connections", {"limit": True}, "limit"),
            ("connections", {"limit": -1}, "limit"),
            ("connections", [], "object"),
        ):
            error = self.refused({"command": command, "arguments": arguments})
            self.assertEqual(error.code, "bad-argument")
            self.assertIn(word, str(error))

    def test_timeout(self) -> None:
        """A time limit is a number that makes sense."""
        for timeout in (0, -1, "5", True, 1e9, float("nan"), float("inf"), [1]):
            error = self.refused({"command": "status", "timeout": timeout})
            self.assertEqual(error.code, "bad-argument")

    def test_unknown_field(self) -> None:
        """A misspelt field is refused, not ignored."""
        self.assertIn("'argument'", str(self.refused({"command": "status", "argument": {}})))

    def test_bad_id(self) -> None:
        """An id is a number or a short text."""
        ids: tuple[Any, ...] = (True, 1.5, [], {}, "x" * 1000)
        for id_ in ids:
            self.assertEqual(self.refused({"id": id_, "command": "status"}).code, "bad-request")

    @examples()
    @given(st.dictionaries(st.sampled_from(["id", "command", "arguments", "timeout", "x"]), JSON))
    def test_anything(self, value: dict[str, Any]) -> None:
        """Any JSON object is a request or refused; nothing else is raised."""
        try:
            request = parse_request(json.dumps(value).encode())
        except CommandError as error:
            self.assertFalse(json.loads(encode_error(error))["ok"])
        else:
            self.assertIn(request.command, COMMANDS)


class AnswerTests(SynchronousTestCase):
    """What the service says."""

    def test_success(self) -> None:
        """An answer is one line with the version, the id and what the command returned."""
        line = encode(7, {"total": 3, "text": "a\nb\u2028"})
        self.assertEqual((line.count(b"\n"), line[-1:]), (1, b"\n"))
        self.assertEqual(
            json.loads(line),
            {"protocol": 1, "id": 7, "ok": True, "total": 3, "text": "a\nb\u2028"},
        )

    def test_error_keeps_the_id(self) -> None:
        """A request that was refused is answered under its own id."""
        error = self.assertRaises(CommandError, parse_request, b'{"id": 9, "command": "x"}')
        answer = json.loads(encode_error(error))
        self.assertEqual((answer["id"], answer["ok"]), (9, False))
        self.assertEqual(answer["error"]["code"], "unknown-command")
