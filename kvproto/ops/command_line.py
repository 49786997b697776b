"""What the command ``kvtls`` takes: its commands, their options, and what ``--help`` says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvproto.ops.commands import (
    COMMANDS,
    CONTROL_SOCKET,
    LONGEST_WAIT,
    TOP_LONGEST_MS,
    TOP_ORDERS,
)
from kvproto.ops.completion import SHELLS

__all__ = ["COMPLETION", "LOCAL", "STATE_DIR", "TOP", "WAIT", "make_parser"]

WAIT = "wait"
WAIT_HELP = "wait until clients are served"

TOP = "top"

COMPLETION = "completion"
COMPLETION_HELP = "print what completes commands and options in bash, zsh or fish"

LOCAL = "passwd"
LOCAL_HELP = "add a user to a users file, or change its password"

STATE_DIR = Path("kvtls-state")
"""As `kvproto.config.Config.state_dir`; a test compares the two."""

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
