"""Property tests take how much they try, and how patient they are, from one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TESTS = Path(__file__).parent


def decorators(source: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each decorated function's name, and the names of what decorates it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            made = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
            yield node.name, {one.id for one in made if isinstance(one, ast.Name)}


class SettingsTests(SynchronousTestCase):
    """A test without settings of its own has hypothesis's deadline, which judges speed."""

    def test_all(self) -> None:
        """Whatever is given examples takes its settings from `tests.examples`."""
        checked, without = 0, []
        for path in sorted(TESTS.rglob("*.py")):
            for name, used in decorators(path.read_text(encoding="utf-8")):
                if "given" in used:
                    checked += 1
                    if "examples" not in used:
                        without.append(f"{path.relative_to(TESTS)}: {name}")
        self.assertEqual(without, [])
        self.assertGreater(checked, 50)
