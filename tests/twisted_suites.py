"""Twisted's own TLS tests, run with kvproto's classes in place of Twisted's.

``python -m tests.twisted_suites`` runs Twisted's eight TLS test modules twice, each time
in a process of its own: as they are, and with `KVTLSProtocol` and `KVTLSFactory` under the
names of Twisted's classes.  A test that passes on stock and not on ours is *lost*; the exit
status is 1 when a test is lost that is not among `EXPECTED`, each with its reason.

Needs hypothesis and PyHamcrest, as Twisted's tests do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

MODULES = (
    "twisted.protocols.test.test_tls",
    "twisted.test.test_ssl",
    "twisted.test.test_sslverify",
    "twisted.internet.test.test_tls",
    "twisted.internet.test.test_newtls",
    "twisted.internet.test.test_endpoints",
    "twisted.web.test.test_agent",
    "twisted.test.test_policies",
)

EXPECTED: dict[str, str] = (
    {}
    if not version("Twisted").startswith("24.")
    else {
        "twisted.protocols.test.test_tls.TLSMemoryBIOTests.test_writeUnicodeRaisesTypeError": (
            "it counts two errors: stock fails once more when it flushes the text; we do not"
        )
    }
)
"""Tests that are lost on purpose: id and reason."""

TIME_LIMIT = 300
"""Seconds for one run; it takes about 25."""


def substitute() -> None:
    """Put our classes under Twisted's names, wherever Twisted has imported them."""
    from twisted.internet import _newtls, endpoints
    from twisted.protocols import tls

    from kvproto.tls import KVTLSFactory, KVTLSProtocol

    # Twisted's tests leave handshakes unfinished on the real reactor.
    KVTLSProtocol.handshake_timeout = None
    KVTLSProtocol.close_timeout = None
    modules = [tls, _newtls, endpoints]
    try:
        from twisted.protocols import _sni
    except ImportError:  # older Twisted has no SNI endpoint
        pass
    else:
        modules.append(_sni)
    for module in modules:
        for name in ("TLSMemoryBIOProtocol", "BufferingTLSTransport"):
            if hasattr(module, name):
                setattr(module, name, KVTLSProtocol)
        if hasattr(module, "TLSMemoryBIOFactory"):
            setattr(module, "TLSMemoryBIOFactory", KVTLSFactory)  # noqa: B010


def run_here(ours: bool, result: Path) -> None:
    """Run the modules in this process and write the ids of the tests by outcome."""
    if ours:
        substitute()
    from twisted.trial.reporter import TestResult
    from twisted.trial.runner import TestLoader, TrialRunner

    outcomes: dict[str, str] = {}

    class Recorder(TestResult):
        """Keeps the worst outcome of each test."""

        def __init__(self, *_args, **_options) -> None:
            super().__init__()

        def startTest(self, test) -> None:
            super().startTest(test)
            outcomes.setdefault(test.id(), "passed")

        def addError(self, test, error) -> None:
            outcomes[test.id()] = "error"
            print(test.id(), error, file=sys.stderr)

        def addFailure(self, test, failure) -> None:
            outcomes[test.id()] = "failed"
            print(test.id(), failure, file=sys.stderr)

        def addSkip(self, test, reason) -> None:
            outcomes[test.id()] = "skipped"

        def addExpectedFailure(self, test, failure, todo=None) -> None:
            outcomes[test.id()] = "todo"

        def done(self) -> None:
            """Nothing to print: the parent reads the file."""

    loader = TestLoader()
    suite = loader.loadByNames(list(MODULES))
    runner = TrialRunner(Recorder, workingDirectory=str(result.parent / "trial"))
    runner.run(suite)
    result.write_text(json.dumps(outcomes), encoding="utf-8")


def run(ours: bool, directory: Path) -> dict[str, str]:
    """Run the modules in a process of their own; return outcome by test id."""
    result = directory / "result.json"
    directory.mkdir()
    with (directory / "log").open("w+", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", "tests.twisted_suites", "ours" if ours else "stock", result],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=log,
            timeout=TIME_LIMIT,
            check=False,
        )
        if not result.exists():
            log.seek(0)
            raise SystemExit(f"Twisted's tests did not run to their end:\n{log.read()[-4000:]}")
    outcomes: dict[str, str] = json.loads(result.read_text(encoding="utf-8"))
    return outcomes


def main() -> int:
    """Compare stock and ours; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        stock = run(False, Path(name) / "stock")
        ours = run(True, Path(name) / "ours")
        log = (Path(name) / "ours" / "log").read_text(encoding="utf-8")
    passed = {test for test, outcome in stock.items() if outcome == "passed"}
    lost = sorted(test for test in passed if ours.get(test) != "passed")
    won = sorted(
        test for test, outcome in ours.items() if outcome == "passed" and test not in passed
    )
    print(f"{len(passed)} tests pass on stock, {len(passed) - len(lost)} of them on ours")
    for test in won:
        print(f"passes only on ours: {test}")
    for test in lost:
        print(f"lost: {test} ({EXPECTED.get(test, ours.get(test, 'not run'))})")
    found_again = sorted(set(EXPECTED) - set(lost))
    for test in found_again:
        print(f"no longer lost, take it off the list: {test}")
    unexpected = set(lost) - set(EXPECTED)
    if unexpected:
        print(log[-20000:])
    # A loader that finds nothing would lose nothing.
    return 1 if unexpected or found_again or len(passed) < 500 else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_here(sys.argv[1] == "ours", Path(sys.argv[2]))
    else:
        raise SystemExit(main())
