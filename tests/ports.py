"""Ports for servers that are told where to listen, and for those that come back to where they were.

Most servers of our tests listen on port 0 and say what they got.  Where that cannot be (a port in
a configuration file, a peer that must know it before, a restart), a port that was only free a
moment ago is not enough: the kernel may give it to any connection in between.  These ports are
below the range that Linux (32768), macOS and Windows (49152) choose from, and another process of
the tests does not get one while we live.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

__all__ = ["free_port"]

FIRST, LAST = 10_240, 32_767

_taken: list[IO[bytes]] = []
"""Locked files, one a port; the kernel unlocks them when this process ends, however it does."""


def free_port(span: int = 0) -> int:
    """Return a port of 127.0.0.1 that is free, and stays so for whom it is given to.

    Args:
        span: The port that many above is wanted, too: a Redis cluster's bus listens there.
    """
    directory = Path(tempfile.gettempdir(), f"kvproto-tests-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    while True:
        port = random.randint(FIRST, LAST - span)
        wanted = [port, port + span] if span else [port]
        locks = [(directory / f"port-{one}").open("wb") for one in wanted]
        if all(map(_locked, locks)) and all(map(_unused, wanted)):
            _taken.extend(locks)
            return port
        for lock in locks:
            lock.close()


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unused(port: int) -> bool:
    with socket.socket() as probe:
        # What has just ended may leave connections that wait; a server does not mind them.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
