"""Tests that run the Couchbase SDK where it can do no harm: in a child process.

The SDK is C++ and ends its process when it reads what it does not expect.  So each test's body
runs in a child (`tests.integration.sdk_child`), which has the service as a child of its own; a
child that dies is one failed test, and the next test gets a new one.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest, TestResult

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import call
from tests.integration.service import PATIENCE, KvtlsProcess

__all__ = ["ROOT", "SKIPPED", "SDKTestCase"]

ROOT = Path(__file__).resolve().parents[2]

SKIPPED = "skipped: "
"""Begins what the child says of a test that a missing peer skips."""

TEST_SECONDS = 4 * PATIENCE
"""Far above the slowest test; a test that hangs takes its child with it."""


class _Child:
    """The process that the tests' bodies run in, started when the first of them does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as we do

    def run(self, test: str) -> str:
        """Run one test; return what is wrong, ``""`` when nothing is."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(test.encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], TEST_SECONDS)
        line = process.stdout.readline() if ready else b""
        if line:
            fault: str = json.loads(line)
            return fault
        self.close(kill=True)
        self._noise.seek(0)
        noise = self._noise.read()[-10_000:].decode(errors="replace")
        how = f"ended with status {process.returncode}" if ready else "did not end"
        return f"the process with the SDK {how}:\n{noise}"

    def _start(self) -> subprocess.Popen[bytes]:
        self._noise.seek(0)
        self._noise.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.sdk_child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            # A group of its own: what it leaves behind when it crashes can be ended by the group.
            start_new_session=True,
        )
        return self._process

    def close(self, *, kill: bool = False) -> None:
        """End the child and whatever it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0 if kill else PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        process.stdout.close()


_child = _Child()
atexit.register(_child.close)


class SDKTestCase(SynchronousTestCase):
    """A test whose methods run in the child, with a service for the whole class.

    Attributes:
        options: Of ``kvtls``, for the service; None for tests that start their own.
        service: It, in the child.
        cluster: The SDK's connection to it, logged in as alice, made when first asked for.
    """

    here: ClassVar[bool] = False
    """Whether this process is the child."""

    options: ClassVar[tuple[str, ...] | None] = ("--user", "alice:secret")
    service: ClassVar[KvtlsProcess]
    _cluster: ClassVar[Any] = None

    def run(self, result: TestResult | None = None) -> TestResult | None:
        """Run the test; outside the child, by letting the child run it."""
        method = self._testMethodName
        if not SDKTestCase.here:
            setattr(self, method, partial(self._elsewhere, method))
        super().run(result)
        return result

    def _elsewhere(self, method: str) -> None:
        kind = type(self)
        fault = _child.run(f"{kind.__module__} {kind.__qualname__} {method}")
        if fault.startswith(SKIPPED):
            raise SkipTest(fault.removeprefix(SKIPPED))
        if fault:
            self.fail(fault)

    # what follows runs in the child

    def tearDown(self) -> None:
        """Whatever the client has seen, the service must not have stumbled."""
        service = getattr(type(self), "service", None)
        if SDKTestCase.here and service is not None:
            self.assertNotIn("Traceback", service.output)

    @classmethod
    def start(cls) -> None:
        """Start the service; before the first test of the class."""
        if cls.options is not None:
            cls.service = KvtlsProcess(*cls.options)

    @classmethod
    def stop(cls) -> None:
        """Stop the service; after the last test of the class."""
        if cls._cluster is not None:
            cls._cluster.close()
            cls._cluster = None
        if cls.options is not None:
            cls.service.__exit__(None, None, None)

    @property
    def cluster(self) -> Any:
        """The SDK's connection to the class's service."""
        cls = type(self)
        if cls._cluster is None:
            cls._cluster = connect(cls.service)
        return cls._cluster

    @property
    def collection(self) -> Any:
        """The default collection of the bucket ``default``."""
        return self.cluster.bucket("default").default_collection()

    def key(self, name: str = "") -> str:
        """Return a key that no other test uses."""
        return f"{self._testMethodName}{name}"

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that others do in their own time."""
        end = time.monotonic() + PATIENCE
        while not happened():
            self.assertLess(time.monotonic(), end, "it has not happened")
            time.sleep(0.02)


def connect(
    service: KvtlsProcess,
    name: str = "alice",
    password: str = "secret",
    *,
    ca: Path | None = None,
    port: int = 0,
    mechanisms: list[str] | None = None,
    timeouts: Any = None,
) -> Any:
    """Return the SDK's connection to a service, its certificate verified.

    Args:
        service: Where to.
        name: The user.
        password: The user's.
        ca: Trust anchors; the service's development CA when None.
        port: Which of its ports; the first when 0.
        mechanisms: SASL mechanisms that the SDK may use; its default when None.
        timeouts: The SDK's ``ClusterTimeoutOptions``; `long_timeouts` when None.
    """
    from couchbase.auth import PasswordAuthenticator
    from couchbase.options import ClusterOptions

    authenticator = PasswordAuthenticator(
        name, password, cert_path=str(ca or service.ca_path), allowed_sasl_mechanisms=mechanisms
    )
    return _open(
        service, port, ClusterOptions(authenticator, timeout_options=timeouts or long_timeouts())
    )


def connect_with_certificate(
    service: KvtlsProcess, certificate: Path, private_key: Path, *, timeouts: Any = None
) -> Any:
    """Return the SDK's connection to a service, logged in by nothing but a certificate."""
    from couchbase.auth import CertificateAuthenticator
    from couchbase.options import ClusterOptions

    authenticator = CertificateAuthenticator(
        cert_path=str(certificate),
        key_path=str(private_key),
        trust_store_path=str(service.ca_path),
    )
    return _open(
        service, 0, ClusterOptions(authenticator, timeout_options=timeouts or long_timeouts())
    )


def _open(service: KvtlsProcess, port: int, options: Any) -> Any:
    from couchbase.cluster import Cluster

    return Cluster(f"couchbases://127.0.0.1:{port or service.port}", options)


def long_timeouts() -> Any:
    """Return timeouts that say nothing of speed; the SDK's own are 2.5 s."""
    return short_timeouts(PATIENCE)


def short_timeouts(seconds: float = 1.5) -> Any:
    """Return timeouts for logins that must fail."""
    from couchbase.options import ClusterTimeoutOptions

    limit = timedelta(seconds=seconds)
    return ClusterTimeoutOptions(
        bootstrap_timeout=limit, connect_timeout=limit, resolve_timeout=limit, kv_timeout=limit
    )


def steer(service: KvtlsProcess, command: str, **arguments: object) -> dict[str, Any]:
    """Do as ``kvtls COMMAND`` does."""
    return call(service.state_dir / "control.sock", command, arguments, PATIENCE)


@contextmanager
def closing(cluster: Any) -> Iterator[Any]:
    """Close the SDK's connection at the end."""
    try:
        yield cluster
    finally:
        cluster.close()
