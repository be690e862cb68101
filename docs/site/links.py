"""Check every link within the built site: the file is there, and so is the place in it.

python docs/site/links.py site
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """What a page links to, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.places.add(value or "")
            elif name in ("href", "src") and value:
                self.links.add(value)


_page = cache(_Page)


def broken(path: Path, root: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    return [link for link in sorted(_page(path).links) if not _leads(link, path, root)]


def _leads(link: str, path: Path, root: Path) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True  # elsewhere
    target = path
    if parts.path:
        start = root if parts.path.startswith("/") else path.parent
        target = start / unquote(parts.path).lstrip("/")
        target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return False
    place = unquote(parts.fragment)
    # The theme's own: `__search` and the like are made by its scripts.
    return not place or place.startswith("__") or place in _page(target).places


def main() -> None:
    root = Path(sys.argv[1])
    pages = sorted(root.rglob("*.html"))
    found = [(p, link) for p in pages if p.name != "404.html" for link in broken(p, root)]
    sys.exit("\n".join(f"{p.relative_to(root)}: {link}" for p, link in found) or not pages)


if __name__ == "__main__":
    main()
