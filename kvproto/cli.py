"""The command ``kvtls``: steers a running ``twistd kvtls`` through its control socket.

Owns options, exit statuses and where text goes.  Imports no Twisted: a command that an
operator types has to answer at once.  ``kvtls passwd`` alone needs no service.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from kvproto.base.escape import printable
from kvproto.ops.client import NoServiceError, call, wait_until_gone
from kvproto.ops.commands import (
    COMMANDS,
    CONTROL_SOCKET,
    LONGEST_WAIT,
    PROTOCOL,
    TOP_LONGEST_MS,
    TOP_ORDERS,
)
from kvproto.ops.completion import SHELLS, completion
from kvproto.ops.layout import has_colours, width_of
from kvproto.ops.render import render

__all__ = ["FAILED", "NO_SERVICE", "OK", "USAGE", "main"]

OK, FAILED, USAGE, NO_SERVICE = 0, 1, 2, 3
"""Exit statuses: done; the service said no; no such command or option; no service answered."""

INTERRUPTED = 130

WAIT = "wait"
WAIT_HELP = "wait until clients are served"

WAIT_SECONDS = 60.0
"""How long ``wait`` waits unless told."""

WAIT_PAUSE = 0.1
"""Seconds between two questions of ``wait``."""

TOP = "top"

COMPLETION = "completion"
COMPLETION_HELP = "print what completes commands and options in bash, zsh or fish"

LOCAL = "passwd"
LOCAL_HELP = "add a user to a users file, or change its password"

STATE_DIR = Path("kvtls-state")
"""As `kvproto.config.Config.state_dir`; a test compares the two."""

STOP_SECONDS = 60.0
"""How long ``stop --wait`` waits unless told; draining has a deadline of its own."""

EPILOG = """\
Options may stand before or after the command.

exit status:
  0  done
  1  the service refused, or the command failed
  2  wrong usage
  3  no service answered
"""


def _seconds(text: str) -> float:
    """Read a time limit."""
    value = float(text)
    if not 0 < value <= LONGEST_WAIT:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    """Read a number of things."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _interval(text: str) -> float:
    """Read for how long ``top`` measures."""
    value = float(text)
    if not 0.1 <= value <= TOP_LONGEST_MS / 1000:
        raise ValueError(text)
    return value


_interval.__name__ = f"number of seconds from 0.1 to {TOP_LONGEST_MS // 1000}"
_seconds.__name__ = "number of seconds"
_count.__name__ = "whole number"


def _sentence(summary: str) -> str:
    """Return a summary as a command's own help begins."""
    return f"{summary[0].upper()}{summary[1:]}."


def _add_json(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    """Add ``--json``; arguments as for `_add_global_options`."""
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS if suppress else False,
        help="answer as one JSON object",
    )


def _add_global_options(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    """Add the options that may stand before or after the command.

    Args:
        parser: The main one, or that of a command.
        suppress: Whether to set nothing when an option is absent, so that what stood
            before the command is kept.
    """

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if suppress else value

    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=default(None),
        help=f"state directory of the service (default: {STATE_DIR})",
    )
    where.add_argument(
        "--control",
        metavar="PATH",
        type=Path,
        default=default(None),
        help=f"its control socket (default: {CONTROL_SOCKET} in the state directory)",
    )
    _add_json(parser, suppress=suppress)
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=default(None),
        help="how long the command may take",
    )


def _add_fault(parser: argparse.ArgumentParser) -> None:
    """Add what ``fault`` takes."""
    parser.add_argument(
        "kind",
        metavar="KIND",
        help="status, delay, disconnect, truncate or silence of requests; advance the clock; clear",
    )
    parser.add_argument("--operation", metavar="NAME", help="only these, e.g. get or mutate_in")
    parser.add_argument("--key", metavar="KEY", help="only requests for this key")
    parser.add_argument("--status", metavar="N", type=_count, help="for status: what is answered")
    parser.add_argument(
        "--milliseconds", metavar="N", type=_count, help="for delay and advance: how long"
    )
    parser.add_argument("--times", metavar="N", type=_count, help="how many requests (default: 1)")


def _add_top(parser: argparse.ArgumentParser) -> None:
    """Add what ``top`` takes."""
    parser.description = (
        "Show who moves most.  On a terminal until q is typed, and each order's first letter "
        "sorts; elsewhere once."
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_interval,
        default=2.0,
        help="how long is measured (default: 2)",
    )
    parser.add_argument(
        "--sort", choices=TOP_ORDERS, default=TOP_ORDERS[0], help="by what (default: traffic)"
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_count,
        help="how many connections at most, 0 for all (default: what fits, or 20)",
    )
    parser.add_argument("--listener", metavar="NAME", help="only of this listener")
    parser.add_argument(
        "--count",
        metavar="N",
        type=_count,
        help="print so often, one after the other, 0 without end; with --json one object a line",
    )


