"""Services that are forked from a process which has imported all of theirs.

Most of what a start costs is importing, the same each time, and the tests start hundreds.  What is
forked has read nothing, opened nothing and made no reactor: from its command line on, each does
what a new process would.  It becomes a child of the tests, so that they see its exit status.

Where it matters that a process is new (its environment differs, another program runs it), where
the system is not Linux or lacks what this needs of it, and in CI's thorough run, each is started
anew.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.examples import THOROUGH

__all__ = ["POSSIBLE", "Forked", "fork_kvtls"]

PARENT = """
import gc, json, os, socket, sys
from kvproto.openssl import load_openssl
load_openssl()
import kvproto.service, kvproto.tap, twisted.internet.epollreactor
from twisted.scripts.twistd import run
gc.freeze()
channel = socket.socket(fileno=int(sys.argv.pop()))
while True:
    request, files, _, _ = socket.recv_fds(channel, 1 << 20, 2)
    if not request:
        sys.exit()
    named, name = os.pipe()
    # Who is forked by one that ends becomes a child of who asked.
    if between := os.fork():
        os.waitpid(between, 0)
        channel.send(os.read(named, 20))
        for number in (*files, named, name):
            os.close(number)
    elif child := os.fork():
        os.write(name, b"%d" % child)
        os._exit(0)
    else:
        break
channel.close()
for standard, number in enumerate(files, 1):
    os.dup2(number, standard)
for number in (*files, named, name):
    os.close(number)
directory, *sys.argv[1:] = json.loads(request)
os.chdir(directory)
run()
"""

_PR_SET_CHILD_SUBREAPER = 36


def _adopt(yes: bool) -> bool:
    """Say whether children of our children that lose their parent become ours."""
    return not ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def _is_possible() -> bool:
    """Return whether the system has what forking needs; sandboxes may lack some of it."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return _adopt(False)


POSSIBLE = _is_possible()


class Forked:
    """What `subprocess.Popen` is for a command.

    Args:
        pid: Of a child of ours.
        stdout: What it writes, where somebody reads it.
    """

    def __init__(self, pid: int, stdout: IO[str] | None = None) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, or minus the signal that has ended it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        if self.poll() is None:
            process = os.pidfd_open(self.pid)
            try:
                ended = select.poll()
                ended.register(process, select.POLLIN)
                ended.poll(None if timeout is None else timeout * 1000)
            finally:
                os.close(process)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("twistd", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The process that is forked; it ends when we do."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdout=subprocess.DEVNULL,
            )

    def fork(self, directory: Path, words: Sequence[str], stdout: int, stderr: int) -> int:
        """Start one; return its process id."""
        request = json.dumps([str(directory), *words]).encode()
        _adopt(True)
        try:
            socket.send_fds(self._channel, [request], [stdout, stderr])
            child = self._channel.recv(20)
        finally:
            _adopt(False)
        assert child, "the process that services are forked from has ended: it says why above"
        return int(child)


_parents: list[_Parent] = []
"""None, or the one."""


def fork_kvtls(directory: Path, words: Sequence[str], stdout: int, stderr: int) -> int | None:
    """Run twistd.

    Args:
        directory: Its working directory.
        words: Its arguments.
        stdout: File descriptor that it writes to.
        stderr: The same, for what it writes there.

    Returns:
        Its process id; None where it has to be a new process.
    """
    if THOROUGH or not POSSIBLE:
        return None
    if not _parents:
        _parents.append(_Parent())
    [parent] = _parents
    if parent.environment != os.environ:
        return None
    return parent.fork(directory, words, stdout, stderr)
