"""Run the README's start command as printed and talk to what it starts.

``python3 tests/readme_serves.py FILE``: FILE holds the command.  Installs as
the command says, so it is for CI, not for the test suite.  Ends by itself.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

INSTALL_SECONDS = 300
NOOP = bytes([0x80, 0x0A]) + bytes(22)


def main(path: str) -> None:
    """Start, wait for readiness, ask for a NOOP with verification on, stop."""
    text = Path(path).read_text(encoding="utf-8")
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text], stdout=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(INSTALL_SECONDS, process.kill)
    watchdog.start()
    started = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
            if started is None and "starting up" in line:
                started = time.monotonic()
            if "kvtls ready" in line:
                break
        else:
            raise SystemExit("the command ended before the service was ready")
        assert started is not None
        took = time.monotonic() - started
        context = ssl.create_default_context(cafile="kvtls-state/development/ca.pem")
        with (
            socket.create_connection(("127.0.0.1", 11207), 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.sendall(NOOP)
            answer = secured.recv(24)
        assert answer[:2] == bytes([0x81, 0x0A]), answer
        print(f"answered, ready {took:.2f} s after start")
    finally:
        watchdog.cancel()
        subprocess.run(["pkill", "-TERM", "-P", str(process.pid)], check=False)
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main(sys.argv[1])
