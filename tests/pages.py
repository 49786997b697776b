"""The code blocks of the documentation, for tests that use them as a reader would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "block", "blocks"]

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code.

    Attributes:
        page: Its file, relative to the checkout.
        line: Where it begins there.
        language: What is written behind its fence; ``""`` for nothing.
        text: What is in it.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command of a block of shell; without prompts and comments."""
        pending = ""
        for written in self.text.replace("\\\n", " ").splitlines():
            pending += re.sub(r"\$\(.*\)", "X", re.sub(r"^\$ ", "", written))
            words = shlex.shlex(pending, posix=True, punctuation_chars=";&|")
            words.whitespace_split = True
            try:
                found = [*words, ";"]
            except ValueError:
                # A quotation goes on in the next line.
                pending += "\n"
                continue
            pending = ""
            command: list[str] = []
            for word in found:
                if not word or not set(word) <= set(";&|"):
                    command += [word] if word not in {"do", "..."} else []
                elif command:
                    yield command
                    command = []


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of README.md and of all pages in some languages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, match[1], match[2]))
    return [each for each in found if each.language in languages]


def block(page: str, containing: str) -> Block:
    """Return the one block of a page with some text in it."""
    languages = ("sh", "python", "console", "erlang", "toml", "ini", "")
    (found,) = [b for b in blocks(*languages) if b.page == page and containing in b.text]
    return found
