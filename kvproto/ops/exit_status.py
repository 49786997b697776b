"""How the process ends, as whoever started it sees it.

``twistd`` ends with status 0 whenever the reactor was stopped, so a service that could not start
would look like one that was told to stop: systemd would not try again, a script would go on.
"""

from __future__ import annotations

import atexit
import os
import sys

__all__ = ["end_with_failure"]

FAILED = 1


def end_with_failure() -> None:
    """Let this process end with status 1, whatever its main program returns.

    It is the last thing that happens: what was registered with `atexit` before is left out.
    """
    atexit.register(_end)


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(FAILED)
