"""Fail where the API reference lacks a public class: ``python .ci/inventory.py objects.inv``."""

import inspect
import sys
from importlib import import_module
from pathlib import Path

from sphinx.util.inventory import InventoryFile
from zope.interface.interface import InterfaceClass

ROOMS = ("client", "config", "dist", "errors", "interfaces", "listeners", "server", "store")
ROOMS += ("testing", "tls")


def main() -> None:
    """Compare each room's ``__all__`` with what Sphinx has written."""
    with Path(sys.argv[1]).open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: base + name)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    missing = []
    for room in ROOMS:
        module = import_module(f"kvproto.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            documented = inspect.isclass(value) or isinstance(value, InterfaceClass)
            if documented and f"kvproto.{room}.{name}" not in known:
                missing.append(f"kvproto.{room}.{name}")
    if missing:
        raise SystemExit(f"not in the API reference: {', '.join(missing)}")


main()
