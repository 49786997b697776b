"""Latency under load while the certificate rotates.

``python -m benchmarks.rotation [-n ROTATIONS]``: kvtls under 16 closed-loop connections, first
left alone, then with a new certificate put in place and reloaded again and again.  Prints the
load generator's own figures for both; a failed operation shows as ``errors``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.compare import build
from benchmarks.servers import start
from kvproto.testing.certificates import Authority

PAUSE = 0.5
"""Seconds between two rotations."""


def rotate(directory: Path, authority: Authority) -> None:
    """Put a new certificate in place and wait for the verdict."""
    identity = authority.issue("127.0.0.1", ["127.0.0.1", "localhost"])
    (directory / "chain.pem").write_bytes(identity.chain_pem)
    (directory / "key.pem").write_bytes(identity.key_pem)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "kvproto.cli",
            "--state-dir",
            str(directory / "state"),
            "reload",
            "--wait",
            "--allow-fewer-names",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rotations", type=int, default=20)
    rotations = parser.parse_args().rotations
    seconds = int(rotations * (PAUSE + 0.5)) + 2
    authority = Authority.root()
    with tempfile.TemporaryDirectory(prefix="kvtls-rotation-") as scratch:
        directory = Path(scratch)
        program = build(directory)
        with start("kvtls", directory) as server:
            if server is None:
                raise SystemExit("kvtls is not installed here")
            base = [str(program), "-p", str(server.port), "-c", "16"]
            subprocess.run([*base, "-m", "set", "-t", "1"], check=True, stdout=subprocess.DEVNULL)
            for name, times in (("alone", 0), ("rotating", rotations)):
                load = subprocess.Popen(
                    [*base, "-m", "mix", "-t", str(seconds)], stdout=subprocess.PIPE, text=True
                )
                time.sleep(1)
                for _ in range(times):
                    rotate(directory, authority)
                    time.sleep(PAUSE)
                output, _ = load.communicate(timeout=seconds + 60)
                print(f"{name}, {times} rotations: {output.strip()}", flush=True)


if __name__ == "__main__":
    main()
