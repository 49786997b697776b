"""The command ``kvtls``: steers a running ``twistd kvtls`` through its control socket.

Owns exit statuses and where text goes.  Imports no Twisted: a command that an
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
from kvproto.ops.command_line import COMPLETION, LOCAL, STATE_DIR, TOP, WAIT, make_parser
from kvproto.ops.commands import COMMANDS, CONTROL_SOCKET, PROTOCOL
from kvproto.ops.completion import completion
from kvproto.ops.layout import has_colours, width_of
from kvproto.ops.render import render

__all__ = ["FAILED", "NO_SERVICE", "OK", "USAGE", "main"]

OK, FAILED, USAGE, NO_SERVICE = 0, 1, 2, 3
"""Exit statuses: done; the service said no; no such command or option; no service answered."""

INTERRUPTED = 130

WAIT_SECONDS = 60.0
"""How long ``wait`` waits unless told."""

WAIT_PAUSE = 0.1
"""Seconds between two questions of ``wait``."""

STOP_SECONDS = 60.0
"""How long ``stop --wait`` waits unless told; draining has a deadline of its own."""


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