def make_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="kvtls",
        description="See and steer a running 'twistd kvtls'.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_global_options(parser, suppress=False)
    parser.add_argument("--version", action=_Version, help="print the version of kvproto and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            help=command.summary,
            description=_sentence(command.summary),
            allow_abbrev=False,
        )
        _add_global_options(parsers[name], suppress=True)
    for name in ("reload", "drain", "stop"):
        parsers[name].add_argument("--wait", action="store_true", help="wait until it is done")
    parsers["reload"].add_argument(
        "--allow-fewer-names",
        action="store_true",
        help="accept a certificate that lacks names of the one before",
    )
    parsers["restart"].add_argument("listener", metavar="LISTENER", help="its name, or all")
    parsers["connections"].add_argument("--listener", metavar="NAME", help="only of this listener")
    parsers["connections"].add_argument(
        "--limit", metavar="N", type=_count, help="how many at most, 0 for all (default: 1000)"
    )
    parsers["status"].add_argument(
        "--ready",
        action="store_true",
        help="only say whether clients are served: exit status 0 if so, else 1 and the reason",
    )
    parsers["flush"].add_argument("bucket", metavar="BUCKET", help="its name")
    for name in ("backup", "restore", "seed"):
        parsers[name].add_argument(
            "file", metavar="FILE", type=os.path.abspath, help="of the service's machine"
        )
    parsers["seed"].add_argument(
        "--create",
        action="store_true",
        help="create buckets, scopes and collections that are not there",
    )
    _add_fault(parsers["fault"])
    _add_top(parsers["top"])
    waiting = commands.add_parser(
        WAIT, help=WAIT_HELP, description=_sentence(WAIT_HELP), allow_abbrev=False
    )
    _add_global_options(waiting, suppress=True)
    completing = commands.add_parser(
        COMPLETION, help=COMPLETION_HELP, description=_sentence(COMPLETION_HELP), allow_abbrev=False
    )
    completing.add_argument("shell", metavar="SHELL", choices=SHELLS)
    local = commands.add_parser(LOCAL, help=LOCAL_HELP, allow_abbrev=False)
    _add_json(local, suppress=True)
    _add_local(local)
    return parser


def _add_local(parser: argparse.ArgumentParser) -> None:
    """Add what ``kvtls passwd`` takes; the password itself is no argument."""
    parser.description = f"{_sentence(LOCAL_HELP)}  The password is asked for, or read from stdin."
    parser.add_argument("--users", metavar="FILE", type=Path, required=True, help="the users file")
    parser.add_argument(
        "--bucket",
        metavar="BUCKET",
        action="append",
        help="bucket that the user may use (repeatable, the first where it selects none; "
        "default: as before, for a new user all)",
    )
    parser.add_argument("--iterations", metavar="N", type=_count, help="of PBKDF2 (default: 15000)")
    parser.add_argument("--delete", action="store_true", help="remove the user")
    parser.add_argument("name", metavar="NAME", help="the user")


