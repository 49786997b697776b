"""The other end of the control socket, for the command ``kvtls`` and for scripts in Python.

Blocking and bounded in time; knows no Twisted, because a command has to start fast.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvproto.errors import KVProtoError
from kvproto.ops.commands import COMMANDS, PROTOCOL, encode_request

__all__ = ["NoServiceError", "call", "wait_until_gone"]

MARGIN = 5.0
"""Seconds more than a command may take: the service says itself when that time is over."""

MAX_ANSWER = 256 * 1024 * 1024
"""Bytes; far above a list of 100,000 connections."""


class NoServiceError(KVProtoError):
    """No service answered: there is none, or it went away, or it hangs.

    Args:
        path: The control socket.
        reason: What happened and what to do about it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def call(
    path: Path, command: str, arguments: Mapping[str, Any], timeout: float | None = None
) -> dict[str, Any]:
    """Ask a running service for one command.

    Args:
        path: Its control socket.
        command: A name in `kvproto.ops.commands.COMMANDS`.
        arguments: As there.
        timeout: Seconds the command may take; None: its usual limit.

    Returns:
        The answer, errors included: see its ``ok``.

    Raises:
        NoServiceError: There was no answer.
    """
    deadline = time.monotonic() + (timeout or COMMANDS[command].seconds) + MARGIN
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(deadline - time.monotonic())
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            raise NoServiceError(path, _why_no_connection(path, error)) from error
        try:
            _send(connection, encode_request(command, arguments, timeout))
            line = _read_line(connection, deadline)
        except TimeoutError as error:
            raise NoServiceError(
                path,
                f"the service at {path} took the connection but did not answer: it hangs or is "
                "overloaded; its log may say more",
            ) from error
        except OSError as error:
            raise NoServiceError(path, f"the service at {path} hung up: {error}") from error
    return _parse(path, line)


def _send(connection: socket.socket, request: bytes) -> None:
    """Send a request; a service that hung up may have said why, so that is no error yet."""
    try:
        connection.sendall(request)
    except (BrokenPipeError, ConnectionResetError):
        return


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """Return what the service says up to the end of the line, or of the connection."""
    pieces: list[bytes] = []
    size = 0
    while size < MAX_ANSWER:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        piece = connection.recv(256 * 1024)
        pieces.append(piece)
        size += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return b"".join(pieces)


def _parse(path: Path, line: bytes) -> dict[str, Any]:
    """Turn an answer into a dict."""
    if not line:
        raise NoServiceError(
            path, f"the service at {path} hung up without an answer: it may be stopping"
        )
    if line.startswith(b'{"protocol":') and not line.endswith(b"\n"):
        raise NoServiceError(
            path, f"the service at {path} hung up in the middle of its answer: it may have ended"
        )
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or "ok" not in answer:
        raise NoServiceError(path, f"what listens at {path} is no kvtls service")
    if answer.get("protocol") != PROTOCOL:
        raise NoServiceError(
            path, f"the service at {path} is of another version: use the kvtls that came with it"
        )
    return answer


def _why_no_connection(path: Path, error: OSError) -> str:
    """Return why a control socket cannot be reached, and what to do."""
    start = "start one with 'twistd kvtls', or say with --state-dir where it keeps its state"
    if isinstance(error, FileNotFoundError):
        return f"no service runs here: there is no {path}; {start}"
    if isinstance(error, ConnectionRefusedError):
        return f"no service runs here: the one that made {path} is gone; {start}"
    if isinstance(error, PermissionError):
        return (
            f"not permitted to open {path}: "
            "run this as the user that the service runs as, or as root"
        )
    if isinstance(error, (TimeoutError, BlockingIOError)):
        return f"the service at {path} takes no connections: it hangs or is overloaded"
    return f"cannot connect to {path}: {error.strerror or error}; {start}"


def wait_until_gone(pid: int, timeout: float) -> bool:
    """Wait until a process has ended.

    Args:
        pid: Its id.
        timeout: Seconds to wait at most.

    Returns:
        Whether it has ended.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([descriptor], [], [], timeout)
        return bool(ready)
    finally:
        os.close(descriptor)
