"""Print a command of the README, so that CI runs what newcomers paste.

``python3 tests/readme_commands.py NAME``: the shell block that follows the
HTML comment ``<!-- command: NAME -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(name: str, text: str) -> str:
    """Return the shell block called ``name`` of a README's text.

    Raises:
        LookupError: There is no such block.
    """
    found = re.search(rf"<!-- command: {re.escape(name)} -->\n```sh\n(.*?)```", text, re.DOTALL)
    if found is None:
        raise LookupError(f"README.md has no command named {name!r}")
    return found[1]


if __name__ == "__main__":
    sys.stdout.write(command(sys.argv[1], README.read_text(encoding="utf-8")))