class _Version(argparse.Action):
    """``--version``, which looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: Any) -> None:
        from kvproto import __version__

        print(f"kvproto {__version__}")
        parser.exit()


def _control_path(options: argparse.Namespace) -> Path:
    """Return where the control socket is."""
    if options.control is not None:
        return Path(options.control)
    return (options.state_dir or STATE_DIR) / CONTROL_SOCKET


def _ask(options: argparse.Namespace) -> dict[str, Any]:
    """Send the command and return the answer, waiting for the end of the process if asked to."""
    known = COMMANDS[options.command].arguments
    given = {
        name: value
        for name, value in vars(options).items()
        if name in known and value is not None and value is not False
    }
    timeout = options.timeout
    answer = call(_control_path(options), options.command, given, timeout)
    if options.command == "stop" and answer["ok"] and options.wait:
        answer["gone"] = wait_until_gone(answer["pid"], timeout or STOP_SECONDS)
        if not answer["gone"]:
            answer["ok"] = False
            answer["error"] = {
                "code": "timed-out",
                "message": f"process {answer['pid']} is still there; it may yet end",
            }
    return answer


def _wait_until_ready(options: argparse.Namespace) -> dict[str, Any]:
    """Ask for the status until clients are served, or the time is over."""
    deadline = time.monotonic() + (options.timeout or WAIT_SECONDS)
    answer: dict[str, Any] | NoServiceError
    while True:
        left = deadline - time.monotonic()
        try:
            answer = call(_control_path(options), "status", {}, max(1.0, left))
        except NoServiceError as error:
            answer = error
        if isinstance(answer, dict) and _not_ready(answer) is None:
            return answer
        if left <= WAIT_PAUSE:
            break
        time.sleep(WAIT_PAUSE)
    if isinstance(answer, NoServiceError):
        raise answer
    return answer


def _top(options: argparse.Namespace) -> tuple[dict[str, Any], int | None]:
    """Show who moves most.

    Returns:
        The last answer; and the exit status where it has been shown.
    """
    from kvproto.ops.top import LISTED, can_be_live, live, repeat

    def ask(seconds: float, sort: str, limit: int) -> dict[str, Any]:
        given = {"milliseconds": round(seconds * 1000), "sort": sort, "limit": limit}
        if options.listener is not None:
            given["listener"] = options.listener
        return call(_control_path(options), TOP, given, options.timeout)

    if options.count is None and not options.json and can_be_live():
        answer = live(ask, options.interval, options.sort, options.limit)
        return answer, OK if answer["ok"] else None
    limit = LISTED if options.limit is None else options.limit
    if options.count is None:
        return ask(options.interval, options.sort, limit), None

    def show(answer: dict[str, Any]) -> None:
        if options.json:
            text = json.dumps(answer) + "\n"
        else:
            text = _text(options, answer, sys.stdout) + "\n"
        _put(sys.stdout, text)

    try:
        answer = repeat(lambda: ask(options.interval, options.sort, limit), show, options.count)
    except OSError as error:
        return {}, OK if _unread(sys.stdout, error) else FAILED
    return answer, OK if answer["ok"] else None


def _not_ready(answer: dict[str, Any]) -> str | None:
    """Return why clients are not served, None when they are."""
    if not answer["ok"]:
        return str(answer["error"]["message"])
    service = answer["service"]
    return None if service["ready"] else str(service["reason"])


def _change_password(options: argparse.Namespace) -> dict[str, Any]:
    """Change a users file; the one command that works without a service."""
    from kvproto.errors import ConfigError
    from kvproto.passwd import change_password

    try:
        return {"protocol": PROTOCOL, "ok": True, **change_password(options)}
    except ConfigError as error:
        return _failure("failed", str(error))


def _failure(code: str, message: str) -> dict[str, Any]:
    """Return an answer that tells of a failure, as a service would."""
    return {"protocol": PROTOCOL, "ok": False, "error": {"code": code, "message": message}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; None: that of this process.

    Returns:
        The exit status.

    Raises:
        SystemExit: Wrong usage, ``--help`` or ``--version``.
    """
    parser = make_parser()
    try:
        options = parser.parse_args(arguments)
        if options.command == COMPLETION and options.json:
            parser.error(f"{COMPLETION} prints a script, which has no JSON")
        if getattr(options, "state_dir", None) and getattr(options, "control", None):
            # One before and one after the command: argparse sees no conflict.
            parser.error("argument --control: not allowed with argument --state-dir")
    except BrokenPipeError:
        _give_up(sys.stdout)
        return OK
    except SystemExit:
        _write(sys.stdout, "")
        raise
    if options.command == COMPLETION:
        return OK if _write(sys.stdout, completion(parser, options.shell)) else FAILED
    try:
        status, text, stream = _outcome(options)
    except (KeyboardInterrupt, EOFError):
        return INTERRUPTED
    return status if _write(stream, text) else FAILED


def _outcome(options: argparse.Namespace) -> tuple[int, str, TextIO]:
    """Carry a command out.

    Returns:
        The exit status, what is to be printed, and where to: text and JSON go to stdout,
        complaints in text to stderr.
    """
    reason = None
    try:
        if options.command == LOCAL:
            answer = _change_password(options)
        elif options.command == WAIT:
            answer = _wait_until_ready(options)
        elif options.command == TOP:
            answer, shown = _top(options)
            if shown is not None:
                return shown, "", sys.stdout
        else:
            answer = _ask(options)
        status = OK if answer["ok"] else FAILED
        asks_only = options.command == WAIT or getattr(options, "ready", False)
        if asks_only:
            reason = _not_ready(answer)
            status = OK if reason is None else FAILED
    except NoServiceError as error:
        answer, status, asks_only = _failure("no-service", str(error)), NO_SERVICE, False
    if options.json:
        return status, json.dumps(answer, indent=2) + "\n", sys.stdout
    if asks_only:
        text = "" if reason is None else f"kvtls: not ready: {printable(reason)}\n"
        return status, text, sys.stderr
    stream = sys.stdout if answer["ok"] else sys.stderr
    try:
        return status, _text(options, answer, stream), stream
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        message = (
            "the answer is not what this kvtls expects: use the kvtls that came with the service, "
            f"or --json ({type(error).__name__}: {printable(str(error))})"
        )
        return FAILED, render(options.command, _failure("failed", message)), sys.stderr


def _text(options: argparse.Namespace, answer: dict[str, Any], stream: TextIO) -> str:
    """Return an answer as people read it."""
    return render(options.command, answer, width_of(stream), colours=has_colours(stream))


def _put(stream: TextIO, text: str) -> None:
    """Print text, to the end."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    stream.write(text)
    stream.flush()


def _write(stream: TextIO | None, text: str) -> bool:
    """Print text, to the end.

    Returns:
        Whether that was possible, or nobody wanted it: a reader (head, less) that has seen
        enough is no fault.
    """
    if stream is None:
        return True  # it was closed before we began
    try:
        _put(stream, text)
    except OSError as error:
        return _unread(stream, error)
    return True


def _unread(stream: TextIO, error: OSError) -> bool:
    """Write nothing more to a stream; return whether its reader has just left."""
    _give_up(stream)
    if isinstance(error, BrokenPipeError):
        return True
    if stream is not sys.stderr:
        _write(sys.stderr, f"kvtls: the answer cannot be written: {error.strerror}\n")
    return False


def _give_up(stream: TextIO) -> None:
    """Keep Python from writing at exit what nobody takes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
