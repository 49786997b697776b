"""stunnel as the TLS client of tools that speak no TLS."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.integration.peers import require
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.ports import free_port

__all__ = ["Stunnel"]

START_SECONDS = 10


class Stunnel:
    """Listens in the clear on ``port`` and connects to a service over verified TLS."""

    def __init__(self, service: KvtlsProcess) -> None:
        program = require("stunnel", "stunnel4")
        host, target = service.addresses[0]
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="kvtls-stunnel-")
        configuration = Path(self._directory.name) / "stunnel.conf"
        configuration.write_text(
            "foreground = yes\npid =\nsyslog = no\ndebug = 4\n[kv]\nclient = yes\n"
            f"accept = 127.0.0.1:{self.port}\nconnect = {host}:{target}\n"
            f"CAfile = {service.ca_path}\nverifyChain = yes\ncheckIP = {host}\n",
            encoding="ascii",
        )
        self._log = (Path(self._directory.name) / "log").open("w+b")
        self._process = subprocess.Popen(
            [program, str(configuration)], stdout=self._log, stderr=self._log
        )

    def __enter__(self) -> Stunnel:
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        self.__exit__(None, None, None)
        raise AssertionError("stunnel did not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._log.close()
        self._directory.cleanup()
