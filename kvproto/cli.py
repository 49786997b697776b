"""The command ``kvtls``: steers a running ``twistd kvtls`` through its control socket.

Owns options, exit statuses and where text goes.  Imports no Twisted: a command that an
operator types has to answer at once.  ``kvtls passwd`` alone needs no service.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvproto.base.escape import printable
from kvproto.ops.client import NoServiceError, call, wait_until_gone
from kvproto.ops.commands import COMMANDS, CONTROL_SOCKET, LONGEST_WAIT, PROTOCOL
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


_seconds.__name__ = "number of seconds"
_count.__name__ = "whole number"


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
    parser.add_argument(
        "--json", action="store_true", default=default(False), help="answer as one JSON object"
    )
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
            description=f"kvtls {name}: {command.summary}.",
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
    waiting = commands.add_parser(
        WAIT, help=WAIT_HELP, description=f"kvtls {WAIT}: {WAIT_HELP}.", allow_abbrev=False
    )
    _add_global_options(waiting, suppress=True)
    completing = commands.add_parser(
        COMPLETION, help=COMPLETION_HELP, description=f"{COMPLETION_HELP}.", allow_abbrev=False
    )
    completing.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "fish"])
    _add_local(commands.add_parser(LOCAL, help=LOCAL_HELP, allow_abbrev=False))
    return parser


def _options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of a parser."""
    return sorted(
        name
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    )


def _completion(shell: str) -> str:
    """Return a script that completes commands and options in a shell, made of the parsers."""
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    options = {name: _options_of(sub) for name, sub in commands.choices.items()}
    common = _options_of(parser)
    if shell == "fish":
        lines = [
            f"complete -c kvtls -f -n __fish_use_subcommand -a {name} -d {shlex.quote(text)}"
            for name, text in helps.items()
        ]
        lines += [
            f"complete -c kvtls -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
            for name, found in options.items()
            for option in found
        ]
        return "\n".join(lines) + "\n"
    cases = "".join(
        f"        {name}) words={shlex.quote(' '.join(found))} ;;\n"
        for name, found in options.items()
    )
    script = (
        "_kvtls() {\n"
        f"    local words={shlex.quote(' '.join([*options, *common]))} word\n"
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do\n'
        '        case "$word" in\n'
        f"{cases}"
        "        esac\n"
        "    done\n"
        '    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))\n'
        "}\n"
        "complete -o default -F _kvtls kvtls\n"
    )
    if shell == "zsh":
        return f"autoload -U +X compinit bashcompinit\ncompinit\nbashcompinit\n{script}"
    return script


def _add_local(parser: argparse.ArgumentParser) -> None:
    """Add what ``kvtls passwd`` takes; the password itself is no argument."""
    parser.description = (
        f"kvtls {LOCAL}: {LOCAL_HELP}.  The password is asked for, or read from stdin."
    )
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


def _not_ready(answer: dict[str, Any]) -> str | None:
    """Return why clients are not served, None when they are."""
    if not answer["ok"]:
        return str(answer["error"]["message"])
    service = answer["service"]
    return None if service["ready"] else str(service["reason"])


def _change_password(options: argparse.Namespace) -> int:
    """Change a users file; the one command that works without a service."""
    from kvproto.errors import ConfigError
    from kvproto.passwd import change_password

    try:
        sys.stdout.write(change_password(options))
    except ConfigError as error:
        sys.stderr.write(f"kvtls: {error}\n")
        return FAILED
    except (KeyboardInterrupt, EOFError):
        return INTERRUPTED
    return OK


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
    options = parser.parse_args(arguments)
    if options.command == LOCAL:
        return _change_password(options)
    if options.command == COMPLETION:
        sys.stdout.write(_completion(options.shell))
        return OK
    if options.state_dir is not None and options.control is not None:
        # One before and one after the command: argparse sees no conflict.
        parser.error("argument --control: not allowed with argument --state-dir")
    try:
        answer = _wait_until_ready(options) if options.command == WAIT else _ask(options)
        status = OK if answer["ok"] else FAILED
        if options.command == WAIT or getattr(options, "ready", False):
            reason = _not_ready(answer)
            status = OK if reason is None else FAILED
            if not options.json:
                if reason is not None:
                    sys.stderr.write(f"kvtls: not ready: {printable(reason)}\n")
                return status
    except NoServiceError as error:
        answer = {
            "protocol": PROTOCOL,
            "ok": False,
            "error": {"code": "no-service", "message": str(error)},
        }
        status = NO_SERVICE
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        _show(options, answer)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _show(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Print an answer: text and JSON to stdout, complaints in text to stderr."""
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        stream = sys.stdout if answer["ok"] else sys.stderr
        stream.write(render(options.command, answer))


if __name__ == "__main__":
    sys.exit(main())
