"""What can be said over the control socket: one table for server, client and documentation.

A request is one line of JSON, its answer is one line of JSON::

    {"protocol": 1, "id": 7, "command": "restart", "arguments": {"listener": "all"}}
    {"protocol": 1, "id": 7, "ok": true, "listeners": [...]}

Owns the names, their arguments and the two encodings.  Knows no socket and no Twisted: the
command ``kvtls`` imports it, and has to start fast.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvproto.errors import CommandError

__all__ = [
    "COMMANDS",
    "CONTROL_SOCKET",
    "LONGEST_WAIT",
    "MAX_REQUEST",
    "PROTOCOL",
    "TOP_LONGEST_MS",
    "TOP_ORDERS",
    "Argument",
    "Command",
    "Request",
    "encode",
    "encode_error",
    "encode_pieces",
    "encode_request",
    "parse_request",
]

PROTOCOL = 1
"""Version of requests and answers.  New fields do not change it; readers skip what they do not
know."""

CONTROL_SOCKET = "control.sock"
"""Name of the socket in the state directory."""

MAX_REQUEST = 64 * 1024
"""Bytes of requests that may wait on one connection; the longest real one has about 100."""

LONGEST_WAIT = 3600.0
"""Seconds; the longest time limit that a request may ask for."""

CONNECTIONS_SHOWN = 1000
"""An answer with 10,000 connections has about 4 MB; who wants that asks for it."""

MAX_ID_LENGTH = 200

TOP_ORDERS = ("traffic", "in", "out", "total", "age")
"""By what ``top`` sorts: bytes a second in both directions or in one, bytes so far, age."""

TOP_LONGEST_MS = 60_000
"""Milliseconds that ``top`` measures at most."""

PIECE = 200
"""Members of a long list that are worked on without a pause: a millisecond or two."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command.

    Attributes:
        kind: Type of its JSON value; whole numbers must not be negative.
        default: Its value when it is not given.
        required: Whether it must be given.
    """

    kind: type[str] | type[bool] | type[int]
    default: str | bool | int | None = None
    required: bool = False

    def check(self, name: str, value: object) -> None:
        """Raise `CommandError` unless ``value`` can be used."""
        words = {str: "text", bool: "true or false", int: "a whole number, 0 or more"}
        # type(), not isinstance(): True is an int for Python, but not for an operator.
        if type(value) is not self.kind or (self.kind is int and value < 0):  # type: ignore[operator]
            raise CommandError("bad-argument", f"{name} must be {words[self.kind]}")


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        summary: What it does, for ``--help``.
        arguments: By name.
        seconds: How long it may take unless the request says otherwise.
        detachable: Whether it may go on after the answer (argument ``wait``).
    """

    summary: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    seconds: float = 10.0
    detachable: bool = False


_WAIT = Argument(bool, default=False)

