"""The house of the design, held against the imports that are really there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).resolve().parent.parent / "kvproto"

FLOORS = {
    "__main__": 6,
    "tap": 6,
    "cli": 6,
    "service": 5,
    "passwd": 5,
    "dataplane": 3,
    "ops": 4,
    "management": 4,
    "nodes": 4,
    "listeners": 3,
    "tls": 2,
    "server": 2,
    "client": 2,
    "upstream": 2,
    "dist": 2,
    "store": 1,
    "wire": 0,
    "base": -1,
    "config": 0,
    "interfaces": 0,
    "openssl": 0,
    "errors": -2,
}
"""Floor of each room; a room may import from lower floors, and from itself."""

PUBLIC_FAKES = "testing"
"""For users and tests: may import everything, nobody in the package may import it."""


def room_of(module: str) -> str:
    """Return the room that a dotted ``kvproto`` module name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted name of each module that a file imports, nested imports included."""
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    package = (
        module.removesuffix(".__init__") if path.stem == "__init__" else module.rpartition(".")[0]
    )
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


class LayerTests(SynchronousTestCase):
    """Floors import downwards only."""

    def files(self) -> list[Path]:
        return sorted(PACKAGE.rglob("*.py"))

    def test_every_room_has_a_floor(self) -> None:
        """Each module or folder in the package is a room of the design."""
        rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in self.files()}
        self.assertEqual(rooms - set(FLOORS) - {"__init__", PUBLIC_FAKES}, set())

    def test_the_page_says_the_same(self) -> None:
        """The page on architecture has each room on its floor, and names files that exist."""
        page = PACKAGE.parent / "docs" / "explanation" / "architecture.md"
        text = page.read_text(encoding="utf-8")
        told = {
            room: int(floor)
            for floor, rooms in re.findall(r"^\| (-?\d) \| (.*?) \|", text, re.MULTILINE)
            for room in re.findall("`(.*?)`", rooms)
        }
        self.assertEqual(told, FLOORS)
        rooms = "|".join(room for room in FLOORS if (PACKAGE / room).is_dir())
        named = re.findall(rf"`((?:kvproto|tests|{rooms})/[a-z_/0-9]*(?:\.pyx?)?)`", text)
        self.assertGreater(len(named), 50)
        for name in named:
            places = [PACKAGE / name, PACKAGE.parent / name]
            self.assertTrue(any(place.exists() for place in places), name)

    def test_imports_point_down(self) -> None:
        """A room imports only rooms of lower floors, never a neighbour."""
        wrong = []
        for path in self.files():
            here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
            if here in {"__init__", PUBLIC_FAKES}:
                continue
            for name in imports_of(path):
                there = room_of(name) if name.startswith("kvproto.") else ""
                if there in {"", "__version__"} or there == here:
                    continue
                if FLOORS.get(there, 99) >= FLOORS[here]:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
        self.assertEqual(wrong, [])

    def test_no_circle(self) -> None:
        """No module imports one that imports it, for types included; packages only gather."""
        modules = {
            ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
            for path in self.files()
            if path.stem != "__init__"
        }
        graph = {
            name: {found for found in imports_of(path) if found in modules}
            for name, path in modules.items()
        }
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            self.fail(" -> ".join(error.args[1]))

    def test_wire_is_sans_io(self) -> None:
        """The wire room knows no Twisted, no OpenSSL, no clock and no log."""
        forbidden = {"twisted", "OpenSSL", "cryptography", "time", "txaio", "logging", "socket"}
        found = {
            name
            for path in sorted((PACKAGE / "wire").rglob("*.py"))
            for name in imports_of(path)
            if name.split(".")[0] in forbidden
        }
        self.assertEqual(found, set())

    def test_nobody_imports_the_reactor(self) -> None:
        """Time and I/O are passed in: no module imports the global reactor."""
        found = [
            str(path.relative_to(PACKAGE))
            for path in self.files()
            if "twisted.internet.reactor" in set(imports_of(path))
            and path.relative_to(PACKAGE).parts[0] not in {"tap.py", "service.py", "cli.py"}
        ]
        self.assertEqual(found, [])
