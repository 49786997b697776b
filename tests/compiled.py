"""The compiled modules, for tests of what is there twice: in Python, and compiled."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from unittest import SkipTest

from tests.integration.peers import PEERS

__all__ = ["require_compiled"]


def require_compiled(name: str) -> Any:
    """Import a compiled module, wanted at run time or not.

    Args:
        name: Its full name.

    Raises:
        SkipTest: It was not built, and CI did not say that it must be there.
    """
    try:
        return import_module(name)
    except ImportError as e:
        if PEERS == "required":
            raise
        raise SkipTest(f"the compiled code was not built: {e}") from e
