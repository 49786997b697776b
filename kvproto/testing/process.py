"""`KVTLSProcess`: a real service for the tests of programs that are its clients.

It listens on a free port of 127.0.0.1, has a directory, a CA and a user of its own, is ready when
the context manager is entered, and ends with the process that started it, whatever happens to
that.  It knows no test framework; `kvproto.testing.pytest_plugin` has the fixtures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from kvproto.errors import KVProtoError
from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from kvproto.testing.certificates import Authority

__all__ = ["KVTLSProcess", "ProcessError"]

START_SECONDS = 60.0
"""How long a start may take on a very busy machine; on a quiet one it takes less than a second."""

STOP_SECONDS = 15.0

LINES_KEPT = 1000
"""Lines of the service's log that are kept for error messages and `KVTLSProcess.log`."""

READY = "kvtls ready on "


class ProcessError(KVProtoError):
    """The service did not do what it was asked for.

    Args:
        what: What went wrong.
        log: The end of its log.
    """

    def __init__(self, what: str, log: str = "") -> None:
        super().__init__(what, log)
        self.what = what
        self.log = log

    def __str__(self) -> str:
        return f"{self.what}\n{self.log}" if self.log else self.what


class KVTLSProcess:
    """``twistd kvtls`` in a process of its own; a context manager.

    Clients log in with `username` and `password`, or, as memcached's clients do, not at all.

    Args:
        options: Further options of ``twistd kvtls``, e.g. ``"--bucket", "default", "--bucket",
            "sessions"``.  See ``twistd kvtls --help``.
        username: Who may log in.
        password: With what.
        start_timeout: Seconds until readiness, after which the start has failed.
        seed: JSON lines file whose documents are there from the start, and again after each
            `reset`; buckets and collections that it needs are created.
        restore: The same with a backup.

    Attributes:
        host: ``"127.0.0.1"``.
        port: TCP port; known while it runs.
        plain_port: TCP port of the first ``--plain``, 0 without one.
        management_port: TCP port of ``--management``, 0 without it.
        ca_file: PEM file of the CA that its certificate comes from.
        bucket: Name of the first bucket.
        directory: Where its files are.

    Raises:
        ProcessError: It did not start; with its log.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *options: str,
        username: str = "tester",
        password: str = "password",  # noqa: S107 - of a service that only tests can reach
        start_timeout: float = START_SECONDS,
        seed: str | os.PathLike[str] | None = None,
        restore: str | os.PathLike[str] | None = None,
    ) -> None:
        self.username = username
        self.password = password
        self.port = self.plain_port = self.management_port = 0
        self._seed = seed
        self._restore = restore
        self.bucket = _first_bucket(options)
        self._options = options
        # Engines have clocks of their own.
        self._faults = "--store" not in options
        self._start_timeout = start_timeout
        self._authority = Authority.root("kvtls test CA")
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._seen = threading.Condition()
        self._ready = ""
        self._silent = False
        self._process: subprocess.Popen[str] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    # life

    def start(self) -> KVTLSProcess:
        """Start it and wait until it serves."""
        self._scratch = tempfile.TemporaryDirectory(prefix="kvtls-")
        self._ready, self._silent = "", False
        try:
            self._write_credentials()
            self._spawn()
            self._wait_until_ready()
            self._fill()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it and remove its directory; may be called again."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._reader.join()
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            scratch.cleanup()

    def __enter__(self) -> KVTLSProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """Where its files are, while it runs."""
        if self._scratch is None:
            raise ProcessError("the service does not run")
        return Path(self._scratch.name)

    @property
    def ca_file(self) -> str:
        """Path of the CA's PEM file."""
        return str(self.directory / "ca.pem")

    @property
    def connection_string(self) -> str:
        """Where the Couchbase SDK connects to."""
        return f"couchbases://{self.host}:{self.port}"

    @property
    def plain_connection_string(self) -> str:
        """Where the Couchbase SDK connects to without TLS; needs the option ``--plain``."""
        if not self.plain_port:
            raise ProcessError("give the options --plain tcp:0:interface=127.0.0.1 for this")
        return f"couchbase://{self.host}:{self.plain_port}"

    @property
    def management_url(self) -> str:
        """Where the management REST is; needs the option ``--management``."""
        if not self.management_port:
            raise ProcessError("give the options --management tcp:0 for this")
        return f"https://{self.host}:{self.management_port}"

    @property
    def log(self) -> str:
        """The end of its log."""
        with self._seen:
            return "".join(self._lines)

    # what tests ask of it

    def flush(self, bucket: str | None = None) -> None:
        """Remove every document.

        Args:
            bucket: From one bucket; None: from all.
        """
        # What a test has created is emptied as well.
        names = [bucket] if bucket is not None else self._buckets()
        for name in names:
            self.command("flush", bucket=name)

    def reset(self) -> None:
        """Be as at the start, for the next test: no documents but the first ones, no fault to come.

        What was created over the management REST stays; its documents go.
        """
        self.flush()
        if self._faults:
            self.command("fault", kind="clear")
        self._fill()

    def seed(self, file: str | os.PathLike[str], *, create: bool = True) -> int:
        """Store the documents of a JSON lines file; return how many.

        Args:
            file: See the reference page "Seeds".
            create: Whether buckets and collections that are not there are created.

        Raises:
            ProcessError: A line cannot be used; it names file and line.
        """
        stored = self.command("seed", file=os.path.abspath(file), create=create)["documents"]
        return int(stored)

    def backup(self, file: str | os.PathLike[str]) -> int:
        """Write every document into a file; return how many."""
        return int(self.command("backup", file=os.path.abspath(file))["documents"])

    def restore(self, file: str | os.PathLike[str]) -> int:
        """Store every document of a backup; return how many."""
        return int(self.command("restore", file=os.path.abspath(file))["documents"])

    def _fill(self) -> None:
        if self._restore is not None:
            self.restore(self._restore)
        if self._seed is not None:
            self.seed(self._seed)

    def fail(
        self, operation: str, status: int, times: int = 1, key: str | bytes | None = None
    ) -> None:
        """Answer the next requests of a kind with a status, without carrying them out.

        Args:
            operation: ``get``, ``set``, ``replace``, ``mutate_in``, …; ``""``: any with a key.
            status: Of the KV protocol, e.g. 0x86 (temporary failure).
            times: How many requests.
            key: Only those for this key.
        """
        self._fault("status", operation, times, key, status=status)

    def delay(
        self, operation: str, seconds: float, times: int = 1, key: str | bytes | None = None
    ) -> None:
        """Carry the next requests of a kind out later; arguments as for `fail`."""
        self._fault("delay", operation, times, key, milliseconds=round(seconds * 1000))

    def disconnect(self, times: int = 1, operation: str = "") -> None:
        """Close the connection of the next requests, without carrying them out."""
        self._fault("disconnect", operation, times)

    def truncate(self, times: int = 1, operation: str = "") -> None:
        """Carry the next requests out, and close in the middle of their answers."""
        self._fault("truncate", operation, times)

    def silence(self, times: int = 1, operation: str = "") -> None:
        """Never answer the next requests, nor what follows on their connections."""
        self._fault("silence", operation, times)

    def advance(self, seconds: float) -> None:
        """Let so much time have passed, for expiry, locks and certificates."""
        self.command("fault", kind="advance", milliseconds=round(seconds * 1000))

    def _fault(
        self, kind: str, operation: str, times: int, key: str | bytes | None = None, **more: int
    ) -> None:
        arguments: dict[str, Any] = {"kind": kind, "operation": operation, "times": times, **more}
        if key is not None:
            arguments["key"] = (
                key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key
            )
        self.command("fault", **arguments)

    def rotate(self) -> None:
        """Serve a new certificate of the same CA, as at a renewal; connections stay."""
        self._write_identity()
        self.command("reload", wait=True)

    def command(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask for a command of ``kvtls``, e.g. ``status``.

        Returns:
            Its answer, as ``--json`` prints it.

        Raises:
            ProcessError: It was refused; or the service is gone.
        """
        try:
            answer = call(self.directory / "state" / CONTROL_SOCKET, command, arguments)
        except KVProtoError as error:
            raise ProcessError(str(error), self.log) from error
        if not answer.get("ok"):
            reason = answer.get("error", answer)
            raise ProcessError(f"{command}: {_reason(reason)}", self.log)
        return answer

    # inside

    def _buckets(self) -> list[str]:
        return [row["name"] for row in self.command("status")["buckets"]]

    def _write_credentials(self) -> None:
        (self.directory / "ca.pem").write_bytes(self._authority.certificate_pem)
        self._write_identity()

    def _write_identity(self) -> None:
        """Put chain and key where the service reads them, in one file, replaced at once."""
        identity = self._authority.issue("localhost", ("localhost", self.host))
        target = self.directory / "server.pem"
        aside = self.directory / "server.pem.new"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(identity.chain_pem + identity.key_pem)
        aside.replace(target)

    def _spawn(self) -> None:
        directory = self.directory
        command = [
            *[sys.executable, "-m", "kvproto.testing.child"],
            *["--listen", f"tcp:0:interface={self.host}"],
            *["--certificate", str(directory / "server.pem"), "--watch-interval", "0"],
            *["--state-dir", str(directory / "state")],
            *["--user", f"{self.username}:{self.password}", "--anonymous", "--allow-flush"],
            # Its end waits for nobody: the tests that were its clients are over.
            *["--drain-timeout", "0.5", "--close-timeout", "0.5"],
            *(["--faults"] if self._faults else []),
            *self._options,
        ]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            # The process runs in the caller's directory, so that relative paths mean what they do
            # there; and it must not be ended by a Ctrl-C that is meant for the tests.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._seen:
                    self._lines.append(line)
                    if not self._ready and READY in line:
                        self._ready = line
                    self._seen.notify_all()
        with self._seen:
            self._silent = True
            self._seen.notify_all()

    def _wait_until_ready(self) -> None:
        with self._seen:
            self._seen.wait_for(lambda: self._ready or self._silent, self._start_timeout)
        if not self._ready:
            ended = self._silent
            what = "ended" if ended else f"was not ready within {self._start_timeout:g} s"
            raise ProcessError(f"the service {what}", self.log)
        found = self.command("address")
        self.port = int(found["address"].rpartition(":")[2])
        self.plain_port = next(iter(found["ports"]["plain"]), 0)
        self.management_port = found["ports"]["management"]


def _first_bucket(options: tuple[str, ...]) -> str:
    for option, value in pairwise(options):
        if option in {"--bucket", "-b"}:
            return value
    return "default"


def _reason(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("reason") or error.get("message") or error)
    return str(error)
