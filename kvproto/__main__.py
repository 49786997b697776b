"""``python -m kvproto OPTION…``: the service in the foreground, as ``twistd -n kvtls`` runs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Become ``twistd``, without a daemon and without a file for its process id."""
    from twisted.scripts.twistd import run

    sys.argv[:] = ["twistd", "--nodaemon", "--pidfile=", "kvtls", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
