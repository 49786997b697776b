"""Import every compiled part of the package that is installed.

For wheels that promise to have them: each has a stub beside it, which is installed even where
nothing could be compiled.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import kvproto

ROOT = Path(kvproto.__file__).parent.parent


def main() -> None:
    """Import them.

    Raises:
        ImportError: One is missing.
    """
    stubs = sorted(ROOT.joinpath("kvproto").rglob("_*.pyi"))
    assert stubs
    for stub in stubs:
        name = ".".join(stub.relative_to(ROOT).with_suffix("").parts)
        import_module(name)
        print(name)


if __name__ == "__main__":
    main()
