"""The process that SDK tests run in: reads names of tests, answers with what went wrong."""

from __future__ import annotations

import importlib
import json
import os
import sys
import unittest
from unittest import SkipTest

from tests.integration.sdk import SKIPPED, SDKTestCase


def main() -> None:
    """Run tests until there are no more."""
    # What the SDK or a test prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    SDKTestCase.here = True
    current: type[SDKTestCase] | None = None
    try:
        for line in sys.stdin:
            module, name, method = line.split()
            kind = getattr(importlib.import_module(module), name)
            if kind is not current:
                if current is not None:
                    current.stop()
                current = None
                try:
                    kind.start()
                except SkipTest as reason:
                    answers.write(json.dumps(f"{SKIPPED}{reason}") + "\n")
                    answers.flush()
                    continue
                current = kind
            result = unittest.TestResult()
            kind(method).run(result)
            faults = [text for _, text in [*result.errors, *result.failures]]
            if result.skipped and not faults:
                faults = [f"{SKIPPED}{result.skipped[0][1]}"]
            answers.write(json.dumps("\n".join(faults)) + "\n")
            answers.flush()
    finally:
        if current is not None:
            current.stop()


if __name__ == "__main__":
    main()
