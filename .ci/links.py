"""Fail where a built page links to a page or a place in it that is not there.

``python .ci/links.py DIRECTORY``.  Links to other sites are left alone: CI has no network.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page can be linked to by, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids and links."""
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.places.add(value)
            elif name in {"href", "src"} and value:
                self.links.append(value)


def main() -> None:
    """Follow each link."""
    root = Path(sys.argv[1]).resolve()
    pages = {path: Page(path) for path in root.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists() or (
                place and target in pages and place not in pages[target].places
            ):
                broken.append(f"{path.relative_to(root)}: {link}")
    if broken or not pages:
        raise SystemExit("broken links:\n" + "\n".join(broken))


main()
