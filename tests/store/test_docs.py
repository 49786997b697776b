"""The reference page "Stores" against the code that it describes."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Refusal
from kvproto.store.table import COLLECTION_OVERHEAD, ITEM_OVERHEAD, XATTR_OVERHEAD, XATTRS_OVERHEAD
from kvproto.testing.store_case import DONE, MISS, NO_CAS, TABLE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "store.md"


def word(answer: object) -> str:
    """Spell an answer of the table as the page does."""
    if isinstance(answer, Refusal):
        return answer.name
    return {DONE: "done", MISS: "None", NO_CAS: "\u2013"}[answer]  # type: ignore[index]


class ReferencePageTests(SynchronousTestCase):
    """What the page says is what the contract tests check."""

    def setUp(self) -> None:
        self.page = PAGE.read_text(encoding="utf-8")

    def test_example(self) -> None:
        """The page's examples run."""
        examples = re.findall(r"```python\n(.*?)```", self.page, re.S)
        self.assertEqual(len(examples), 2)
        for example in examples:
            exec(compile(example, str(PAGE), "exec"), {})

    def test_table(self) -> None:
        """Each row of the page's table is the contract's."""
        rows = re.findall(r"^\| ([a-z_, ]+) \| (.*) \|$", self.page, re.M)
        seen = set()
        for names, cells in rows:
            for name in names.split(", "):
                if name in TABLE:
                    seen.add(name)
                    expected = " | ".join(word(answer) for answer in TABLE[name])
                    self.assertEqual(cells.replace("created", "done"), expected, name)
        self.assertEqual(seen | {"increment existing"}, set(TABLE))

    def test_overheads(self) -> None:
        """The page states the overheads that count."""
        for bytes_ in (ITEM_OVERHEAD, COLLECTION_OVERHEAD, XATTRS_OVERHEAD, XATTR_OVERHEAD):
            self.assertIn(f"| {bytes_} ", self.page)
