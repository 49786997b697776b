"""Programs that the integration tests talk to, and what happens when one is absent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from unittest import SkipTest

__all__ = ["PEERS", "freeze", "require"]

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Debian puts daemons where a user's PATH often does not look."""


PEERS = os.environ.get("KVPROTO_PEERS", "found")
"""``found``: use what is installed, skip what is not.  ``required``: what is not is a failure, for
CI.  ``hidden``: as on a machine that has none."""


def require(program: str, package: str) -> str:
    """Return the path of a peer program.

    Args:
        program: Name of the executable.
        package: Debian's name for the package that brings it.

    Raises:
        SkipTest: It is absent, and CI did not say that it must be there.
    """
    path = None if PEERS == "hidden" else shutil.which(program, path=SEARCH_PATH)
    if path is not None:
        return path
    message = f"{program} is not installed: apt-get install {package}"
    if PEERS == "required":
        raise AssertionError(message)
    raise SkipTest(message)


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Stop a process in the middle of everything; once we return it does nothing any more."""
    process.send_signal(signal.SIGSTOP)
    # The signal alone stops it soon: until the last thread has seen it, it may still answer.
    os.waitpid(process.pid, os.WUNTRACED)
