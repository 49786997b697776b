"""What an index shows of the package is true, and is the same as what the README shows."""

from __future__ import annotations

import re
from importlib.metadata import metadata

from twisted.trial.unittest import SynchronousTestCase

from tests.pages import ROOT


class MetadataTests(SynchronousTestCase):
    """Pythons, licence and description."""

    def setUp(self) -> None:
        self.metadata = metadata("kvproto")
        self.readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def badge(self, name: str) -> str:
        """Return the title of a badge, which its picture says in two halves."""
        text = (ROOT / "docs" / "badges" / f"{name}.svg").read_text(encoding="utf-8")
        title: str
        (title,) = re.findall("<title>(.*)</title>", text)
        halves = re.findall("<text [^>]*>([^<]*)</text>", text)
        self.assertEqual(title, ": ".join(halves))
        self.assertIn(f"docs/badges/{name}.svg", self.readme)
        return str(halves[1])

    def test_badges(self) -> None:
        """They say what the package says of itself."""
        pythons = [
            found[1]
            for each in self.metadata.get_all("Classifier") or []
            if (found := re.fullmatch(r"Programming Language :: Python :: (\d\.\d+)", each))
        ]
        self.assertEqual(self.badge("python"), " | ".join(pythons))
        licence = self.metadata["License-Expression"] or self.metadata["License"]
        self.assertEqual(self.badge("licence"), licence)

    def test_description(self) -> None:
        """The description has all words of the README, and no link that leads nowhere."""
        text = self.metadata.json["description"]
        assert isinstance(text, str)
        self.assertIn("twistd -n kvtls", text)
        for target in re.findall(r"\]\(([^)]*)\)", text):
            self.assertTrue(target.startswith("https:"), target)

    def test_links_of_the_readme(self) -> None:
        """Files that README.md and CONTRIBUTING.md link to exist."""
        for name in ("README.md", "CONTRIBUTING.md"):
            text = (ROOT / name).read_text(encoding="utf-8")
            for target in re.findall(r"\]\((?!https?:)([^)#]*)\)", text):
                self.assertTrue((ROOT / target).exists(), f"{name}: {target}")
