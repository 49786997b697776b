"""Which compiled modules there are: made where the installation found a C compiler.

Where one is not there, Python code does the same in its place.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__all__ = ["PURE_PYTHON", "compiled"]

PURE_PYTHON = "KVPROTO_PURE_PYTHON"
"""Environment variable: ``1`` says that no compiled code is wanted."""


def compiled(name: str) -> Any:
    """Import a compiled module, None where it was not built or is not wanted.

    Args:
        name: Its full name, e.g. ``"kvproto.tls._native"``.
    """
    if os.environ.get(PURE_PYTHON) == "1":
        return None
    try:
        return import_module(name)
    except ImportError:
        return None