COMMANDS: dict[str, Command] = {
    "status": Command("show the service, its certificate, listeners and limits"),
    "connections": Command(
        "list the connections, oldest first",
        {
            "listener": Argument(str),
            "limit": Argument(int, default=CONNECTIONS_SHOWN),
        },
    ),
    "top": Command(
        "show who moves most: connections by traffic, live on a terminal",
        {
            "milliseconds": Argument(int, default=1000),
            "sort": Argument(str, default="traffic"),
            "limit": Argument(int, default=20),
            "listener": Argument(str),
        },
        seconds=70.0,
    ),
    "reload": Command(
        "read credentials, users and configuration again; --wait for the verdict",
        {"wait": _WAIT, "allow_fewer_names": Argument(bool, default=False)},
        seconds=60.0,
        detachable=True,
    ),
    "rollback": Command("serve the credentials that were served before", seconds=60.0),
    "restart": Command(
        "restart a listener, or all; clients that connect meanwhile wait",
        {"listener": Argument(str, required=True)},
        seconds=60.0,
    ),
    "drain": Command(
        "take no new connections, end the others once their requests are answered",
        {"wait": _WAIT},
        seconds=120.0,
        detachable=True,
    ),
    "flush": Command(
        "remove every document of a bucket",
        {"bucket": Argument(str, required=True)},
        seconds=60.0,
    ),
    "backup": Command(
        "write every document into a file, while the service serves",
        {"file": Argument(str, required=True)},
        seconds=3600.0,
    ),
    "restore": Command(
        "store every document of a backup; others stay as they are",
        {"file": Argument(str, required=True)},
        seconds=3600.0,
    ),
    "seed": Command(
        "store the documents of a file, one a line in JSON",
        {"file": Argument(str, required=True), "create": Argument(bool, default=False)},
        seconds=3600.0,
    ),
    "fault": Command(
        "let requests fail, or time pass, for tests: a service with --faults",
        {
            "kind": Argument(str, required=True),
            "operation": Argument(str, default=""),
            "key": Argument(str),
            "status": Argument(int, default=0),
            "milliseconds": Argument(int, default=0),
            "times": Argument(int, default=1),
        },
    ),
    "address": Command("print HOST:PORT of the first listener"),
    "config": Command("show every option that is in force, and where its value comes from"),
    "stop": Command("drain, then end the process", seconds=10.0),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request that makes sense.

    Attributes:
        id: What the client calls it; None when it does not call it anything.
        command: A name in `COMMANDS`.
        arguments: Checked, defaults filled in, without ``wait``.
        wait: Whether the answer is to come when the work is done.
        seconds: How long it may take.
    """

    id: str | int | None
    command: str
    arguments: dict[str, Any]
    wait: bool
    seconds: float


class _Refused(CommandError):
    """A request that makes no sense, with its id as far as that could be read."""

    def __init__(self, id_: str | int | None, error: CommandError) -> None:
        super().__init__(error.code, error.reason)
        self.id = id_


def parse_request(line: bytes) -> Request:
    """Read one request.

    Args:
        line: Without its newline.

    Raises:
        CommandError: It is none; `encode_error` answers it.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise CommandError("bad-request", "a request is one line of JSON") from None
    if not isinstance(value, dict):
        raise CommandError("bad-request", "a request is a JSON object")
    id_ = value.get("id")
    if not (id_ is None or type(id_) is int or (isinstance(id_, str) and len(id_) < MAX_ID_LENGTH)):
        raise CommandError("bad-request", "id must be a whole number or a short text")
    try:
        return _checked(id_, value)
    except CommandError as error:
        raise _Refused(id_, error) from None


def _checked(id_: str | int | None, value: dict[str, Any]) -> Request:
    """Turn a JSON object into a request, or say what is wrong with it."""
    protocol = value.get("protocol", PROTOCOL)
    if protocol != PROTOCOL:
        raise CommandError(
            "unknown-protocol",
            f"this service speaks version {PROTOCOL} of the control protocol, not {protocol!r}"
            ": use the kvtls command that came with it",
        )
    unknown = sorted(set(value) - {"protocol", "id", "command", "arguments", "timeout"})
    if unknown:
        raise CommandError("bad-request", f"unknown field {unknown[0]!r} in the request")
    name = value.get("command")
    command = COMMANDS.get(name) if isinstance(name, str) else None
    if command is None:
        raise CommandError(
            "unknown-command", f"unknown command {name!r}: known are {', '.join(COMMANDS)}"
        )
    arguments = _checked_arguments(str(name), command, value.get("arguments", {}))
    wait = bool(arguments.pop("wait", True))
    return Request(id_, str(name), arguments, wait, _checked_timeout(command, value.get("timeout")))


def _checked_arguments(name: str, command: Command, given: object) -> dict[str, Any]:
    """Check arguments and fill in defaults."""
    if not isinstance(given, dict):
        raise CommandError("bad-argument", "arguments must be a JSON object")
    for key, value in given.items():
        if key not in command.arguments:
            raise CommandError("bad-argument", f"{name} takes no argument {key!r}")
        command.arguments[key].check(key, value)
    for key, argument in command.arguments.items():
        if argument.required and key not in given:
            raise CommandError("bad-argument", f"{name} needs the argument {key!r}")
    return {key: given.get(key, argument.default) for key, argument in command.arguments.items()}


def _checked_timeout(command: Command, given: object) -> float:
    """Return the time limit of a request, in seconds."""
    if given is None:
        return command.seconds
    if (
        isinstance(given, bool)
        or not isinstance(given, (int, float))
        or not 0 < given <= LONGEST_WAIT
    ):
        raise CommandError(
            "bad-argument", f"timeout must be a number of seconds, at most {LONGEST_WAIT:g}"
        )
    return float(given)


def encode_request(
    command: str, arguments: Mapping[str, Any], timeout: float | None = None
) -> bytes:
    """Return a request as a line of its own.

    Args:
        command: A name in `COMMANDS`.
        arguments: Its arguments, without those that keep their default.
        timeout: Seconds it may take; None: the command's usual limit.
    """
    value = {"protocol": PROTOCOL, "command": command, "arguments": dict(arguments)}
    if timeout is not None:
        value["timeout"] = timeout
    return json.dumps(value).encode("ascii") + b"\n"


def encode(id_: str | int | None, result: Mapping[str, Any]) -> bytes:
    """Return the answer to a request as a line of its own.

    Args:
        id_: What the client called the request.
        result: What the command returned.  It succeeded unless it says ``"ok": False``.

    Raises:
        TypeError, ValueError: There is something in it that JSON cannot say.
    """
    value: dict[str, Any] = {"protocol": PROTOCOL}
    if id_ is not None:
        value["id"] = id_
    value["ok"] = True
    value.update(result)
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def encode_pieces(id_: str | int | None, result: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield what `encode` returns, one long list in it a piece at a time.

    Raises:
        TypeError, ValueError: As `encode`; later pieces may raise them too.
    """
    long = next((k for k, v in result.items() if isinstance(v, list) and len(v) > PIECE), None)
    if long is None:
        yield encode(id_, result)
        return
    rows = result[long]
    rest = encode(id_, {name: value for name, value in result.items() if name != long})
    yield rest.removesuffix(b"}\n") + b",%b:[" % json.dumps(long).encode("ascii")
    for at in range(0, len(rows), PIECE):
        piece = json.dumps(rows[at : at + PIECE], allow_nan=False, separators=(",", ":"))
        yield (b"," if at else b"") + piece[1:-1].encode("ascii")
    yield b"]}\n"


def encode_error(error: CommandError, id_: str | int | None = None) -> bytes:
    """Return the answer to a request that failed, as a line of its own."""
    if isinstance(error, _Refused):
        id_ = error.id
    return encode(id_, {"ok": False, "error": {"code": error.code, "message": error.reason}})
