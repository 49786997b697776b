"""``twistd kvtls`` that ends with its parent: ``python -m kvproto.testing.child OPTION…``.

The parent holds the other end of standard input.  When that closes, because the parent closed it
or is gone in whatever way, this process gets the SIGTERM that an operator would send; should it
not have ended soon after, it is killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from kvproto.__main__ import main as serve

__all__: list[str] = []

GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL."""


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Watch the parent and become the service."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve()


if __name__ == "__main__":
    main()
